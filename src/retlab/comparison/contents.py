"""What is compared of runs: their sizes, settings, test losses, energy and environment, as tables."""

from collections.abc import Sequence
from typing import Any

from retlab.comparison.runs import Run
from retlab.comparison.statistics import Difference, loss_difference
from retlab.comparison.tables import Cell, Column, Row, Table, mark_columns, number, significant, without_empty, words
from retlab.yaml_file import shown

_REFERENCE_NAMES = {
    "uniform": "uniform guess",
    "unigram": "unigram counts",
    "bigram": "bigram counts",
    "gzip": "gzip -9",
    "xz": "xz",
}


def summary(runs: Sequence[Run], baseline: Run) -> Table:
    """One line for each run with what matters most, and below them what needs no network to be reached."""
    columns = [
        Column("parameters"), Column("test loss", "nats/token"), Column("perplexity"), Column("bits/byte"),
        Column("training", "tokens/s"), Column("energy", "kWh"), Column("emissions", "kg CO2e"),
    ]  # fmt: skip
    rows = [
        Row(
            run.name,
            [
                number(run.results["model"].get("parameters"), ",d"),
                *_test_cells(run.test, compares_losses(run, baseline)),
                number(run.tokens_per_second, ",.0f"),
                *(_amount(run.total(key, "train_model")) for key in ("energy_kwh", "emissions_kg_co2e")),
            ],
        )
        for run in runs
    ]
    rows = _mark(rows, runs, baseline, {1: "lower", 2: "lower", 3: "lower"})
    rows = mark_columns(rows, {4: "higher", 5: "lower", 6: "lower"})
    # Those of other text or other tokens say nothing of the numbers above them.
    pointed = (run.results.get("reference_points", {}) for run in runs if run.test and loses_alike(run, baseline))
    points: dict[str, Any] = next(filter(None, pointed), {})
    references = [
        Row(_REFERENCE_NAMES.get(name, name), [Cell(), *_test_cells(numbers, True), Cell(), Cell(), Cell()], place == 0)
        for place, (name, numbers) in enumerate(points.items())
    ]
    notes = ["Energy and emissions: all attempts at the training."] if any(run.emissions for run in runs) else []
    return Table("summary", columns, [*rows, *references], notes=notes)


def _test_cells(numbers: dict[str, Any], with_loss: bool) -> list[Cell]:
    loss, perplexity = (numbers.get(key) if with_loss else None for key in ("loss", "perplexity"))
    pattern = ",.2f" if perplexity is None or perplexity < 1e6 else ".2e"
    return [number(loss, ".4f"), number(perplexity, pattern), number(numbers.get("bits_per_byte"), ".4f")]


def _amount(value: float | None) -> Cell:
    return number(value, ".5f" if value is None or value < 1 else ",.3f")


def _mark(rows: list[Row], runs: Sequence[Run], baseline: Run, better: dict[int, Any]) -> list[Row]:
    """Mark the best test numbers of the runs that were tested on the baseline's text."""
    same = [place for place, run in enumerate(runs) if same_text(run, baseline)]
    marked = mark_columns([rows[place] for place in same], better) if same else []
    found = dict(zip(same, marked, strict=True))
    return [found.get(place, row) for place, row in enumerate(rows)]


def test_text(runs: Sequence[Run]) -> Table | None:
    """The text that each run was tested on, and how it was read."""
    columns = [
        Column("documents"), Column("text", "bytes"), Column("with ends", "tokens"), Column("window", "tokens"),
        Column("packing", is_text=True), Column("documents apart", is_text=True), Column("state carried", is_text=True),
    ]  # fmt: skip
    rows = [
        Row(
            run.name,
            [
                *(number(run.test.get(key), ",d") for key in ("documents", "bytes", "tokens")),
                number(run.settings.get("sequence_length"), ",d"),
                *(words(_plain(run.settings.get(key, ""))) for key in ("packing", "reset_at_documents", "carry_state")),
            ],
        )
        for run in runs
        if run.test
    ]
    return Table("test text", columns, rows) if rows else None


def same_text(run: Run, baseline: Run) -> bool:
    """Whether two runs were tested on the same documents."""
    return bool(run.test) and run.settings.get("test_text_sha256") == baseline.settings.get("test_text_sha256")


