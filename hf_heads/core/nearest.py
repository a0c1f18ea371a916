"""What somebody may have meant by a name that there is not; torch is not needed."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(given: object, known: Iterable[str]) -> str:
    """` (did you mean 'collab'?)` where a known name is close to a wrong one, or else nothing."""
    found = get_close_matches(str(given).lower()[:80], [one for one in known if one != given], 1, 0.6)
    return f" (did you mean '{found[0]}'?)" if found else ""
