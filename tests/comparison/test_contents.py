"""What the tables say of runs: trained ones, other models, and what one of them alone has."""

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from tests.comparison.made_runs import write_run

from retlab.comparison.report import Comparison, compare
from retlab.comparison.runs import read_run, read_runs
from retlab.comparison.tables import Cell
from retlab.drawing import Pen
from retlab.emissions_rows import COLUMNS, claim_row_file, write_row
from retlab.errors import UserError
from retlab.evaluation.position_plot import drawing_of


def comparison(*folders: Path) -> Comparison:
    runs = read_runs(folders)
    return compare(runs, runs[0])


def cells(found: Comparison, table: str, column: str) -> dict[str, Cell]:
    """Of each row of a table the cell of one column."""
    one = found.table(table)
    assert one is not None
    place = [title.title for title in one.columns].index(column)
    return {row.label: row.cells[place] for row in one.rows}


def change(folder: Path, key: str, value: Any) -> Path:
    """Give results.json another value."""
    results = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps({**results, key: value}))
    return folder


def test_another_model_is_not_what_the_experiment_beside_it_is(tmp_path: Path) -> None:
    model = {"architecture": "retnet", "hidden_size": 64}
    mine = write_run(tmp_path / "mine", model=model, data={"source": "here"})
    llama = write_run(tmp_path / "llama", model=model, data={"source": "here"}, evaluate={"model": "tiny/llama"})
    for file in (llama / "emissions").glob("train_model*"):
        file.unlink()
    found = comparison(mine, llama)
    assert found.table("configuration") is not None
    assert {label: cell.value for label, cell in cells(found, "configuration", "llama").items()} == {
        "evaluate.model": "tiny/llama"
    }
    assert {label: cell.value for label, cell in cells(found, "size", "data").items()} == {"mine": "here", "llama": ""}
    # What was not trained here has cost nothing that is known, which is not better than something.
    training = cells(found, "energy", "training")
    assert (training["mine"].value, training["llama"].value) == (0.75, None)
    assert not any(cell.mark for cell in training.values())
    assert cells(found, "energy", "evaluation")["llama"].value == 0.125
    assert cells(found, "summary", "energy")["llama"].value is None


def test_how_a_run_was_measured_is_no_difference_of_the_run(tmp_path: Path) -> None:
    first = write_run(tmp_path / "a", model={"chunk_size": 1}, evaluate={"batch_size": 1}, generate={"seed": 1})
    second = write_run(tmp_path / "b", model={"chunk_size": 2}, evaluate={"batch_size": 2}, generate={"seed": 2})
    assert list(cells(comparison(first, second), "configuration", "b")) == ["model.chunk_size"]


def test_energy_is_better_where_the_same_was_done(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name) for name in ("a", "b")]
    # Only the first made the data that both use.
    file, attempt = claim_row_file(runs[0], "split_data")
    row: dict[str, Any] = dict.fromkeys(COLUMNS, "") | {"stage": "split_data", "attempt": attempt, "status": "complete"}
    write_row(file, row | {"energy_kwh": 4.0, "emissions_kg_co2e": 1.0, "duration_seconds": 60.0})
    found = comparison(*runs)
    assert cells(found, "energy", "other stages")["a"].value == 4
    assert {name: cell.value for name, cell in cells(found, "energy", "all").items()} == {"a": 4.875, "b": 0.875}
    assert not any(cell.mark for cell in cells(found, "energy", "all").values())
    assert {name: cell.value for name, cell in cells(found, "summary", "energy").items() if cell.value} == {
        "a": 0.75,
        "b": 0.75,
    }


def test_the_numbers_of_the_notes_are_in_a_table(tmp_path: Path) -> None:
    found = comparison(write_run(tmp_path / "a"))
    for column, value in (("documents", 40), ("text", 4000), ("with ends", 1000), ("window", 256)):
        assert cells(found, "test text", column)["a"].value == value


def test_scores_of_other_questions_are_not_better(tmp_path: Path) -> None:
    row = {"task": "choice", "metric": "acc", "filter": "none", "shots": 0, "value": 0.5, "samples": 40, "version": 1}
    first = change(write_run(tmp_path / "a"), "tasks", [row])
    limited = change(write_run(tmp_path / "b"), "tasks", [row | {"value": 0.9, "samples": 10}])
    newer = change(write_run(tmp_path / "c"), "tasks", [row | {"value": 0.9, "version": 2}])
    alike = change(write_run(tmp_path / "d"), "tasks", [row | {"value": 0.9}])
    for other, told in ((limited, "b 10 of version 1"), (newer, "c 40 of version 2")):
        table = comparison(first, other).table("tasks")
        assert table is not None
        assert not any(cell.mark for cell in table.rows[0].cells)
        assert table.notes[1].endswith(f"not the same questions, so none is marked: a 40 of version 1, {told}.")
    table = comparison(first, alike).table("tasks")
    assert table is not None
    assert [cell.mark for cell in table.rows[0].cells] == ["", "best"]
    assert len(table.notes) == 1