def compares_losses(run: Run, baseline: Run) -> bool:
    """Whether a loss per token means the same: the tokenizers cut the same text into as many tokens."""
    return not same_text(run, baseline) or run.test.get("tokens") == baseline.test.get("tokens")


def loses_alike(run: Run, baseline: Run) -> bool:
    """Whether losses of a run can be drawn beside the baseline's: the same text in as many tokens."""
    return not run.test or not baseline.test or (same_text(run, baseline) and compares_losses(run, baseline))


def differences(runs: Sequence[Run], baseline: Run) -> dict[str, Difference]:
    """The paired difference of each run's test loss from the baseline's, of those that have one."""
    found = {}
    for run in runs:
        if run is not baseline and run.documents and baseline.documents:
            difference = loss_difference(run.documents, baseline.documents)
            if difference is not None:
                found[run.name] = difference
    return found


def difference_table(found: dict[str, Difference], baseline: Run) -> Table | None:
    """How much more each run loses than the baseline, with its interval."""
    if not found:
        return None
    columns = [
        Column("difference"), Column("95 % from"), Column("to"), Column("unit", is_text=True), Column("documents")
    ]  # fmt: skip
    rows = [
        Row(
            name,
            [
                number(one.mean, "+.4f"),
                number(one.low, "+.4f"),
                number(one.high, "+.4f"),
                words(one.unit),
                number(one.documents, ",d"),
            ],
        )
        for name, one in found.items()
    ]
    note = (
        f"Test loss minus that of {baseline.name}, paired by document; 95 % bootstrap interval over documents."
        " Below zero is better than it; an interval that holds zero decides nothing."
    )
    return Table("difference from the baseline", columns, rows, notes=[note])


def sizes(runs: Sequence[Run]) -> Table:
    """What each run is and what it has seen."""
    columns = [
        Column("architecture", is_text=True), Column("parameters"), Column("per trained token", "MFLOP"),
        Column("data", is_text=True), Column("steps"), Column("tokens seen"), Column("epochs"),
    ]  # fmt: skip
    return without_empty(Table("size", columns, [Row(run.name, _size_cells(run)) for run in runs]))


def _size_cells(run: Run) -> list[Cell]:
    report, model = run.trained.get("report", {}), run.results["model"]
    flops, last = report.get("flops_per_token"), run.metrics[-1] if run.metrics else {}
    return [
        words(str(model.get("architecture", ""))),
        number(model.get("parameters"), ",d"),
        significant(None if flops is None else flops / 1e6, 4),
        words(_plain(run.config.get("data.source") or "")),
        number(report.get("steps"), ",d"),
        number(report.get("tokens"), ",d"),
        significant(last.get("epoch")),
    ]


def training(runs: Sequence[Run], baseline: Run) -> Table | None:
    """What the training took; of other tokens than the baseline's the loss is left out."""
    columns = [
        Column("best validation loss", "nats/token"), Column("at step"), Column("work", "PFLOP"),
        Column("speed", "tokens/s"), Column("time in steps", "min"), Column("peak memory", "GiB"),
    ]  # fmt: skip
    cells = {run.name: _training_cells(run, compares_losses(run, baseline)) for run in runs}
    rows = mark_columns([Row(name, row) for name, row in cells.items()], {3: "higher", 4: "lower", 5: "lower"})
    table = without_empty(Table("training", columns, rows))
    return table if table.columns else None


def _training_cells(run: Run, with_loss: bool) -> list[Cell]:
    report, last = run.trained.get("report", {}), run.metrics[-1] if run.metrics else {}
    flops, tokens = report.get("flops_per_token"), report.get("tokens")
    seconds, memory = last.get("seconds"), last.get("peak_memory_bytes")
    return [
        number(report.get("best_validation_loss") if with_loss else None, ".4f"),
        number(report.get("best_step"), ",d"),
        significant(None if flops is None or tokens is None else flops * tokens / 1e15, 4),
        number(run.tokens_per_second, ",.0f"),
        number(None if seconds is None else seconds / 60, ",.1f"),
        number(None if memory is None else memory / 2**30, ".2f"),
    ]


