"""The sweep's pictures: there where there are numbers, gone where there are none."""

import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from tests.sweep.made_trials import diverge, finish, finish_all, make_grid, trial_at

from retlab.sweep.comparison import Comparison, compare
from retlab.sweep.grid import Grid
from retlab.sweep.learning_rates import over_learning_rate
from retlab.sweep.outcomes import read_outcomes
from retlab.sweep.plots import _best_runs, _over_energy, _over_parameters, write_plots
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
    grid, figure = a_sweep(tmp_path, seeds=(0, 1)), Figure()
    diverge(trial_at(grid, 3, "transformer"))
    assert over_learning_rate(comparison(grid), figure)
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


def _panels(draw: Callable[[Comparison, Any], bool], grid: Grid) -> tuple[list[Any], Any]:
    figure = Figure()
    assert draw(comparison(grid), figure)
    return figure.axes, figure


def _stars(axes: Any) -> list[tuple[float, float]]:
    lines = [line for line in axes.get_lines() if line.get_marker() == "*"]
    return [(line.get_xdata()[0], line.get_ydata()[0]) for line in lines]


def test_the_best_is_marked_also_where_it_is_the_only_point(tmp_path: Path) -> None:
    grid = make_grid(tmp_path, {"train.learning_rate": [1e-3]}, architectures=("retnet",))
    finish_all(grid, lambda *_: (4.0, 4.1))
    (axes,), figure = _panels(_over_parameters, grid)
    assert _stars(axes) == [(1001, 4.1)]
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == ["retnet, best up to here", "retnet, best: point 1, test 4.1000", "retnet, each point"]
    (axes,), _ = _panels(over_learning_rate, grid)
    assert _stars(axes) == [(1e-3, 4.0)]


def test_one_lucky_seed_is_best_in_no_picture(tmp_path: Path) -> None:
    grid = make_grid(tmp_path, seeds=(0, 1), architectures=("retnet",))
    finish_all(grid, lambda number, *_: (5.0 - number, 5.1 - number))
    lost = trial_at(grid, 2, "retnet", 1)
    (lost.folder / "result.json").unlink()
    (axes,), figure = _panels(_over_parameters, grid)
    assert _stars(axes) == [(1001, pytest.approx(4.1))]
    (up_to_here,) = [line for line in axes.get_lines() if line.get_label() == "retnet, best up to here"]
    assert list(up_to_here.get_xdata()) == [1001]
    assert "of the points with the most seeds finished" in figure.legends[0].get_title().get_text()


def test_stars_at_one_place_are_all_seen(tmp_path: Path) -> None:
    grid = make_grid(tmp_path, architectures=("retnet", "transformer", "longnet"))
    finish_all(grid, lambda *_: (4.0, 4.1))
    (axes,), _ = _panels(_over_parameters, grid)
    sizes = [line.get_markersize() for line in axes.get_lines() if line.get_marker() == "*"]
    assert sizes == sorted(set(sizes), reverse=True)
    assert len(sizes) == 3


def test_models_of_one_size_stand_side_by_side(tmp_path: Path) -> None:
    """A difference of a few parameters does not fill the picture."""
    (axes,), _ = _panels(_over_parameters, a_sweep(tmp_path))
    low, high = axes.get_xlim()
    assert low < 800
    assert high > 1300


@pytest.mark.parametrize(("kwh", "unit", "x"), [(1.2e-5, "mWh", 12), (0.034, "Wh", 34), (5.6, "kWh", 5.6)])
def test_energy_is_told_in_numbers_of_few_digits(kwh: float, unit: str, x: float, tmp_path: Path) -> None:
    grid = make_grid(tmp_path, architectures=("retnet",))
    for trial in grid.trials:
        finish(trial, energy_kwh=kwh)
    (axes,), _ = _panels(_over_energy, grid)
    assert axes.get_xlabel() == f"energy of a trial, {unit}"
    assert _stars(axes)[0][0] == pytest.approx(x)


def test_what_diverged_is_told_in_every_picture(tmp_path: Path) -> None:
    grid = a_sweep(tmp_path)
    for number in (5, 6):
        diverge(trial_at(grid, number, "retnet"))
    for point in grid.points:
        diverge(point.trials[1])
    panels, _ = _panels(over_learning_rate, grid)
    for axes, labels in zip(panels, (["0.001", "0.003", "0.01\n2 diverged"], ["0.001\n2 diverged"]), strict=True):
        shown = [label.get_text() for label in axes.get_xticklabels()]
        assert shown[: len(labels)] == labels
        low, high = axes.get_xlim()
        assert low < 1e-3
        assert high > 1e-2
    assert "no trial finished" in [text.get_text() for text in panels[1].texts]
    _, figure = _panels(_over_parameters, grid)
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "retnet, each point (2 diverged)" in texts
    assert "transformer, each point (6 diverged)" in texts


def test_a_loss_far_above_the_others_does_not_flatten_them(tmp_path: Path) -> None:
    grid = a_sweep(tmp_path)
    finish(trial_at(grid, 6, "transformer"), 300.0, 200.0)
    for draw, most in ((over_learning_rate, "300"), (_over_parameters, "200")):
        panels, _ = _panels(draw, grid)
        assert panels[0].get_ylim()[1] < 6
        assert [text.get_text() for text in panels[-1].texts] == [f"↑ 1 above, up to {most}"]


def test_a_long_name_and_the_meaning_of_bars(tmp_path: Path) -> None:
    grid = a_sweep(tmp_path, seeds=(0, 1))
    grid = Grid(grid.config.model_copy(update={"name": "a-very-long-name-" * 8}), grid.points, 0)
    panels, figure = _panels(_over_parameters, grid)
    assert max(map(len, figure.get_suptitle().splitlines())) < 90
    assert "mean of 2 seeds, bars: standard deviation" in panels[0].get_ylabel()
