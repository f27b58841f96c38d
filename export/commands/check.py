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
        help="say what would go wrong with a repository, before a server does",
        description="Check a model repository before it is served: files, configs, limits, and whether its plans fit "
        "the machine. Runs no network. The exit status is 1 if something is wrong.",
    )
    parser.add_argument("repository", type=Path, help="folder of the model repository")
    parser.add_argument("--profile", help="the profile that will be served; 'default' is config.pbtxt")
    parser.add_argument(
        "--tensorrt", metavar="VERSION", help="TensorRT of the serving machine or container, if it is another"
    )
    parser.add_argument(
        "--capability", metavar="X.Y", help="compute capability of the serving machine's GPU, if it is another"
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
