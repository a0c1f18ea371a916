"""The command line."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Sequence

__all__ = ["build_parser", "main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 well, 1 failed, 2 wrong usage, 130 interrupted."""
    try:
        from hf_heads.cli import program  # here, so that an interrupt during imports is no traceback

        return program.main(arguments)
    except KeyboardInterrupt:
        print("hf-heads: interrupted; nothing was written", file=sys.stderr)
        return 130


def build_parser(methods: bool = True) -> ArgumentParser:
    """See `hf_heads.cli.program.build_parser`."""
    from hf_heads.cli import program  # takes seconds to import

    return program.build_parser(methods)
