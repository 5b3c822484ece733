"""Legends and ticks that run into nothing, whatever the names and numbers."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from retlab.drawing import THEMES, Pen, label_ticks, legend_above, render, shortened


def figure(draw: Callable[[Any, Pen], None], size: tuple[float, float] = (9.0, 4.6)) -> Any:
    """A figure after it was rendered."""
    found: list[Any] = []

    def kept(canvas: Any, pen: Pen) -> None:
        found.append(canvas)
        draw(canvas, pen)

    render(kept, size)
    FigureCanvasAgg(found[0]).draw()
    return found[0]


@pytest.mark.parametrize("runs", [1, 4, 20])
@pytest.mark.parametrize("name", ["retnet", "an-experiment-with-quite-a-long-name", "x" * 200])
def test_a_legend_fits_the_picture_and_leaves_the_plot_its_room(runs: int, name: str) -> None:
    def draw(canvas: Any, pen: Pen) -> None:
        axes = canvas.add_subplot()
        for run in range(runs):
            axes.plot([1, 2], [run, 2], label=f"{name}-{run}", **pen.style(run))
        legend_above(canvas, *axes.get_legend_handles_labels())

    canvas = figure(draw)
    width, height = canvas.get_size_inches() * canvas.dpi
    legend = canvas.legends[0].get_window_extent()
    assert legend.x0 >= 0
    assert legend.x1 <= width
    plot = canvas.axes[0].get_window_extent()
    assert plot.y1 <= legend.y0
    assert plot.height > 3 * canvas.dpi
    assert legend.y1 <= height
    names = [text.get_text() for text in canvas.legends[0].get_texts()]
    assert len(set(names)) == runs


@pytest.mark.parametrize("plots", [1, 2])
@pytest.mark.parametrize("contexts", [[256], [64, 256, 400_000, 500_000], [2**power for power in range(4, 20)]])
def test_numbers_below_an_axis_do_not_touch(plots: int, contexts: list[int]) -> None:
    def draw(canvas: Any, _: Pen) -> None:
        axes = canvas.subplots(1, plots, squeeze=False)[0][0]
        axes.plot(contexts, contexts)
        axes.set_xscale("log", base=2)
        label_ticks(axes, contexts)

    axes = figure(draw).axes[0]
    assert list(axes.get_xticks()) == contexts
    boxes = [label.get_window_extent() for label in axes.get_xticklabels() if label.get_text()]
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))
    assert axes.get_xticklabels()[-1].get_text() == f"{contexts[-1]:,}"


def test_runs_look_different() -> None:
    colours = {Pen(theme).colour(place) for theme in THEMES for place in range(11)}
    assert len(colours) == 22


def test_long_text_loses_its_middle() -> None:
    assert shortened("a-b", 3) == "a-b"
    assert shortened("beginning and end", 11) == "begi... end"
