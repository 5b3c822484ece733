"""Check a configuration and print it completed, without running anything:

python src/check_config.py CONFIG [key=value ...] [--quiet]
"""

import argparse
from collections.abc import Callable

import retlab.script_start  # noqa: F401
from retlab.command import StageCommand, run_stage
from retlab.config import ExperimentConfig, dump_config
from retlab.config_model import known_model, resolve_model
from retlab.errors import UserError
from retlab.machine_checks import check_machine
from retlab.section import SCRIPTS
from retlab.training.run_folder import refuse_other_training


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of this script alone."""
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors and notes")


def main(config: ExperimentConfig, command: StageCommand) -> None:
    """Resolve everything that can be wrong, then show the configuration."""
    problems = []
    try:
        config = resolve_model(config)
    except UserError as error:
        problems.append(str(error))
    checks: list[Callable[[], None]] = [lambda: check_machine(config, list(SCRIPTS))]
    # With --force the training sets aside whatever is there.
    if not command.force:
        checks.append(lambda: refuse_other_training(config.run_folder, known_model(config)))
    for check in checks:
        try:
            check()
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(problems))
    for note in notes(config):
        # Beside the configuration as a comment: what is printed can be loaded.
        print(note if command.options.quiet else f"# {note}")
    if not command.options.quiet:
        print(dump_config(config), end="")
        print("# complete, and nothing in it speaks against running here")


def notes(config: ExperimentConfig) -> list[str]:
    """What may not be meant, although it can be run."""
    named = [block.get("name") for block in getattr(config.model, "blocks", [])]
    if config.model.architecture != "longnet" and "dilated_attention" not in named:
        return []
    # It needs torch, whose import takes seconds.
    from retlab.training.dilation import dilation_notes

    # No vocabulary matters to it.
    return dilation_notes(config.model.to_fields(1), config.data.sequence_length)


if __name__ == "__main__":
    run_stage(main, configure=add_options)
