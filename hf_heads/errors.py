"""The errors that a user can cause; the command line prints them as one line."""


class HeadsError(ValueError):
    """Input that cannot be used; the message names the thing and the fix."""
