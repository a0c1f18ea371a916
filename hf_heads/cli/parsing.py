"""The parser of the command line: what it says of words that it does not know."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from hf_heads.core.nearest import did_you_mean
from hf_heads.core.vocabulary import one_line

_WRONG_CHOICE = re.compile(r"invalid choice: '(.*)' \(choose from (.*)\)", re.S)


class Parser(argparse.ArgumentParser):
    """A parser whose errors name what was meant, without what would steer the terminal; commands get it as well."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, and exit with 2."""
        if found := _WRONG_CHOICE.search(message):
            message += did_you_mean(found[1], [one.strip("'") for one in found[2].split(", ")])
        super().error(one_line(message))

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As argparse does it; an option that there is not is refused by the command that does not have it."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            command = getattr(found, "parser", self)
            options = [name for action in command._actions for name in action.option_strings if name.startswith("--")]
            wrong = next((one for one in unknown if one.startswith("-")), unknown[0])
            command.error(f"unrecognized arguments: {' '.join(unknown)}{did_you_mean(wrong.split('=')[0], options)}")
        return found
