"""The command `check`: the preflight of a model repository."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from export.commands.options import report_problems

if TYPE_CHECKING:
    from export.commands.options import Commands


def add_command(commands: Commands) -> None:
    """Add the parser."""
    parser = commands.add_parser(
        "check",
        help="check a repository before a server loads it",
        description="Check a model repository before it is served: files, configs, limits, and whether its plans fit "
        "the machine. Runs no network. The exit status is 1 if something is wrong.",
    )
    parser.add_argument("repository", type=Path, help="folder of the model repository")
    parser.add_argument("--profile", help="profile to check; 'default' is config.pbtxt")
    parser.add_argument(
        "--tensorrt", metavar="VERSION", help="TensorRT version of the machine that will serve, if not this one"
    )
    parser.add_argument(
        "--capability", metavar="X.Y", help="compute capability of the GPU that will serve, if not this one"
    )
    parser.set_defaults(run=lambda arguments: report_problems(lambda: _check(arguments)))


def _check(arguments: argparse.Namespace) -> list[str]:
    from export.preflight import preflight

    result = preflight(
        arguments.repository,
        profile=arguments.profile,
        tensorrt=arguments.tensorrt,
        capability=arguments.capability,
    )
    for line in result.report:
        print(line)
    return result.problems
