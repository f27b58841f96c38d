"""The command line of a training stage: every field of the configuration is an option."""

import argparse
import sys
from collections.abc import Sequence
from typing import Protocol, TypeVar

from training.config import Config, ConfigError, check_config, load_config


class HasSettings(Protocol):
    """The command line of a training stage."""

    def __init__(self, config: str, settings: Config) -> None: ...

    @property
    def settings(self) -> Config: ...


Arguments = TypeVar("Arguments", bound=HasSettings)


def parse_stage_arguments(
    arguments: type[Arguments], argv: Sequence[str] | None, program: str, description: str | None
) -> Arguments:
    """Parse the command line of a stage in two passes: `--config` chooses the defaults, the rest changes single fields.

    `arguments` is a dataclass with a `config: str` and a `settings: Config`. A wrong option or setting ends the
    program.
    """
    import tyro

    first = argparse.ArgumentParser(add_help=False)
    first.add_argument("--config", default="demo")
    name = first.parse_known_args(argv)[0].config
    try:
        defaults = arguments(config=name, settings=load_config(name))
        parsed = tyro.cli(arguments, prog=program, default=defaults, args=argv, description=description)
        check_config(parsed.settings, "command line")
    except ConfigError as error:
        sys.exit(f"error: {error}")
    return parsed
