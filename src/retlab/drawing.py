"""Plots in light and dark, for files and for the comparison page: colours, markers, and rendering."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Theme = Literal["light", "dark"]
THEMES: tuple[Theme, ...] = ("light", "dark")

# Paul Tol's bright scheme, told apart by people with any colour vision; on dark paper lighter ones.
_COLOURS: dict[Theme, tuple[str, ...]] = {
    "light": ("#4477aa", "#ee6677", "#228833", "#b8a020", "#3aa0c8", "#aa3377", "#777777"),
    "dark": ("#77aadd", "#ee8866", "#66cc88", "#eedd88", "#99ddff", "#ffaabb", "#bbbbbb"),
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


Draw = Callable[[Any, Pen], None]
"""Draws into a figure of matplotlib."""


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
