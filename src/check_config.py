"""Check a configuration and print it completed, without running anything:

python src/check_config.py CONFIG [key=value ...] [--quiet]
"""

import argparse

from retlab.command import StageCommand, run_stage
from retlab.config import ExperimentConfig, dump_config
from retlab.config_model import resolve_model
from retlab.errors import UserError
from retlab.machine_checks import check_machine
from retlab.section import SCRIPTS


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this script alone."""
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


def main(config: ExperimentConfig, command: StageCommand) -> None:
    """Resolve everything that can be wrong, then show the configuration."""
    problems = []
    try:
        config = resolve_model(config)
    except UserError as error:
        problems.append(str(error))
    try:
        check_machine(config, list(SCRIPTS))
    except UserError as error:
        problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    if not command.options.quiet:
        print(dump_config(config), end="")
        print("# complete, and nothing in it speaks against running here")


if __name__ == "__main__":
    run_stage(main, configure=add_options)
