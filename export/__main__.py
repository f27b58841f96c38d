"""The command line of export: a snapshot, or MONAI's weights, to a model repository, and what belongs to it."""

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence

from export.commands import check, from_monai, gate, parity, repository, to_monai
from training.cli import run_command


def _parser() -> tuple[argparse.ArgumentParser, list[str]]:
    """The parser, and the names of its subcommands."""
    parser = argparse.ArgumentParser(
        prog="python -m export",
        description="Turn a training snapshot, or weights trained with MONAI, into a Triton model repository, and "
        "check the result. Each command has its own --help.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in (repository, check, parity, gate, from_monai, to_monai):
        command.add_command(commands)
    return parser, list(commands.choices)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, run the command, report; returns the exit status."""
    words = sys.argv[1:] if argv is None else list(argv)
    parser, names = _parser()
    if words and words[0] not in (*names, "-h", "--help"):
        parser.exit(2, f"error: {words[0]!r} is no command: use python -m export repository {shlex.join(words)}\n")
    arguments = parser.parse_args(words)
    run: Callable[[argparse.Namespace], int] = arguments.run
    return run(arguments)


if __name__ == "__main__":
    run_command(main)
