"""The sweep's pictures: there where there are numbers, gone where there are none."""

import math
import struct
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from tests.sweep.made_trials import diverge, finish, finish_all, make_grid, trial_at

from retlab.sweep.comparison import Comparison, compare
from retlab.sweep.grid import Grid
from retlab.sweep.outcomes import read_outcomes
from retlab.sweep.plots import _over_energy, write_plots
from retlab.training.metrics import COLUMNS

ALL = ["loss_over_learning_rate.png", "loss_over_parameters.png", "loss_over_energy.png", "best_runs.png"]


def comparison(grid: Grid) -> Comparison:
    grid.folder.mkdir(parents=True, exist_ok=True)
    return compare(grid, read_outcomes(grid), {})


def write_metrics(folder: Path) -> None:
    rows = [{"step": step, "tokens": 100 * step, "loss": 8 - step / 10} for step in range(1, 21)]
    rows += [{"step": 20, "tokens": 2000, "validation_loss": 6.1}]
    lines = [",".join(str(row.get(column, "")) for column in COLUMNS) for row in rows]
    (folder / "metrics.csv").write_text("\n".join([",".join(COLUMNS), *lines]) + "\n")


def a_sweep(folder: Path, **settings: Any) -> Grid:
    grid = make_grid(folder, {"train.learning_rate": [1e-3, 3e-3, 1e-2], "model.hidden_size": [16, 32]}, **settings)
    finish_all(grid, lambda number, _architecture, seed: (4 + number / 10 + seed / 50, 4.1 + number / 10))
    for trial in grid.trials:
        write_metrics(trial.folder)
    return grid


def test_pictures_of_a_sweep(tmp_path: Path) -> None:
    grid = a_sweep(tmp_path, seeds=(0, 1, 2), architectures=("retnet", "transformer", "longnet"))
    diverge(trial_at(grid, 3, "transformer"))
    assert write_plots(comparison(grid)) == ALL
    for name in ALL:
        content = (grid.folder / name).read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n"
        assert struct.unpack(">II", content[16:24]) == (1210, 715)


def test_only_what_there_are_numbers_for(tmp_path: Path) -> None:
    grid = a_sweep(tmp_path)
    assert write_plots(comparison(grid)) == ALL
    for trial in grid.trials:
        finish(trial, energy_kwh=None)
        (trial.folder / "metrics.csv").unlink()
    # The pictures of an earlier grid are no longer those of this one.
    assert write_plots(comparison(grid)) == ALL[:2]
    assert sorted(file.name for file in grid.folder.glob("*.png")) == sorted(ALL[:2])


def test_no_learning_rate_axis_and_one_point(tmp_path: Path) -> None:
    grid = make_grid(tmp_path, axes={})
    finish_all(grid, lambda *_: (4.0, 4.0))
    assert write_plots(comparison(grid)) == ["loss_over_parameters.png", "loss_over_energy.png"]


def test_all_diverged(tmp_path: Path) -> None:
    grid = make_grid(tmp_path)
    for trial in grid.trials:
        diverge(trial)
    assert write_plots(comparison(grid)) == []


def test_what_the_learning_rate_picture_shows(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    from retlab.sweep.plots import _over_learning_rate

    grid, figure = a_sweep(tmp_path, seeds=(0, 1)), Figure()
    diverge(trial_at(grid, 3, "transformer"))
    assert _over_learning_rate(comparison(grid), figure)
    retnet, transformer = figure.axes
    assert [axes.get_title() for axes in figure.axes] == ["retnet", "transformer"]
    labels = [label.get_text() for label in transformer.get_xticklabels()]
    assert labels == ["0.001", "0.003\n1 diverged", "0.01"]
    lines = [list(line.get_ydata()) for line in retnet.get_lines() if len(line.get_ydata()) == 3]
    assert pytest.approx([4.11, 4.31, 4.51]) in lines
    # A point without a mean is a gap.
    lines = [list(line.get_ydata()) for line in transformer.get_lines() if len(line.get_ydata()) == 3]
    assert pytest.approx([4.11, math.nan, 4.51], nan_ok=True) in lines
    assert "model.hidden_size 16" in retnet.get_xlabel()


def test_curves_of_the_best_run(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    from retlab.sweep.plots import _best_runs

    grid, figure = a_sweep(tmp_path), Figure()
    assert _best_runs(comparison(grid), figure)
    drawn = figure.axes[0].get_lines()
    assert [len(line.get_xdata()) for line in drawn] == [20, 1, 20, 1]
    assert list(drawn[1].get_xdata()) == [2000.0]
    assert list(drawn[1].get_ydata()) == [6.1]
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == [
        "retnet, training",
        "retnet, point 1, validation, test 4.2000",
        "transformer, training",
        "transformer, point 1, validation, test 4.2000",
    ]


@pytest.mark.parametrize(("energy", "unit", "shown"), [(2.5, "kWh", 2.5), (2.5e-3, "Wh", 2.5), (2.5e-5, "mWh", 25.0)])
def test_energy_has_a_unit_of_few_digits_and_the_best_a_star(
    tmp_path: Path, energy: float, unit: str, shown: float
) -> None:
    grid = make_grid(tmp_path, axes={})
    finish_all(grid, lambda *_: (4.0, 4.0))
    for trial in grid.trials:
        finish(trial, energy_kwh=energy)
    figure = Figure()
    assert _over_energy(comparison(grid), figure)
    (axes,) = figure.axes
    assert axes.get_xlabel() == f"energy of a trial, {unit}"
    stars = [line for line in axes.get_lines() if line.get_marker() == "*"]
    assert [line.get_label() for line in stars] == ["retnet, best of all", "transformer, best of all"]
    assert all(list(line.get_xdata()) == [pytest.approx(shown)] for line in stars)
    # One cost is no range: the axis reaches a tenth to both sides.
    assert axes.get_xlim() == pytest.approx((0.9 * shown, 1.1 * shown))
