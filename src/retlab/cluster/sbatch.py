"""Submitting jobs: what sbatch is asked for, and what its refusals mean in the configuration."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from retlab.cluster.client import call, installed, reason_given
from retlab.cluster_settings import ClusterSection, Resources
from retlab.errors import UserError

USES_GPUS = ("train_model", "evaluate_model", "grid_search")
"""The stages that ask for `cluster.gpus`."""

# Of each key its option, its short form, and what Slurm says when it is wrong.
_KEYS = {
    "partition": ("--partition", "-p", r"partition"),
    "account": ("--account", "-A", r"\baccount"),
    "qos": ("--qos", "-q", r"\bqos\b|QOS"),
    "time": ("--time", "-t", r"--time|time limit"),
    "memory": ("--mem", None, r"--mem\b|memory|node configuration"),
    "cpus": ("--cpus-per-task", "-c", r"cpus?\b|processors|node configuration"),
    "gpus": ("--gpus-per-node", None, r"gres|gpus?\b|generic resource|trackable resource|node configuration"),
    "nodes": ("--nodes", "-N", r"node count|node configuration|\bnodes\b"),
}


@dataclass(frozen=True)
class _Asked:
    """One thing that a job asks for."""

    word: str
    "As sbatch reads it."
    origin: str
    "As people know it: a key of the configuration with its value, or a word after --."
    complaints: str
    "Pattern of what Slurm says when it is wrong."


def options(cluster: ClusterSection, stage: str, num_nodes: int = 1) -> list[str]:
    """The words for sbatch that the configuration asks for, such as --partition=main.

    Args:
        cluster: the section of the configuration.
        stage: whose job it is; `cluster.stages` may hold other values for it.
        num_nodes: nodes of a training where `cluster.nodes` says nothing.
    """
    return [asked.word for asked in _asked(cluster, stage, num_nodes)]


def _asked(cluster: ClusterSection, stage: str, num_nodes: int) -> Iterator[_Asked]:
    own = cluster.stages.get(stage, Resources())  # type: ignore[call-overload]
    for key, (option, _, complaints) in _KEYS.items():
        here = getattr(own, key) is not None
        value = getattr(own if here else cluster, key)
        origin = f"cluster.stages.{stage}.{key}" if here else f"cluster.{key}"
        if key == "gpus" and (stage not in USES_GPUS or value == 0):
            continue
        if key == "nodes":
            if stage != "train_model":
                continue
            value, origin = (num_nodes, "train.num_nodes") if value is None else (value, origin)
        if value is not None:
            yield _Asked(f"{option}={value}", f"{origin}: {value}", complaints)
    yield _Asked(f"--signal=B:USR1@{cluster.signal_seconds}", f"cluster.signal_seconds: {cluster.signal_seconds}",
                 r"--signal")  # fmt: skip
    for word in ("--requeue", "--open-mode=append", "--ntasks-per-node=1"):
        yield _Asked(word, f"retlab's own {word}", re.escape(word))


def submit(
    words: Sequence[str],
    *,
    stage: str,
    cluster: ClusterSection,
    given: Sequence[str] = (),
    num_nodes: int = 1,
    keep_open: Sequence[int] = (),
) -> int:
    """Submit a job and return its number.

    Args:
        words: the script and its words, after further options for sbatch that this program chose.
        stage: whose job it is.
        cluster: the section of the configuration, whose options come first.
        given: the user's own words for sbatch, which come last and win.
        num_nodes: see `options`.
        keep_open: files that sbatch holds open, too.

    Raises:
        UserError: sbatch is not here, or Slurm refuses: its words, and what in the configuration they are about.
    """
    chosen, script = _split(words)
    command = ["sbatch", "--parsable", *options(cluster, stage, num_nodes), *chosen, *given, *script]
    answer = call(command, keep_open=keep_open)
    if answer.returncode != 0:
        raise UserError(_refusal(reason_given(answer), stage, cluster, given, num_nodes, [*chosen, *given, *script]))
    number = answer.stdout.split(";")[0].strip()
    if not number.isdigit():
        said = " ".join((answer.stdout + answer.stderr).split())
        raise UserError(f"sbatch submitted no job for {stage}: {said}")
    return int(number)


def unstartable(
    words: Sequence[str], *, stage: str, cluster: ClusterSection, given: Sequence[str] = (), num_nodes: int = 1
) -> str | None:
    """What Slurm says against such a job ever starting, with where it comes from; None where it says nothing.

    For jobs that wait for others: of those the queue itself tells no other reason.
    """
    chosen, script = _split(words)
    kept = without(given, "--dependency", "-d")
    answer = call(["sbatch", "--test-only", *options(cluster, stage, num_nodes), *chosen, *kept, *script])
    if answer.returncode == 0:
        return None
    return _refusal(reason_given(answer), stage, cluster, given, num_nodes, [*chosen, *kept, *script])


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The options, and the script with its own words."""
    first = next((place for place, word in enumerate(words) if not word.startswith("-")), len(words))
    return list(words[:first]), list(words[first:])


