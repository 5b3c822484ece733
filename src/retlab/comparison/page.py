"""The comparison as one HTML file without anything from outside, and the folder around it."""

import base64
import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from retlab import provenance
from retlab.artifacts import sync_folder, write_atomic
from retlab.comparison.figures import Figure
from retlab.comparison.report import Comparison
from retlab.comparison.writing import plain, to_csv, to_markdown
from retlab.drawing import THEMES, render
from retlab.errors import UserError
from retlab.progress import visible
from retlab.section import shown_path

if TYPE_CHECKING:
    from markupsafe import Markup

PAGE, TABLE, MARKDOWN = "index.html", "comparison.csv", "comparison.md"


def write_page(comparison: Comparison, folder: Path) -> list[Path]:
    """Write the page, the CSV, the Markdown and the plots into a folder; returns the files.

    Files of an earlier comparison are replaced; nothing else in the folder is touched.

    Raises:
        UserError: it is no folder, or holds something of another kind and no comparison.
    """
    refuse_foreign(folder)
    # The table comes first, by which a folder is known as a comparison's, also one that a kill left unfinished.
    contents = {TABLE: to_csv(comparison.tables()).encode()}
    pictures: dict[str, dict[str, str]] = {}
    for figure in (figure for section in comparison.sections for figure in section.figures):
        contents[f"{figure.name}.png"] = render(figure.draw, figure.size)
        pictures[figure.name] = {theme: _embedded(render(figure.draw, figure.size, theme, "svg")) for theme in THEMES}
    contents[MARKDOWN] = markdown(comparison).encode()
    # The page comes last: where it is, the rest is.
    contents[PAGE] = html(comparison, pictures).encode()
    folder.mkdir(parents=True, exist_ok=True)
    for name in _PICTURES - contents.keys():
        (folder / name).unlink(missing_ok=True)
    for name, content in contents.items():
        write_atomic(folder / name, content)
    sync_folder(folder)
    return [folder / name for name in contents]


_PICTURES = {"learning_curves.png", "loss_by_position.png", "time_per_token.png", "memory.png"}


def refuse_foreign(folder: Path) -> None:
    """Raise a UserError unless a comparison can be written into the folder."""
    if folder.suffix in (".html", ".htm", ".csv", ".md", ".png"):
        raise UserError(
            f"command line: --output {shown_path(folder)} names a file; name a folder, in which the page is {PAGE}"
        )
    if folder.exists() and not folder.is_dir():
        raise UserError(f"command line: --output {shown_path(folder)} is a file; name a folder")
    # A kill in the first write leaves the beginning of the table under this name.
    known = {TABLE, f".{TABLE}.partial"}
    names = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    if names and not names & known:
        raise UserError(f"command line: --output {shown_path(folder)} holds other files; name a new or empty folder")


def title(comparison: Comparison) -> str:
    """Names of the runs, as far as a title holds them."""
    names = [run.name for run in comparison.runs]
    if len(names) == 1:
        return names[0]
    more = f" and {len(names) - 3} more" if len(names) > 4 else ""
    return " vs ".join(names[:3] if more else names) + more


def html(comparison: Comparison, pictures: dict[str, dict[str, str]]) -> str:
    """The page; `pictures` are the plots as data addresses, by name and theme."""
    from jinja2 import Environment, StrictUndefined

    here = files("retlab.comparison")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = environment.from_string((here / "page.html.jinja").read_text(encoding="utf-8"))
    return template.render(
        title=title(comparison),
        css=(here / "page.css").read_text(encoding="utf-8"),
        baseline=comparison.baseline.name,
        sections=comparison.sections,
        samples=comparison.samples,
        pictures=pictures,
        plain=plain,
        visible=visible,
        quoted=repr,
        breakable=breakable,
        alternative=_alternative(comparison),
        commit=provenance.commit(),
        folders=[shown_path(run.folder) for run in comparison.runs],
    )


def markdown(comparison: Comparison) -> str:
    """The same as Markdown, with the plots that lie beside it."""
    parts = [f"# {title(comparison)}"]
    for section in comparison.sections:
        parts.append(f"## {section.title}")
        parts += [to_markdown(table) for table in section.tables]
        parts += section.notes
        parts += [f"![{figure.title}]({figure.name}.png)\n\n{figure.caption}" for figure in section.figures]
    if comparison.samples:
        parts.append("## Samples")
    for prompt, texts in comparison.samples:
        for name, text in texts:
            written = "wrote nothing after this prompt" if text is None else _fenced(visible(prompt + text))
            parts.append(f"**{name}**\n\n{written}")
    return "\n\n".join(parts) + "\n"


def breakable(text: str) -> "Markup":
    """Text in which a line may break behind the signs that join its words."""
    from markupsafe import Markup, escape

    return Markup("<wbr>").join(escape(part) for part in re.split(r"(?<=[._:/])", text))


def _fenced(text: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}text\n{text}\n{fence}"


def _embedded(svg: bytes) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg).decode()


def _alternative(comparison: Comparison) -> Callable[[Figure], str]:
    names = ", ".join(run.name for run in comparison.runs)
    return lambda figure: f"{names}. {figure.caption}"
