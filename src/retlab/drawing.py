"""Plots in light and dark, for files and for the comparison page: colours, markers, and rendering."""

import io
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

Theme = Literal["light", "dark"]
THEMES: tuple[Theme, ...] = ("light", "dark")

# Paul Tol's bright scheme, told apart by people with any colour vision, and some for more runs than it has colours; on
# dark paper lighter ones.
_COLOURS: dict[Theme, tuple[str, ...]] = {
    "light": (
        "#4477aa",
        "#ee6677",
        "#228833",
        "#b8a020",
        "#3aa0c8",
        "#aa3377",
        "#777777",
        "#884400",
        "#111111",
        "#77aa00",
        "#ff66cc",
    ),
    "dark": (
        "#77aadd",
        "#ee8866",
        "#66cc88",
        "#eedd88",
        "#99ddff",
        "#ffaabb",
        "#bbbbbb",
        "#c9a27c",
        "#ffffff",
        "#ccee55",
        "#dd88ff",
    ),
}
_INK: dict[Theme, tuple[str, str, str]] = {
    "light": ("#1f2328", "#d0d7de", "#ffffff"),
    "dark": ("#e6edf3", "#3d444d", "#0f141a"),
}
_MARKERS = "o^DsvPX"


@dataclass(frozen=True)
class Pen:
    """Colours and markers of one theme."""

    theme: Theme = "light"

    @property
    def ink(self) -> str:
        """Colour of text and of lines that belong to no run."""
        return _INK[self.theme][0]

    def colour(self, place: int) -> str:
        """Colour of a run."""
        return _COLOURS[self.theme][place % len(_COLOURS[self.theme])]

    def style(self, place: int) -> dict[str, Any]:
        """Colour and marker of a run's line."""
        return {"color": self.colour(place), "marker": marker(place), "markersize": 4.5}


def marker(place: int) -> str:
    """A marker."""
    return _MARKERS[place % len(_MARKERS)]


def shortened(text: str, length: int) -> str:
    """Text of at most so many characters, without its middle where it is longer: names differ at their ends."""
    return text if len(text) <= length else f"{text[: (length - 3) // 2]}...{text[-((length - 2) // 2) :]}"


Draw = Callable[[Any, Pen], None]
"""Draws into a figure of matplotlib."""


_LONGEST_LABEL = 80
_LETTERS_AN_INCH = 11.5
_HANDLE_INCHES, _ROW_INCHES = 0.8, 0.21


def legend_above(canvas: Any, handles: Iterable[Any], labels: Iterable[str]) -> None:
    """A legend above all plots of a figure, in as many columns as it has room for; beyond two rows the figure grows."""
    shown = [shortened(label, _LONGEST_LABEL) for label in labels]
    width, height = canvas.get_size_inches()
    room = width // (_HANDLE_INCHES + max(map(len, shown), default=0) / _LETTERS_AN_INCH)
    columns = int(max(1, min(3, len(shown), room)))
    canvas.set_figheight(height + _ROW_INCHES * max(0, math.ceil(len(shown) / columns) - 2))
    canvas.legend(list(handles), shown, loc="outside upper center", ncols=columns, frameon=False)


def label_ticks(axes: Any, values: Iterable[int]) -> None:
    """Ticks at some values of a logarithmic axis, each with its number unless that would run into the next one's."""
    ticks = sorted(set(values), reverse=True)
    inches = axes.figure.get_figwidth() / axes.get_subplotspec().get_gridspec().ncols
    letters = inches * _LETTERS_AN_INCH / (math.log(ticks[0] / ticks[-1]) or 1.0)
    labels: dict[int, str] = {}
    last = math.inf
    for tick in ticks:
        text = f"{tick:,}"
        if math.log(last / tick) * letters >= len(text) + 3:
            labels[tick], last = text, tick
    axes.set_xticks(ticks[::-1], [labels.get(tick, "") for tick in ticks[::-1]])


def render(draw: Draw, size: tuple[float, float], theme: Theme = "light", form: Literal["png", "svg"] = "png") -> bytes:
    """A picture's file; the same drawing gives the same bytes.

    Args:
        draw: draws it.
        size: width and height in inches; a PNG has 130 pixels an inch.
        theme: the paper.
        form: of the file.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ink, grid, paper = _INK[theme]
    style: dict[Any, Any] = {
        "text.color": ink, "axes.labelcolor": ink, "xtick.color": ink, "ytick.color": ink, "axes.edgecolor": grid,
        "grid.color": grid, "figure.facecolor": paper, "axes.facecolor": paper, "legend.facecolor": paper,
        "legend.edgecolor": grid, "svg.hashsalt": "retlab", "axes.spines.top": False, "axes.spines.right": False,
        "font.size": 10.5,
    }  # fmt: skip
    with matplotlib.rc_context(style):
        canvas = Figure(figsize=size, dpi=130, layout="constrained")
        FigureCanvasAgg(canvas)
        draw(canvas, Pen(theme))
        picture = io.BytesIO()
        canvas.savefig(picture, format=form, metadata={"Date": None} if form == "svg" else None)
    return picture.getvalue()
