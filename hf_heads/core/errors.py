"""The errors that a user can cause, and what a user should know; the command line prints either as one line."""


class HeadsError(ValueError):
    """Input that cannot be used; the message names the thing and the fix."""


class HeadsWarning(UserWarning):
    """Something that goes on as it should, and that may be another thing than the user takes it for."""
