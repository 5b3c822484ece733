"""Submitting jobs: what sbatch is asked for, and what its refusals mean in the configuration."""

import contextlib
import re
import subprocess
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
    "nodes": ("--nodes", "-N", r"node count|node configuration|\bnodes\b|processors"),
}
# Who asks, and where: it stays when others are left out to see what Slurm takes.
_PLACES = ("partition", "account", "qos")


@dataclass(frozen=True)
class _Asked:
    """One thing that a job asks for."""

    words: tuple[str, ...]
    "As sbatch reads it."
    origin: str
    "As people know it: a key of the configuration with its value, or a word after --."
    complaints: str
    "Pattern of what Slurm says when it is wrong."
    key: str = ""
    "Which of the keys it is, if one."
    own: bool = False
    "Whether this program asks for it, and no user."


def options(cluster: ClusterSection, stage: str, num_nodes: int = 1) -> list[str]:
    """The words for sbatch that the configuration asks for, such as --partition=main.

    Args:
        cluster: the section of the configuration.
        stage: whose job it is; `cluster.stages` may hold other values for it.
        num_nodes: nodes of a training where `cluster.nodes` says nothing.
    """
    return [word for asked in _asked(cluster, stage, num_nodes) for word in asked.words]


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
            yield _Asked((f"{option}={value}",), f"{origin}: {value}", complaints, key)
    for word in (f"--signal=B:USR1@{cluster.signal_seconds}", "--requeue", "--open-mode=append", "--ntasks-per-node=1"):
        yield _Asked((word,), "", "", own=True)


def _given(given: Sequence[str]) -> Iterator[_Asked]:
    """The user's own words, each with its value."""
    groups: list[list[str]] = []
    for word in given:
        if word.startswith("-") or not groups:
            groups.append([])
        groups[-1].append(word)
    for words in groups:
        for key, (option, short, complaints) in _KEYS.items():
            value = given_value(words, option, short)
            if value is not None:
                yield _Asked(tuple(words), f"{option}={value} after --", complaints, key)
                break
        else:
            # Such as --gres=gpu:9, which no node has.
            complaints = f"{re.escape(words[0].split('=')[0])}|node configuration"
            yield _Asked(tuple(words), f"{' '.join(words)} after --", complaints)


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
        said = reason_given(answer)
        raise UserError(_refusal(said, stage, _culprits(said, words, stage, cluster, given, num_nodes)))
    number = answer.stdout.split(";")[0].strip()
    if not number.isdigit():
        said = " ".join((answer.stdout + answer.stderr).split())
        raise UserError(f"sbatch submitted no job for {stage}: {said}")
    return int(number)


def unstartable(
    words: Sequence[str], *, stage: str, cluster: ClusterSection, given: Sequence[str] = (), num_nodes: int = 1
) -> tuple[str, list[str]] | None:
    """What Slurm says against such a job ever starting, and what it asks for that is to blame.

    None where Slurm says nothing. For jobs that wait for others: of those the queue itself tells no other reason.
    """
    answer = _tested(words, [*options(cluster, stage, num_nodes), *given])
    if answer.returncode == 0:
        return None
    said = reason_given(answer)
    if re.search(r"submit limit", said, flags=re.IGNORECASE):
        # One job more would be too many; those that wait were taken already.
        return None
    culprits = _culprits(said, words, stage, cluster, given, num_nodes)
    return _refusal(said, stage, culprits), culprits


def _tested(words: Sequence[str], asked: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """What Slurm would say to a job now, if it had not to wait for others."""
    chosen, script = _split(words)
    free = without([*chosen, *asked], "--dependency", "-d")
    return call(["sbatch", "--test-only", *free, *script])


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The options, and the script with its own words."""
    first = next((place for place, word in enumerate(words) if not word.startswith("-")), len(words))
    return list(words[:first]), list(words[first:])


def _refusal(said: str, stage: str, culprits: Sequence[str]) -> str:
    source = f"; it comes from {', '.join(culprits)}" if culprits else ""
    return f"Slurm refuses a job for {stage}: {said}{source}"


def _culprits(
    said: str, words: Sequence[str], stage: str, cluster: ClusterSection, given: Sequence[str], num_nodes: int
) -> list[str]:
    """What the words of Slurm are about, as people know it.

    Where they fit several things, Slurm is asked which of them it would take.
    """
    after = list(_given(given))
    overruled = {asked.key for asked in after if asked.key}
    all_asked = [*(one for one in _asked(cluster, stage, num_nodes) if one.key not in overruled), *after]
    users = [one for one in all_asked if not one.own]
    suspects = [one for one in users if re.search(one.complaints, said, flags=re.IGNORECASE)] or users
    if len(suspects) > 1:
        suspects = _tried(words, all_asked, suspects)
    return [one.origin for one in suspects]


def _tried(words: Sequence[str], all_asked: Sequence[_Asked], suspects: Sequence[_Asked]) -> list[_Asked]:
    """Those of the suspects without which Slurm would take the job; all where that tells nothing."""
    amounts = [one for one in suspects if one.key not in _PLACES]

    def takes(left_out: Sequence[_Asked]) -> bool:
        asked = [word for one in all_asked if one not in left_out for word in one.words]
        return _tested(words, asked).returncode == 0

    if not takes(amounts):
        return [one for one in suspects if one.key in _PLACES] or list(suspects)
    alone = [one for one in amounts if not takes([other for other in amounts if other != one])]
    return alone or [one for one in amounts if takes([one])] or list(suspects)


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
