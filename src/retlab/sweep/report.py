"""The end of a sweep as text for a terminal of 100 columns."""

import json
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from retlab.progress import counted
from retlab.section import shown_path
from retlab.sweep.comparison import UNDECIDED, Comparison, Entry, Versus, joined_methods, some_lack_seeds
from retlab.sweep.intervals import Spread
from retlab.sweep.outcomes import STATUSES

WIDTH = 99
MOST_PROBLEMS = 8
"""Lines of failed trials, of diverged ones and of invalid points."""

_GROUNDS = {
    "interval": "a 95 % interval paired over seeds",
    "one seed": "one seed alone",
    "divergence": "divergence of the other",
}
_HEADER = (
    ("best of each", ""),
    ("point", ""),
    ("parameters", ""),
    ("validation loss", "nats/token"),
    ("test loss", "nats/token"),
    ("bits per", "byte"),
    ("training", "tokens/s"),
    ("energy", "kWh"),
)


def report(comparison: Comparison, files: Sequence[str]) -> str:
    """Best of each architecture by validation, each pair of them, what failed, and where the files are."""
    parts = [_counts(comparison), _best(comparison), *_pairs(comparison), *_problems(comparison)]
    folder = shown_path(comparison.grid.folder)
    parts.append("\n".join([f"Where everything lies: {folder}/", *_wrapped("  ".join(files), "  ", "  ")]))
    return "\n\n".join(part for part in parts if part)


def _counts(comparison: Comparison) -> str:
    states = Counter(outcome.status for outcome in comparison.outcomes.values())
    numbers = ", ".join(f"{states[status]:,} {status}" for status in STATUSES if states[status])
    invalid = sum(point.problem is not None for point in comparison.grid.points)
    points = counted(len(comparison.grid.points), "point") + (f" ({invalid:,} invalid)" if invalid else "")
    text = f"{comparison.grid.config.name}: {points}, {counted(len(comparison.outcomes), 'trial')}"
    return text + (f": {numbers}" if numbers else "")


def _best(comparison: Comparison) -> str:
    best = comparison.best
    if not best:
        return ""
    lowest = min((entry.test.mean for entry in best.values() if entry.test.mean is not None), default=None)
    lines = [_cells(entry, len(best) > 1 and entry.test.mean == lowest) for entry in best.values()]
    titles = [[title for title, _ in _HEADER], [unit for _, unit in _HEADER]]
    widths = [max(map(len, column)) for column in zip(*titles, *lines, strict=True)]

    def line(cells: list[str]) -> str:
        right = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        return "  ".join([cells[0].ljust(widths[0]), *right]).rstrip()

    rule = "-" * min(WIDTH, sum(widths) + 2 * (len(widths) - 1))
    text = [*map(line, titles), rule, *map(line, lines), rule]
    among = " of the points with the most seeds finished" if some_lack_seeds(comparison) else ""
    notes = [f"Chosen by the lowest mean validation loss{among} alone."]
    if len(best) > 1:
        notes.append("* is the lower test loss.")
    if any(entry.test.deviation is not None for entry in best.values()):
        notes.append("± is the standard deviation over seeds.")
    methods = joined_methods(entry.energy_method for entry in best.values() if entry.energy.mean is not None)
    notes += [f"Energy of a trial: {methods}."] if methods else []
    text += _wrapped(" ".join(notes), "", "")
    for entry in best.values():
        text += _wrapped(f"{entry.architecture}: {_values(entry.point.values)}{_partial(entry)}", "  ", "    ")
    return "\n".join(text)


def _cells(entry: Entry, is_lowest: bool) -> list[str]:
    return [
        entry.architecture,
        str(entry.point.number),
        f"{entry.parameters:,}",
        _loss(entry.validation),
        _loss(entry.test) + (" *" if is_lowest else "  "),
        "" if entry.bits_per_byte.mean is None else f"{entry.bits_per_byte.mean:.4f}",
        "" if entry.tokens_per_second.mean is None else f"{entry.tokens_per_second.mean:,.0f}",
        "" if entry.energy.mean is None else f"{entry.energy.mean:.3g}",
    ]


def _loss(loss: Spread) -> str:
    if loss.mean is None:
        return ""
    return f"{loss.mean:.4f}" + ("" if loss.deviation is None else f" ± {loss.deviation:.4f}")


def _partial(entry: Entry) -> str:
    finished, all_of_them = entry.counts["finished"], len(entry.outcomes)
    return f" ({finished} of {counted(all_of_them, 'seed')})" if finished < all_of_them else ""


def _values(values: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items())


def _pairs(comparison: Comparison) -> Iterator[str]:
    groups: dict[tuple[str, str], list[Versus]] = {}
    for versus in comparison.pairs.values():
        groups.setdefault((versus.first, versus.second), []).append(versus)
    for (first, second), group in groups.items():
        wins = Counter(versus.better for versus in group)
        words = [f"{first} at {wins[first]:,}", f"{second} at {wins[second]:,}"]
        words += [f"undecided at {wins[UNDECIDED]:,}"] if wins[UNDECIDED] else []
        words += [f"not compared at {wins[None]:,}"] if wins[None] else []
        text = f"lower test loss: {', '.join(words)} of {counted(len(group), 'point')}{_grounds(group)}."
        lines = _wrapped(text, "  ", "  ")
        same = [versus.same_next_token for versus in group if versus.same_next_token is not None]
        far = [versus.symmetric_kl for versus in group if versus.symmetric_kl is not None]
        if same:
            lines += [
                f"  same next token: {_range(same, '.1%')} of the tokens",
                f"  symmetric KL divergence: {_range(far, '.4f')} nats per token",
            ]
        yield "\n".join([f"{first} and {second} at the same point", *lines])


def _grounds(group: list[Versus]) -> str:
    """On what the counts rest."""
    grounds = Counter(versus.decided_by for versus in group if versus.decided_by)
    words = [f"{count:,} by {_GROUNDS[ground]}" for ground, count in grounds.items()]
    return f" ({', '.join(words)})" if words else ""


def _range(values: list[float], form: str) -> str:
    low, mean, high = (format(value, form) for value in (min(values), sum(values) / len(values), max(values)))
    return mean if low == high else f"{low} to {high}, mean {mean}"


def _problems(comparison: Comparison) -> Iterator[str]:
    names: dict[str, str] = {}
    for entry in comparison.entries.values():
        for outcome in entry.outcomes:
            trial = outcome.trial
            names.setdefault(trial.id, f"point {entry.point.number}, {trial.architecture}, seed {trial.seed}")
    for status, title in (("failed", "Failed (run again with --retry-failed):"), ("diverged", "Diverged:")):
        found = [
            f"{names[name]}: {outcome.message or 'no reason was left'} ({shown_path(outcome.trial.folder)})"
            for name, outcome in comparison.outcomes.items()
            if outcome.status == status
        ]
        yield _listed(title, found)
    invalid = [f"point {point.number}: {point.problem}" for point in comparison.grid.points if point.problem]
    yield _listed("Invalid points:", invalid)


def _listed(title: str, lines: list[str]) -> str:
    if not lines:
        return ""
    shown = [part for line in lines[:MOST_PROBLEMS] for part in _wrapped(line, "  ", "    ")]
    rest = len(lines) - MOST_PROBLEMS
    return "\n".join([title, *shown, *([f"  and {rest:,} more"] if rest > 0 else [])])


def _wrapped(text: str, first: str, then: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=first, subsequent_indent=then, break_long_words=True, break_on_hyphens=False
    )
