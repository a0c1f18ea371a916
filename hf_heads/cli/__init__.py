"""The command line."""

from hf_heads.cli.program import build_parser, main

__all__ = ["build_parser", "main"]
