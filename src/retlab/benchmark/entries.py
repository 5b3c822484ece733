"""Who is measured, and at what: RetLab and the peers that have the same model and are installed."""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

from retlab.benchmark.peers import PEERS, Peer
from retlab.benchmark.plan import Device, Plan, Shape, Subject
from retlab.benchmark.row import DECODE, FIRST_DECODE, FORWARD, LOADER, PREFILL, RETLAB, TRAINING, Row
from retlab.errors import UserError
from retlab.models.counting import count_parameters

Kind = Literal["training", "loader", "generation"]
ROWS: dict[Kind, tuple[str, ...]] = {
    "training": (TRAINING, FORWARD),
    "loader": LOADER,
    "generation": (PREFILL, DECODE, FIRST_DECODE),
}
"""The rows that a case gives; those of `training: forward` and the first tokens are RetLab's alone."""

_NAMES = {"retnet": "RetNet", "longnet": "LongNet"}


class Case(NamedTuple):
    """One measurement to make."""

    kind: Kind
    shape: Shape


@dataclass(frozen=True)
class Entry:
    """One contestant and what is to be measured of it."""

    subject: Subject
    contestant: str
    "RETLAB, or a name in PEERS."
    mode: str
    "How training runs: eager, compiled, autocast."
    cases: tuple[Case, ...]

    @property
    def model(self) -> str:
        """Architecture and size, such as RetNet 241.7 M."""
        parameters = count_parameters(self.subject.model.to_fields(self.subject.vocab_size)).total
        name = _NAMES.get(self.subject.architecture, self.subject.architecture.capitalize())
        for unit, letter in ((1e9, "B"), (1e6, "M")):
            if parameters >= unit:
                return f"{name} {parameters / unit:.1f} {letter}"
        return f"{name} {parameters / 1e3:.1f} k"

    def implementation(self, kind: Kind) -> str:
        """The contestant as the table calls it."""
        if self.contestant == RETLAB:
            return RETLAB
        title = PEERS[self.contestant].title
        return f"{title}, {self.mode}" if kind == "training" else title

    def failed(self, case: Case, reason: str) -> list[Row]:
        """The first row of a case that gave no numbers."""
        return [Row(ROWS[case.kind][0], self.model, self.implementation(case.kind), *case.shape, remark=reason)]


def choose_kinds(asked: str | None) -> tuple[Kind, ...]:
    """The kinds of measurement that a list with commas names; all for None.

    Raises:
        UserError: a name that is none.
    """
    names = list(ROWS) if asked is None else [name.strip() for name in asked.split(",")]
    for name in names:
        if name not in ROWS:
            raise UserError(f"--measure: there is no measurement '{name}'; name some of {', '.join(ROWS)}")
    return tuple(kind for kind in ROWS if kind in names)


def make_entries(
    plan: Plan, peers: list[str], compiled: bool, kinds: tuple[Kind, ...] = tuple(ROWS)
) -> Iterator[Entry]:
    """RetLab's models, each before its peers among `peers`, and of each what is of these kinds."""
    for entry in _all_entries(plan, peers, compiled):
        cases = tuple(case for case in entry.cases if case.kind in kinds)
        if cases:
            yield replace(entry, cases=cases)


def _all_entries(plan: Plan, peers: list[str], compiled: bool) -> Iterator[Entry]:
    loader = (Case("loader", plan.training[0]),)
    for subject in plan.subjects:
        steps, contexts = subject.training, subject.generation
        training = tuple(Case("training", shape) for shape in (plan.training if steps is None else steps))
        generation = tuple(Case("generation", shape) for shape in (plan.generation if contexts is None else contexts))
        # The loader's memory would count for what comes after it.
        own = training + generation + (loader if subject is plan.subjects[0] else ())
        yield Entry(subject, RETLAB, "compiled" if compiled else "eager", own)
        for name in peers:
            peer = PEERS[name]
            if peer.architecture != subject.architecture:
                continue
            modes = [mode for mode in peer.modes if compiled or mode != "compiled"] or ["eager"]
            for mode in modes:
                # A second mode is there for the comparison at the first shape; compiling takes a minute for each.
                cases = training if mode == modes[0] else training[:1]
                cases += generation if peer.has_generate and mode == modes[-1] else ()
                yield Entry(subject, name, mode, cases)


def choose_peers(plan: Plan, device: Device, asked: str | None) -> tuple[list[str], list[str]]:
    """Names of the peers to measure, and a line for each that cannot be.

    Args:
        plan: decides which peers have the same model.
        device: where it is measured.
        asked: `all` takes those that are there; else names with commas between them, or `none`.

    Raises:
        UserError: a name that is no peer's, or a named peer that is missing or has another model.
    """
    architectures = {subject.architecture for subject in plan.subjects}
    fitting: dict[str, type[Peer]] = {name: peer for name, peer in PEERS.items() if peer.architecture in architectures}
    missing = {name: reason for name, peer in fitting.items() if (reason := peer.missing(device))}
    if asked is None:
        lines = [f"{name}: {reason}" for name, reason in missing.items()]
        if not fitting:
            lines = [f"no peer has a {architecture} model" for architecture in sorted(architectures)]
        return [name for name in fitting if name not in missing], lines
    names = [] if asked == "none" else [name.strip() for name in asked.split(",")]
    for name in names:
        if name not in PEERS:
            close = _nearest_peer(name)
            hint = f" (did you mean {close}?)" if close else ""
            raise UserError(f"--peers: there is no peer '{name}'{hint}; name some of {', '.join(PEERS)}, or none")
        if name not in fitting:
            raise UserError(f"--peers: {name} has no {' or '.join(sorted(architectures))} model; leave it out")
        if name in missing:
            raise UserError(f"--peers: {name} cannot be measured here ({missing[name]}); do that or leave it out")
    return list(dict.fromkeys(names)), []


def _nearest_peer(name: str) -> str | None:
    """The peer that a name may stand for: what is imported, the package, or something like its name."""
    known = {alias: peer.name for peer in PEERS.values() for alias in (peer.name, peer.package, peer.module)}
    close = difflib.get_close_matches(name.lower(), known, n=1)
    return known[close[0]] if close else None
