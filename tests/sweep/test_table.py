"""What a sweep's tables say, by hand-made trials: means, intervals, who is better, what failed."""

import csv
import math
import statistics
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.sweep.made_trials import diverge, fail, finish, finish_all, make_grid, trial_at

from retlab.sweep import similarity
from retlab.sweep.grid import Grid
from retlab.sweep.intervals import paired_difference, spread, student_t
from retlab.sweep.outcomes import Outcome
from retlab.sweep.report import WIDTH
from retlab.sweep.results import write_result
from retlab.sweep.similarity import Similarity
from retlab.sweep.table import write_tables

Rows = list[dict[str, str]]
LOSS = "loss_nats_per_token"


@pytest.fixture(autouse=True)
def tables_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hand-made trials have no models: every pair is alike in the same way. Pictures have tests of their own."""

    def found(
        grid: Grid, outcomes: dict[str, Outcome], _say: Any, _compares: bool
    ) -> dict[similarity.Pair, Similarity]:
        groups = similarity._groups(grid, outcomes)
        return {pair: Similarity(0.25, 0.5, 100) for group in groups for pair in similarity._pairs(group)}

    monkeypatch.setattr("retlab.sweep.table.compare_models", found)
    monkeypatch.setattr("retlab.sweep.table.write_plots", lambda _comparison: ["picture.png"])


def tables(grid: Grid) -> tuple[Rows, Rows, str]:
    """Lines of grid_search.csv and trials.csv, and what was said."""
    said: list[str] = []
    write_tables(grid, said.append)
    return read(grid.folder / "grid_search.csv"), read(grid.folder / "trials.csv"), "\n".join(said)


def read(file: Path) -> Rows:
    with open(file, newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


# The usual table: t of a two-sided 95 % interval.
@pytest.mark.parametrize(
    ("degrees", "expected"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (5, 2.5706), (9, 2.2622), (30, 2.0423), (120, 1.9799)],
)
def test_student_t_by_the_table(degrees: int, expected: float) -> None:
    assert student_t(degrees) == pytest.approx(expected, abs=5e-5)


def test_student_t_of_other_coverages_and_many_degrees() -> None:
    assert student_t(1, 0.5) == pytest.approx(1)
    assert student_t(4, 0.99) == pytest.approx(4.6041, abs=5e-5)
    assert student_t(10_000) == pytest.approx(statistics.NormalDist().inv_cdf(0.975), abs=1e-3)


@given(st.lists(st.tuples(st.floats(-10, 10), st.floats(-10, 10)), min_size=2, max_size=6))
@settings(max_examples=50, deadline=None)
def test_paired_interval(pairs: list[tuple[float, float]]) -> None:
    first, second = zip(*pairs, strict=True)
    found = paired_difference(first, second)
    differences = [one - other for one, other in pairs]
    mean = sum(differences) / len(pairs)
    error = math.sqrt(sum((one - mean) ** 2 for one in differences) / (len(pairs) - 1) / len(pairs))
    assert found is not None
    assert found.mean == pytest.approx(mean, abs=1e-9)
    assert found.high == pytest.approx(mean + student_t(len(pairs) - 1) * error, abs=1e-6)
    assert found.low == pytest.approx(2 * mean - (found.high or 0), abs=1e-9)
    back = paired_difference(second, first)
    assert back is not None
    assert (back.mean, back.low) == pytest.approx((-found.mean, -(found.high or 0)))


def test_one_value_has_no_spread() -> None:
    assert spread([2.0]).deviation is None
    assert spread([]).mean is None
    assert paired_difference([], []) is None


def test_a_row_for_every_point(tmp_path: Path) -> None:
    axes = {"train.learning_rate": [1e-3, 1e-2], "model.hidden_act": ["gelu", "silu"]}
    grid = make_grid(tmp_path, axes, seeds=(0, 3, 5), problems={4: "heads, 3, do not divide 16"})
    validation = {"retnet": [4.0, 4.2, 4.1], "transformer": [4.3, 4.6, 4.5]}

    def losses(number: int, architecture: str, seed: int) -> tuple[float, float]:
        loss = validation[architecture][(0, 3, 5).index(seed)] + number
        return loss, loss + 0.5

    finish_all(grid, losses)
    rows, _, _ = tables(grid)
    assert [row["point"] for row in rows] == ["1", "2", "3", "4"]
    assert [row["train.learning_rate"] for row in rows] == ["0.001", "0.001", "0.01", "0.01"]
    assert [row["model.hidden_act"] for row in rows] == ["gelu", "silu", "gelu", "silu"]
    row = rows[1]
    assert row["seeds"] == "0 3 5"
    assert row["problem"] == ""
    assert row["retnet_parameters"] == row["transformer_parameters"] == "1002"
    assert row["transformer_intermediate_size"] == "41"
    assert float(row[f"retnet_validation_{LOSS}_mean"]) == pytest.approx(6.1)
    assert float(row[f"retnet_validation_{LOSS}_sd"]) == pytest.approx(0.1)
    assert float(row[f"transformer_test_{LOSS}_mean"]) == pytest.approx(2.5 + statistics.fmean([4.3, 4.6, 4.5]))
    assert float(row["retnet_training_seconds_mean"]) == 2.0
    assert float(row["retnet_tokens_per_second_mean"]) == 500.0
    assert float(row["retnet_energy_kwh_mean"]) == 1e-4
    assert row["retnet_energy_method"] == "share of the host's"
    # Differences -0.3, -0.4, -0.4: mean -0.3667, deviation 0.0577, t(2) = 4.3027.
    half = 4.302653 * statistics.stdev([0.3, 0.4, 0.4]) / math.sqrt(3)
    assert float(row[f"retnet_minus_transformer_test_{LOSS}_mean"]) == pytest.approx(-1.1 / 3)
    assert float(row[f"retnet_minus_transformer_test_{LOSS}_ci95_low"]) == pytest.approx(-1.1 / 3 - half)
    assert float(row[f"retnet_minus_transformer_validation_{LOSS}_ci95_high"]) == pytest.approx(-1.1 / 3 + half)
    assert (row["retnet_vs_transformer_better"], row["retnet_vs_transformer_decided_by"]) == ("retnet", "interval")
    assert row["retnet_vs_transformer_shared_seeds"] == "3"
    assert row["retnet_vs_transformer_same_next_token_share"] == "0.25"
    assert row["retnet_vs_transformer_symmetric_kl_nats_per_token"] == "0.5"
    invalid = rows[3]
    assert invalid["problem"] == "heads, 3, do not divide 16"
    known = {"point", "train.learning_rate", "model.hidden_act", "seeds", "problem"}
    assert not any(value for key, value in invalid.items() if key not in known)


def one_point(tmp_path: Path, retnet: list[float | None], transformer: list[float | None]) -> dict[str, str]:
    """The row of one point by the test losses of each seed; None diverges, nan fails and infinity is missing."""
    grid = make_grid(tmp_path, axes={}, seeds=tuple(range(len(retnet))))
    for name, losses in (("retnet", retnet), ("transformer", transformer)):
        for seed, loss in enumerate(losses):
            trial = trial_at(grid, 1, name, seed)
            if loss is None:
                diverge(trial)
            elif math.isnan(loss):
                fail(trial)
            elif math.isfinite(loss):
                finish(trial, loss - 0.1, loss)
    return tables(grid)[0][0]


def decision(row: dict[str, str]) -> tuple[str, str, str]:
    """Who is better, by what, and over how many seeds."""
    return tuple(row[f"retnet_vs_transformer_{key}"] for key in ("better", "decided_by", "shared_seeds"))  # type: ignore[return-value]


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    row = one_point(tmp_path, [4.0], [3.9])
    assert decision(row) == ("transformer", "one seed", "1")
    assert float(row[f"retnet_minus_transformer_test_{LOSS}_mean"]) == pytest.approx(0.1)
    blank = [f"retnet_minus_transformer_test_{LOSS}_ci95_low", f"retnet_minus_transformer_test_{LOSS}_ci95_high"]
    assert [row[key] for key in [*blank, f"retnet_test_{LOSS}_sd"]] == ["", "", ""]


def test_an_interval_that_holds_0_is_undecided(tmp_path: Path) -> None:
    assert decision(one_point(tmp_path, [4.0, 4.2], [4.1, 4.25])) == ("undecided", "interval", "2")


def test_seeds_are_paired(tmp_path: Path) -> None:
    # The spread over seeds is large, that of the differences is not.
    assert decision(one_point(tmp_path, [4.0, 5.0, 6.0], [3.9, 4.9, 5.901])) == ("transformer", "interval", "3")


def test_seeds_that_one_lacks_are_left_out(tmp_path: Path) -> None:
    row = one_point(tmp_path, [4.0, 5.0, math.nan], [3.9, math.inf, 3.0])
    assert decision(row) == ("transformer", "one seed", "1")
    states = ("finished", "diverged", "failed", "missing")
    assert [row[f"retnet_trials_{state}"] for state in states] == ["2", "0", "1", "0"]
    assert [row[f"transformer_trials_{state}"] for state in states] == ["2", "0", "0", "1"]
    assert float(row[f"retnet_test_{LOSS}_mean"]) == 4.5
    assert float(row[f"transformer_test_{LOSS}_mean"]) == pytest.approx(3.45)


def test_a_diverged_seed_leaves_no_mean(tmp_path: Path) -> None:
    row = one_point(tmp_path, [4.0, None, 4.0], [5.0, 5.0, 5.0])
    assert decision(row) == ("transformer", "divergence", "2")
    assert row["retnet_trials_diverged"] == "1"
    for key in ("validation", "test"):
        assert row[f"retnet_{key}_{LOSS}_mean"] == row[f"retnet_minus_transformer_{key}_{LOSS}_mean"] == ""
    assert row["retnet_test_bits_per_byte_mean"] == row["retnet_best_by_validation"] == ""
    assert row["transformer_best_by_validation"] == "yes"
    # What the two that finished say of each other, and what they took, is known.
    assert row["retnet_vs_transformer_same_next_token_share"] == "0.25"
    assert row["retnet_training_seconds_mean"] == "2.0"


def test_two_that_diverged_are_not_compared(tmp_path: Path) -> None:
    assert decision(one_point(tmp_path, [None, 4.0], [4.0, None])) == ("", "", "0")


def test_nothing_has_run(tmp_path: Path) -> None:
    rows, trials, said = tables(make_grid(tmp_path))
    assert [row["retnet_trials_missing"] for row in rows] == ["1", "1"]
    assert decision(rows[0]) == ("", "", "0")
    assert {trial["status"] for trial in trials} == {"missing"}
    assert "4 missing" in said


def test_one_lucky_seed_does_not_compete_with_a_mean_over_all(tmp_path: Path) -> None:
    grid = make_grid(tmp_path, {"train.learning_rate": [1e-3, 1e-2]}, seeds=[0, 1])
    finish_all(grid, lambda *_: (4.0, 4.0))
    lucky, unlucky = (trial_at(grid, 1, "retnet", seed) for seed in (0, 1))
    finish(lucky, 3.0)
    (unlucky.folder / "result.json").unlink()
    fail(unlucky)
    rows, _, said = tables(grid)
    assert [row["retnet_best_by_validation"] for row in rows] == ["", "yes"]
    assert "lowest mean validation loss of the points with the most seeds finished alone." in " ".join(said.split())


def test_each_way_of_measuring_energy_is_said_once(tmp_path: Path) -> None:
    grid = make_grid(tmp_path, seeds=(0, 1))
    alone, beside = "share of the host's, one trial at a time; cpu guessed", "share of the host's, by time; cpu guessed"
    for trial in grid.trials:
        finish(trial, energy_method=beside if trial.seed == 0 else alone)
    rows, _, said = tables(grid)
    together = "share of the host's, by time; cpu guessed; share of the host's, one trial at a time"
    assert rows[0]["retnet_energy_method"] == rows[1]["transformer_energy_method"] == together
    assert " ".join(said.split()).count(f"Energy of a trial: {together}.") == 1
    assert "of the points with" not in said


def test_the_test_loss_takes_no_part_in_the_choice(tmp_path: Path) -> None:
    grid = make_grid(tmp_path, {"train.learning_rate": [1e-3, 1e-2, 1e-1]})
    losses = {1: (4.2, 3.0), 2: (4.0, 4.5), 3: (4.1, 3.5)}
    finish_all(grid, lambda number, *_: losses[number])
    rows, _, said = tables(grid)
    assert [row["retnet_best_by_validation"] for row in rows] == ["", "yes", ""]
    assert "4.5000" in said
    assert "3.0000" not in said
    assert "retnet: train.learning_rate=0.01" in said


def test_three_architectures_are_compared_in_pairs(tmp_path: Path) -> None:
    grid = make_grid(tmp_path, axes={}, architectures=("transformer", "retnet", "longnet"))
    finish_all(grid, lambda _number, architecture, _seed: (len(architecture), len(architecture)))
    row = tables(grid)[0][0]
    assert row["transformer_vs_retnet_better"] == "retnet"
    assert row["transformer_vs_longnet_better"] == "longnet"
    assert row["retnet_vs_longnet_better"] == "retnet"


def test_one_architecture_alone(tmp_path: Path) -> None:
    grid = make_grid(tmp_path, axes={}, architectures=("longnet",))
    finish_all(grid, lambda *_: (4.0, 4.0))
    rows, _, said = tables(grid)
    assert not any("_vs_" in key for key in rows[0])
    assert "longnet" in said


def test_trials_in_long_form(tmp_path: Path) -> None:
    axes: dict[str, list[Any]] = {
        "train.learning_rate": [1e-3], "data.sequence_length": [16], "data.reset_at_documents": [True],
        "model.hidden_act": ["silu"], "model.segment_lengths": [[4, 8], None],
    }  # fmt: skip
    grid = make_grid(tmp_path, axes)
    finish(trial_at(grid, 1, "retnet"), 4.0, 4.5)
    diverge(trial_at(grid, 1, "transformer"))
    fail(trial_at(grid, 2, "retnet"))
    _, trials, _ = tables(grid)
    assert [row["trial"] for row in trials] == [trial.id for trial in grid.trials]
    assert [row["status"] for row in trials] == ["finished", "diverged", "failed", "missing"]
    assert [row["message"] for row in trials] == [
        "",
        "the loss of step 7 is not finite",
        "out of memory: ran out of memory",
        "",
    ]
    assert [row["model.segment_lengths"] for row in trials] == ["[4, 8]", "[4, 8]", "", ""]
    assert trials[0][f"test_{LOSS}"] == "4.5"
    assert trials[2]["host"] == "there"

    table = pq.read_table(grid.folder / "trials.parquet")
    assert table.column_names == list(trials[0])
    types = {
        "train.learning_rate": pa.float64(), "data.sequence_length": pa.int64(), "data.reset_at_documents": pa.bool_(),
        "model.hidden_act": pa.string(), "model.segment_lengths": pa.string(), "point": pa.int64(),
        "seed": pa.int64(), "tokens": pa.int64(), f"test_{LOSS}": pa.float64(), "status": pa.string(),
        "started": pa.timestamp("us", "UTC"), "energy_kwh": pa.float64(),
    }  # fmt: skip
    for name, kind in types.items():
        assert table.schema.field(name).type == kind, name
    first = table.to_pylist()[0]
    assert first["started"].isoformat() == "2026-01-02T03:04:05+00:00"
    assert (first[f"validation_{LOSS}"], first["model.segment_lengths"]) == (4.0, "[4, 8]")
    assert table.to_pylist()[3][f"test_{LOSS}"] is None


@pytest.mark.parametrize("values", [[1, 2.5], [1, "auto"], [None, True], [[1], "a"]])
def test_axes_of_any_values(tmp_path: Path, values: list[Any]) -> None:
    tables(grid := make_grid(tmp_path, {"train.micro_batch_size": values}))
    column = pq.read_table(grid.folder / "trials.parquet")["train.micro_batch_size"].to_pylist()[::2]
    kept = values if values != [[1], "a"] and values != [1, "auto"] else [str(value) for value in values]
    assert column == kept


def test_the_tables_are_those_of_the_files(tmp_path: Path) -> None:
    grid = make_grid(tmp_path)
    finish_all(grid, lambda *_: (4.0, 4.0))
    tables(grid)
    first = {name: (grid.folder / name).read_bytes() for name in ("grid_search.csv", "trials.csv", "trials.parquet")}
    tables(grid)
    assert {name: (grid.folder / name).read_bytes() for name in first} == first
    result = finish(trial_at(grid, 1, "retnet"), 3.0, 3.25)
    assert tables(grid)[0][0][f"retnet_test_{LOSS}_mean"] == "3.25"
    # A folder that holds another trial's result has none of its own.
    write_result(trial_at(grid, 2, "retnet").folder, result)
    assert tables(grid)[0][1]["retnet_trials_missing"] == "1"
    assert not list(grid.folder.glob(".*"))


def test_the_summary(tmp_path: Path) -> None:
    axes = {"train.learning_rate": [1e-3 * (1 + number) for number in range(12)], "model.num_hidden_layers": [2]}
    grid = make_grid(tmp_path, axes, seeds=(0, 1), problems={12: "no width fits " + "the other model's size " * 9})
    finish_all(
        grid,
        lambda number, architecture, seed: (4 + number / 9 + seed / 70, 4 + number / 9 + seed / 70 + len(architecture)),
    )
    for number in range(1, 12):
        fail(trial_at(grid, number, "retnet", 1), "a very long reason " * 20)
        (trial_at(grid, number, "retnet", 1).folder / "result.json").unlink()
    diverge(trial_at(grid, 11, "transformer", 1))
    _, _, said = tables(grid)
    # A path is as long as it is.
    assert max(len(line) for line in said.splitlines() if not line.startswith("Where everything")) <= WIDTH < 100
    assert "12 points (1 invalid), 44 trials: 32 finished, 1 diverged, 11 failed" in said
    named = [line for line in said.splitlines() if line.startswith(("retnet  ", "transformer  "))]
    best = {line.split()[0]: line for line in named}
    assert "*" in best["retnet"]
    assert "*" not in best["transformer"]
    assert "4.1183 ± 0.0101" in best["transformer"]
    assert "1 of 2 seeds" in said
    text = " ".join(said.split())
    assert "lower test loss: retnet at 11, transformer at 0 of 11 points (10 by one seed alone, 1 by div" in text
    assert "Energy of a trial: share of the host's." in text
    assert "out of memory: a very long reason" in said
    assert "and 3 more" in said
    assert "--retry-failed" in said
    assert "point 11, transformer, seed 1: the loss of step 7 is not finite" in said
    assert "point 12: no width fits" in said
    assert "same next token: 25.0% of the tokens" in said
    assert "grid_search.csv  trials.csv  trials.parquet  picture.png" in said
