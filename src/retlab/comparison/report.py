"""The comparison as a whole: what stands in which section, and what keeps numbers from being compared."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from retlab.comparison import contents, measured
from retlab.comparison.figures import Figure, figures
from retlab.comparison.runs import Run
from retlab.comparison.tables import Table
from retlab.yaml_file import shown


@dataclass(frozen=True)
class Section:
    """A part of the page."""

    title: str
    tables: list[Table] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    hidden: list[Table] = field(default_factory=list)
    "Tables that are opened by hand, or stand in the CSV alone."
    notes: list[str] = field(default_factory=list)

    @property
    def slug(self) -> str:
        """Its anchor."""
        return self.title.lower().replace(" ", "-").replace(",", "")


@dataclass(frozen=True)
class Comparison:
    """Runs side by side."""

    runs: list[Run]
    baseline: Run
    sections: list[Section]
    curves: list[Table]
    "Learning curves, which are plots on the page and numbers in the CSV."
    samples: list[tuple[str, list[tuple[str, str | None]]]]

    def tables(self) -> list[Table]:
        """All tables, in the order of the page."""
        return [table for section in self.sections for table in (*section.tables, *section.hidden)] + self.curves

    def table(self, name: str) -> Table | None:
        """A table by its name."""
        return next((table for table in self.tables() if table.name == name), None)


def compare(runs: list[Run], baseline: Run) -> Comparison:
    """Put runs beside the baseline, which is one of them."""
    alike = [run for run in runs if contents.loses_alike(run, baseline)]
    plots = {figure.name: figure for figure in figures(runs, alike)}

    def drawn(*names: str) -> list[Figure]:
        return [plots[name] for name in names if name in plots]

    differences = contents.differences(runs, baseline)
    sections = [
        Section(
            "Summary",
            [contents.summary(runs, baseline)],
            hidden=_there(contents.test_text(runs)),
            notes=list(test_notes(runs, baseline)),
        ),
        Section(
            "Difference from the baseline",
            _there(contents.difference_table(differences, baseline)),
            notes=list(_unpaired(runs, baseline, differences)),
        ),
        Section("What the runs are", [contents.sizes(runs), *_there(contents.configuration(runs, baseline))]),
        Section("Training", _there(contents.training(runs, baseline)), drawn("learning_curves")),
        Section("Loss by position", figures=drawn("loss_by_position"), hidden=_there(measured.position_table(alike))),
        Section("Tasks", _there(measured.task_table(runs))),
        Section("Latency and memory", _there(measured.latency_table(runs)), drawn("time_per_token", "memory")),
        Section("Energy and emissions", _there(contents.energy(runs))),
        Section("Environment", [contents.environment(runs, baseline)]),
    ]
    kept = [one for one in sections if one.tables or one.figures or one.hidden]
    return Comparison(runs, baseline, kept, list(measured.curve_tables(runs)), measured.samples_of(runs))


def _there(table: Table | None) -> list[Table]:
    return [] if table is None else [table]


def test_notes(runs: Sequence[Run], baseline: Run) -> Iterator[str]:
    """What the test numbers were taken on, and what keeps some of them from being compared, in sentences."""
    test = baseline.test
    if test:
        yield (
            f"Loss and bits per byte: {test['documents']:,} test documents, {test['bytes']:,} bytes,"
            f" {test['tokens']:,} tokens with each end of text."
        )
    else:
        yield f"{baseline.name} was not tested on text (evaluate.measure has no perplexity)."
    for run in runs:
        if run is not baseline and run.test and test:
            yield from _reservations(baseline, run)


def _reservations(baseline: Run, run: Run) -> Iterator[str]:
    if not contents.same_text(run, baseline):
        yield (
            f"{run.name} was tested on other text ({run.test['documents']:,} documents, {run.test['bytes']:,} bytes):"
            f" do not compare its loss with that of {baseline.name}."
        )
        return
    if not contents.compares_losses(run, baseline):
        yield (
            f"{run.name} has another tokenizer than {baseline.name}: compare bits per byte; its loss and perplexity,"
            " which are per token, are left out."
        )
    elif _points(run, baseline) != _points(baseline, run):
        yield (
            f"{run.name} was trained on other text: the unigram and bigram counts are those of"
            f" {next(one.name for one in (baseline, run) if 'reference_points' in one.results)}."
        )
    now, before = (one.settings.get("precision") for one in (run, baseline))
    if now and before and now != before:
        yield f"{run.name} was evaluated in {now}, {baseline.name} in {before}: their losses are rounded differently."
    for key in ("sequence_length", "packing", "reset_at_documents", "carry_state"):
        now, before = run.settings.get(key), baseline.settings.get(key)
        if now != before:
            section = "evaluate" if key == "carry_state" else "data"
            yield (
                f"{run.name} was evaluated with {section}.{key} {shown(now)}, {baseline.name} with {shown(before)}:"
                " their tokens saw other context."
            )


def _points(run: Run, other: Run) -> Any:
    return run.results.get("reference_points", other.results.get("reference_points"))


def _unpaired(runs: Sequence[Run], baseline: Run, found: dict[str, Any]) -> Iterator[str]:
    for run in runs:
        if run is baseline:
            continue
        if run.name not in found:
            yield f"{run.name}: no document's loss to pair with one of {baseline.name}."
        elif run.documents and baseline.documents:
            most = max(len(run.documents.sha256), len(baseline.documents.sha256))
            if found[run.name].documents < most:
                yield f"{run.name}: only {found[run.name].documents:,} of up to {most:,} documents are the same text."
