"""The errors that a user can cause, and what a user should know; the command line prints either as one line."""

from hf_heads.core.vocabulary import one_line


class HeadsError(ValueError):
    """Input that cannot be used; the message names the thing and the fix, in one line whatever the input holds."""

    def __init__(self, text: str) -> None:
        super().__init__(one_line(text))


class HeadsWarning(UserWarning):
    """Something that goes on as it should, and that may be another thing than the user takes it for; one line too."""

    def __init__(self, text: str) -> None:
        super().__init__(one_line(text))


def reason(error: Exception) -> str:
    """An error's kind and the first line of its message."""
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"[:240]