def test_scores_of_any_size_fit(tmp_path: Path) -> None:
    row = {"task": "rolling", "metric": "word_perplexity", "filter": "none", "shots": 0, "value": 65_286_001_297.4445}
    found = comparison(change(write_run(tmp_path / "a"), "tasks", [row]))
    assert cells(found, "tasks", "a")["rolling, word_perplexity, 0 shots"].text == "6.5286e+10"


def test_reference_points_are_those_of_the_baselines_text_and_tokens(tmp_path: Path) -> None:
    def labels(*folders: Path) -> set[str]:
        return set(cells(comparison(*folders), "summary", "test loss"))

    bare = write_run(tmp_path / "bare")
    results = json.loads((bare / "results.json").read_text())
    results.pop("reference_points")
    (bare / "results.json").write_text(json.dumps(results))
    other, tokens = write_run(tmp_path / "other", text="other"), write_run(tmp_path / "tokens", tokens=20)
    assert labels(bare, other, tokens) == {"bare", "other", "tokens"}
    assert "bigram counts" in labels(bare, write_run(tmp_path / "alike"))
    assert "bigram counts" in labels(other, bare)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("model", {"parameters": "many"}),
        ("test", {"loss": 1.0}),
        ("test", 3),
        ("settings", []),
        ("tasks", [{"task": "x"}]),
        ("tasks", {"x": {"acc": 1}}),
        ("latency", [{"context": 5}]),
        ("loss_by_position", [3]),
    ],
)
def test_results_of_something_else_are_a_sentence(tmp_path: Path, part: str, value: Any) -> None:
    folder = change(write_run(tmp_path / "a"), part, value)
    with pytest.raises(UserError, match=rf"^{part} in .*results.json is not what this version of RetLab writes; run"):
        read_run(folder)


def test_columns_of_a_later_version_are_passed_over(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    rows = json.loads((folder / "results.json").read_text())["latency"]
    found = comparison(change(folder, "latency", [row | {"watts": 3} for row in rows]))
    assert "time_per_token" in {figure.name for section in found.sections for figure in section.figures}


@pytest.mark.parametrize("content", ['[{"x": 1}]', '["a"]', "3", '[{"prompt": "a", "continuation": null}]'])
def test_samples_of_something_else_are_left_out(tmp_path: Path, content: str) -> None:
    folder = write_run(tmp_path / "a")
    (folder / "evaluation" / "samples" / "samples.json").write_text(content)
    assert comparison(folder).samples == []


@pytest.mark.parametrize(
    ("windows", "text"), [([256], "window of 256 tokens"), ([64, 128, 1024], "windows of 64, 128 and 1,024 tokens")]
)
def test_windows_are_named_beside_the_plot_of_positions_and_not_on_its_curves(windows: list[int], text: str) -> None:
    canvas = Figure()
    rows = [{"first_position": 1, "last_position": 2, "loss": 3.0, "standard_error": None}]
    drawing_of({"mine": rows, "other": rows}, windows)(canvas, Pen())
    assert [entry.get_text() for entry in canvas.legends[0].get_texts()] == ["mine", "other", text]
    assert not canvas.axes[0].texts


def test_losses_of_other_tokens_or_text_are_in_no_plot(tmp_path: Path) -> None:
    folders = [
        write_run(tmp_path / "a"), write_run(tmp_path / "tokens", tokens=20),
        write_run(tmp_path / "text", text="other"), write_run(tmp_path / "d"),
    ]  # fmt: skip
    found = comparison(*folders)
    figures = {figure.name: figure for section in found.sections for figure in section.figures}
    for name in ("learning_curves", "loss_by_position"):
        assert figures[name].caption.endswith("of other tokens or of other text: tokens, text.")
        canvas = Figure()
        figures[name].draw(canvas, Pen())
        drawn = [entry.get_text() for entry in canvas.legends[0].get_texts()]
        assert drawn[:2] == ["a", "d"]
        # The colours are those that the runs have in the plots that show them all.
        assert Pen().colour(3) in {line.get_color() for line in canvas.axes[0].lines}
    table = found.table("loss by position")
    assert table is not None
    assert [column.title for column in table.columns] == ["a", "d"]
    report = json.loads((folders[1] / "model" / "manifest.json").read_text())
    report["report"]["best_validation_loss"] = 1.0
    (folders[1] / "model" / "manifest.json").write_text(json.dumps(report))
    assert "best validation loss" not in [column.title for column in comparison(*folders[:2]).table("training").columns]  # type: ignore[union-attr]
