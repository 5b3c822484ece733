"""Check a configuration and print it completed, without running anything:

python src/check_config.py CONFIG [key=value ...] [--quiet]
"""

import argparse

from retlab.command import StageCommand, run_stage
from retlab.config import ExperimentConfig, dump_config
from retlab.config_model import resolve_model


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this script alone."""
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


def main(config: ExperimentConfig, command: StageCommand) -> None:
    """Resolve everything that can be wrong, then show the configuration."""
    config = resolve_model(config)
    if config.train.device == "cuda":
        # Here, because only this question needs torch.
        from retlab.training.hardware import choose_hardware

        choose_hardware(config.train)
    if not command.options.quiet:
        print(dump_config(config), end="")


if __name__ == "__main__":
    run_stage(main, configure=add_options)
