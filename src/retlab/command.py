"""The command line of every stage: CONFIG, overrides, options, errors as sentences, exit codes."""

import argparse
import contextlib
import difflib
import gc
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from retlab.config import ExperimentConfig, load_config
from retlab.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_USER_ERROR, Interrupted, UserError
from retlab.nodes import Nodes
from retlab.slurm_step import START, Step, current_step
from retlab.storage import sentence

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
"""Signals on which a stage saves what it can and leaves."""


@dataclass(frozen=True)
class StageCommand:
    """What the command line asks of a stage."""

    force: bool = False
    verify: bool = False
    words: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    options: argparse.Namespace = field(default_factory=argparse.Namespace)
    after: tuple[str, ...] = ()
    "Words after --, for the scripts that hand them on."
    nodes: Nodes = field(default_factory=Nodes)
    "The nodes that srun started the stage on; this is the first one."


class Parser(argparse.ArgumentParser):
    """A command line whose mistakes are sentences. The description is the docstring of the script."""

    def __init__(self, usage: str) -> None:
        main = sys.modules["__main__"]
        layout = argparse.RawDescriptionHelpFormatter
        super().__init__(usage=usage, description=main.__doc__, formatter_class=layout, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        found = re.fullmatch(r"argument ([^\s/]+)\S*: (.*)", message, flags=re.DOTALL)
        action = found and next((one for one in self._actions if found[1] in (*one.option_strings, one.metavar)), None)
        raise UserError(f"command line: {_complaint(found[1], found[2], action) if found and action else message}")

    def refuse_unknown(self, words: Sequence[str], others: Sequence[str]) -> None:
        """Raise a UserError that names the first word and what it could be: an option or one of the others."""
        if not words:
            return
        options = [name for action in self._actions for name in action.option_strings if name.startswith("--")]
        allowed = [*others, *(name for name in options if name != "--help")]
        hint = _nearest(words[0], allowed)
        raise UserError(f"command line: {words[0]} is not understood{hint}; allowed are {', '.join(allowed)}")


def _nearest(word: str, allowed: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, allowed, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _complaint(name: str, said: str, action: argparse.Action) -> str:
    """What argparse says of an option, in a sentence."""
    value = re.match(r"invalid [\w ]+: (['\"]?)(.*?)\1(?: \(choose from .*)?$", said, flags=re.DOTALL)
    allowed = [str(choice) for choice in action.choices or ()]
    if value and allowed:
        return f"{name} {value[2]} is not understood{_nearest(value[2], allowed)}; allowed are {', '.join(allowed)}"
    if value:
        return f"{name} is {value[2]}, but must be {_KINDS.get(action.type, 'another value')}"
    if action.nargs == 0:
        return f"{name} takes no value"
    if isinstance(action.nargs, int):
        return f"{name} takes {action.nargs} values: {' '.join(action.metavar or ())}"
    return f"{name} needs a value" + (f": one of {', '.join(allowed)}" if allowed else "")


_KINDS: dict[Any, str] = {int: "a whole number", float: "a number"}


def _parse(
    arguments: Sequence[str],
    words: Sequence[str],
    configure: Callable[[argparse.ArgumentParser], None] | None,
    after: str | None,
    makes: bool,
) -> tuple[ExperimentConfig, StageCommand]:
    names = f" [{' '.join(words)}]" if words else ""
    parser = Parser(f"%(prog)s CONFIG{names} [key.path=value ...] [options]" + (f" [-- {after}]" if after else ""))
    handed_on: Sequence[str] = ()
    if after and "--" in arguments:
        place = arguments.index("--")
        arguments, handed_on = arguments[:place], arguments[place + 1 :]
    parser.add_argument("config", metavar="CONFIG", type=Path, nargs="?", help="the experiment's YAML file")
    rest = "overrides of the configuration, such as train.batch_size=8" + (
        f"; or some of {', '.join(words)}" if words else ""
    )
    parser.add_argument("rest", metavar="key.path=value", nargs="*", help=rest)
    if makes:
        parser.add_argument("--force", action="store_true", help="do the work even if it is up to date")
        parser.add_argument("--verify", action="store_true", help="compare full contents in place of sizes and times")
    else:
        parser.set_defaults(force=False, verify=False)
    if configure:
        configure(parser)
    options, unknown = parser.parse_known_intermixed_args(arguments)
    chosen = [word for word in options.rest if "=" not in word]
    parser.refuse_unknown([*unknown, *(word for word in chosen if word not in words)], ["key.path=value", *words])
    if options.config is None:
        raise UserError("command line: CONFIG is missing; name the experiment's YAML file")
    if "=" in str(options.config) and not options.config.exists():
        raise UserError(f"command line: the experiment's YAML file comes first, before {options.config}")
    overrides = tuple(word for word in options.rest if "=" in word)
    config = load_config(options.config, overrides)
    command = StageCommand(
        options.force, options.verify, tuple(chosen), overrides=overrides, options=options, after=tuple(handed_on)
    )
    return config, command


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Errors of the machine that the user can mend become sentences."""
    try:
        yield
    except OSError as error:
        said = sentence(error)
        if said:
            raise UserError(said) from error
        raise


def run_stage(
    main: Callable[[ExperimentConfig, StageCommand], None],
    *,
    words: Sequence[str] = (),
    configure: Callable[[argparse.ArgumentParser], None] | None = None,
    on_other_nodes: Callable[[Step], NoReturn] | None = None,
    after: str | None = None,
    makes: bool = True,
) -> NoReturn:
    """Run a stage's `main` for the command line and exit with the stage's code.

    Args:
        main: the stage.
        words: further words that may follow CONFIG, such as the splits.
        configure: adds the stage's own options to the parser.
        on_other_nodes: what the stage does on the nodes of a job step other than the first; without it the stage runs
            as one task.
        after: what the words after -- are, of a script that hands such words on.
        makes: whether it makes something that can be up to date, and so takes --force and --verify.
    """
    step = current_step()
    if step is None or step.tasks == 1:
        run_command(lambda: main(*_parse(sys.argv[1:], words, configure, after, makes)), _ADVICE)
    if on_other_nodes is None or not step.one_task_a_node:
        # The first task speaks for all, and srun ends with its code.
        run_command(lambda: None if step.rank else _refuse(step, on_other_nodes is not None), _ADVICE)
    if step.rank != 0:
        run_command(partial(on_other_nodes, step), _ADVICE)
    nodes: Nodes | None = None

    def work() -> None:
        nonlocal nodes
        nodes = Nodes(step)
        config, command = _parse(sys.argv[1:], words, configure, after, makes)
        main(config, replace(command, nodes=nodes))

    try:
        run_command(work, _ADVICE)
    finally:
        if nodes is not None:
            nodes.end()


_ADVICE = "run the same command again to continue"


def _refuse(step: Step, takes_nodes: bool) -> NoReturn:
    what = f"srun started {step.tasks} tasks on {step.nodes} {'node' if step.nodes == 1 else 'nodes'}"
    if takes_nodes:
        raise UserError(f"{what}, but a training is one task on each node and starts its own processes there: {START}")
    raise UserError(f"{what}, but this stage runs as one: start it without srun, or with srun --nodes=1 --ntasks=1")


def run_command(work: Callable[[], None], advice: str) -> NoReturn:
    """Do the work of a command line and exit with its code; `advice` is what to do after an interruption."""
    # GNU OpenMP's threads spin for milliseconds where they wait. On a machine that does something else too they then
    # take each other's cores, and training is several times slower; so short a spin costs nothing measurable.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # A terminal that cannot show a character gets a stand-in for it, as its sentence is worth more.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")
    # A signal between two stages or during imports must end the process as an interruption, not a crash.
    for number in SIGNALS:
        signal.signal(number, _interrupt)
    code = EXIT_OK
    try:
        with _plain_errors():
            work()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = EXIT_USER_ERROR
    except Interrupted as error:
        print(f"interrupted: {error}; {advice}", file=sys.stderr)
        code = EXIT_INTERRUPTED
    # All is said and written; what a signal could still interrupt is the end of libraries.
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    # Python would look through all objects of all libraries for garbage, a second and a half of a training's end.
    gc.freeze()
    sys.exit(code)


def _interrupt(number: int, _frame: object) -> None:
    raise Interrupted(f"{signal.Signals(number).name} received")
