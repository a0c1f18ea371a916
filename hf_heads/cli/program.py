"""The command line: parses, prints, exits. No maths, and nothing slow is imported before a command needs it."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
from collections.abc import Sequence

from hf_heads.cli.checks import add_inspect, add_list, add_verify
from hf_heads.cli.compare import add_compare
from hf_heads.cli.completion import add_completion
from hf_heads.cli.convert import add_convert
from hf_heads.cli.distill import add_distill
from hf_heads.cli.export import add_export
from hf_heads.cli.parsing import Parser
from hf_heads.cli.recipes import add_recipes
from hf_heads.cli.recommend import add_recommend
from hf_heads.cli.report import add_report
from hf_heads.cli.signals import Stopped, signals_stop
from hf_heads.cli.studies import add_ablate, add_importance
from hf_heads.core.errors import HeadsError
from hf_heads.core.vocabulary import VERSION, one_line, shortened


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 well, 1 failed, 2 wrong usage."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = build_parser(methods=bool(arguments) and arguments[0] == "convert")
    options = parser.parse_args(arguments)
    try:
        with signals_stop():
            code = int(options.run(options, parser))
            if sys.stdout is not None:
                sys.stdout.flush()  # what cannot be written shows here, not at the end of the interpreter
            return code
    except HeadsError as error:
        return _failed(str(error))
    except KeyboardInterrupt as stop:
        print(f"hf-heads: interrupted; {str(stop) or 'nothing was left half-written'}", file=sys.stderr)
        return 128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT)
    except Exception as error:
        if os.environ.get("HF_HEADS_DEBUG"):
            raise
        if isinstance(error, OSError) and error.filename is None and error.errno in _OF_STREAMS:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return 1 if isinstance(error, BrokenPipeError) else _failed(f"cannot print: {error.strerror}")
        if isinstance(error, OSError) and error.strerror and error.filename is not None:
            return _failed(f"cannot use '{shortened(str(error.filename))}': {error.strerror}")
        text = " ".join(str(error).split())[:300]
        return _failed(f"{type(error).__name__}: {text} (unexpected; HF_HEADS_DEBUG=1 shows where)")


_OF_STREAMS = (errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EBADF)


def _failed(text: str) -> int:
    print(f"hf-heads: error: {one_line(text)}", file=sys.stderr)
    return 1


def build_parser(methods: bool = True) -> argparse.ArgumentParser:
    """The parser; the options of the methods are left out unless asked for: a method of another package may be slow."""
    parser = Parser(
        prog="hf-heads",
        description="Re-parametrize the attention heads of pretrained Transformers checkpoints.",
        epilog="Every command explains itself with --help.",
    )
    parser.add_argument("--version", action="version", version=f"hf-heads {VERSION}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    add_convert(commands, methods)
    add_distill(commands)
    add_importance(commands)
    add_ablate(commands)
    add_compare(commands)
    add_inspect(commands)
    add_verify(commands)
    add_export(commands)
    add_recommend(commands)
    add_report(commands)
    add_list(commands)
    add_recipes(commands)
    add_completion(commands, build_parser)
    return parser