def _refusal(
    said: str, stage: str, cluster: ClusterSection, given: Sequence[str], num_nodes: int, rest: Sequence[str]
) -> str:
    """What Slurm said with where it comes from; `rest` are the words beside those of the configuration."""
    asked = [one for one in _asked(cluster, stage, num_nodes) if not one.origin.startswith("retlab's own")]
    values = {key: given_value(given, option, short) for key, (option, short, _) in _KEYS.items()}
    overruled = {key: value for key, value in values.items() if value is not None}
    asked = [one for one in asked if not any(one.word.startswith(f"{_KEYS[key][0]}=") for key in overruled)]
    suspects = [one for one in asked if re.search(one.complaints, said, flags=re.IGNORECASE)]
    if len(suspects) > 1:
        suspects = _guilty(suspects, options(cluster, stage, num_nodes), rest) or suspects
    blamed = [one.origin for one in suspects]
    for key, value in overruled.items():
        if re.search(_KEYS[key][2], said, flags=re.IGNORECASE):
            blamed.append(f"{_KEYS[key][0]}={value} after --")
    named = [word for word in given if word.startswith("-") and word.split("=")[0] in said]
    blamed += [f"{word} after --" for word in named if not any(word.split("=")[0] in one for one in blamed)]
    if not blamed:
        blamed = [one.origin for one in asked if "signal_seconds" not in one.origin]
        blamed += [f"{' '.join(given)} after --"] if given else []
    source = f"; it comes from {', '.join(blamed)}" if blamed else ""
    return f"Slurm refuses a job for {stage}: {said}{source}"


def _guilty(suspects: Sequence[_Asked], asked: Sequence[str], rest: Sequence[str]) -> list[_Asked]:
    """Those of them without any single one of which Slurm would take the job."""
    return [
        one
        for one in suspects
        if call(["sbatch", "--test-only", *(word for word in asked if word != one.word), *rest]).returncode == 0
    ]


def given_value(given: Sequence[str], option: str, short: str | None) -> str | None:
    """The last value that the user's own words give an option, in any of the ways that sbatch reads it."""
    value = None
    for word, following in zip(given, [*given, ""][1:], strict=True):
        if word in (option, short):
            value = following
        elif word.startswith(f"{option}="):
            value = word.split("=", 1)[1]
        elif short and word.startswith(short) and not word.startswith("--"):
            value = word[len(short) :]
    return value


def without(given: Sequence[str], option: str, short: str) -> list[str]:
    """The user's words for sbatch without one option and its value."""
    kept, skip = [], False
    for word in given:
        if skip:
            skip = False
        elif word in (option, short):
            skip = True
        elif not word.startswith(f"{option}=") and not (word.startswith(short) and not word.startswith("--")):
            kept.append(word)
    return kept


def cancel(ids: Sequence[int], *, waiting_alone: bool = False) -> None:
    """Take jobs out of the queue, with `waiting_alone` only what has not begun; what is over is left as it is."""
    if ids and installed("scancel"):
        with contextlib.suppress(UserError):
            call(["scancel", *(["--state=PENDING"] if waiting_alone else []), *map(str, ids)])