def configuration(runs: Sequence[Run], baseline: Run) -> Table | None:
    """The keys of the resolved configurations that are not the same everywhere; what differs from the baseline."""
    keys = dict.fromkeys(key for run in runs for key in run.config if key not in ("name", "output_dir"))
    # Another model is none of RetLab's configurations: only where it comes from is known.
    trained = [run for run in runs if run.config and "evaluate.model" not in run.config]
    differing = [
        key for key in keys if key == "evaluate.model" or len({shown(run.config.get(key)) for run in trained}) > 1
    ]
    if not differing:
        return None
    rows = []
    for key in differing:
        values = [_plain(run.config[key]) if key in run.config else None for run in runs]
        rows.append(Row(key, _compared(values, runs.index(baseline))))
    return Table("configuration", [Column(run.name, is_text=True) for run in runs], rows, stub="key")


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else shown(value)


def _compared(values: Sequence[str | None], baseline: int) -> list[Cell]:
    """Cells of text, with a mark where one is not the baseline's."""
    return [Cell(one, one or "", mark="" if one == values[baseline] else "differs") for one in values]


def energy(runs: Sequence[Run]) -> Table | None:
    """Energy and emissions of all attempts of the stages of each run."""
    if not any(run.emissions for run in runs):
        return None
    columns = [
        Column("training", "kWh"), Column("evaluation", "kWh"), Column("other stages", "kWh"), Column("all", "kWh"),
        Column("emissions", "kg CO2e"), Column("measured", "min"),
    ]  # fmt: skip
    rows = [Row(run.name, _energy_cells(run)) for run in runs]
    notes = [
        "Every attempt of every stage that ran for the run; data that runs share is counted where it was made.",
        *(f"Power: {method}." for method in power_methods(runs)),
    ]
    # Of the rest, one run may have made what the other used.
    return Table("energy", columns, mark_columns(rows, {0: "lower"}), notes=notes)


def power_methods(runs: Sequence[Run]) -> list[str]:
    """How power was measured or estimated."""
    return list(dict.fromkeys(row["power_method"] for run in runs for row in run.emissions if row["power_method"]))


def _energy_cells(run: Run) -> list[Cell]:
    if not run.emissions:
        return [Cell()] * 6
    others = {row["stage"].split()[0] for row in run.emissions} - {"train_model", "evaluate_model"}
    seconds = sum(row["duration_seconds"] or 0.0 for row in run.emissions)
    return [
        significant(run.total("energy_kwh", "train_model")),
        significant(run.total("energy_kwh", "evaluate_model")),
        significant(run.total("energy_kwh", *others) if others else None),
        *(significant(run.total(key)) for key in ("energy_kwh", "emissions_kg_co2e")),
        number(seconds / 60, ",.1f"),
    ]


def environment(runs: Sequence[Run], baseline: Run) -> Table:
    """Commit, versions and hardware of each training, or of the evaluation of a model that was trained elsewhere."""
    facts = [_facts(run) for run in runs]
    place = runs.index(baseline)
    rows = [
        Row(key, _compared([one.get(key) for one in facts], place))
        for key in dict.fromkeys(key for one in facts for key in one)
    ]
    return Table("environment", [Column(run.name, is_text=True) for run in runs], rows, stub="what")


def _facts(run: Run) -> dict[str, str]:
    from retlab.artifacts import read_manifest

    measured = (read_manifest(folder) for folder in sorted((run.folder / "evaluation").glob("*")))
    manifest = run.trained or next(filter(None, measured), {})
    last = next((row for row in reversed(run.emissions) if row["stage"] == "train_model"), None)
    last = last or (run.emissions[-1] if run.emissions else {})
    found = {
        "commit": (manifest.get("commit") or "")[:12],
        "CPU": last.get("cpu_model") or "",
        "GPU": last.get("gpu_model") or "",
        "CPU threads": str(manifest.get("threads", "")),
        "evaluated on": " ".join(str(run.settings.get(key, "")) for key in ("device", "precision")).strip(),
        **manifest.get("versions", {}),
    }
    return {key: value for key, value in found.items() if value}
