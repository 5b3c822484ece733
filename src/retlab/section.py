"""Base of every configuration section: frozen, an unknown key is an error, paths belong to the project."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, PlainSerializer, WithJsonSchema


def _project_root() -> Path:
    checkout = Path(__file__).resolve().parents[2]
    return checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()


PROJECT_ROOT = _project_root()
"""The checkout that this package was imported from; the working directory for an installed package."""


def absolute(path: Path | str) -> Path:
    """A path of a configuration as an absolute path: relative ones start at the project's root, `~` is home."""
    return PROJECT_ROOT / Path(path).expanduser()


def portable(path: Path) -> str:
    """The path as a configuration shows it: relative to the project's root where it lies inside it."""
    return str(path.relative_to(PROJECT_ROOT)) if path.is_relative_to(PROJECT_ROOT) else str(path)


def shown_path(path: Path) -> str:
    """The path as people find it from where they are: relative to the working directory where it lies inside it."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


SCRIPTS = {
    "download_data": "01_download_data.sh",
    "split_data": "02_split_data.sh",
    "train_tokenizer": "03_train_tokenizer.sh",
    "tokenize_data": "04_tokenize_data.sh",
    "train_model": "05_train_model.sh",
    "evaluate_model": "06_evaluate_model.sh",
    "grid_search": "07_grid_search.sh",
}
"""The script of each stage, in the order of the stages."""


def script(stage: str) -> str:
    """How to run a stage, for messages."""
    return f"bash {shown_path(PROJECT_ROOT / 'scripts' / SCRIPTS[stage])}"


def _not_empty(path: Any) -> Any:
    if path == "":
        raise ValueError("must be a path; write . for the folder of the project itself")
    return path


ProjectPath = Annotated[
    Path,
    BeforeValidator(_not_empty),
    AfterValidator(absolute),
    PlainSerializer(portable, return_type=str),
    WithJsonSchema({"type": "string", "format": "path"}),
]
"""A path in a configuration: absolute in memory, relative to the project's root in files."""


class Section(BaseModel):
    """One section of the YAML file. Every field carries its description; defaults live here and nowhere else."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True, allow_inf_nan=False
    )

    def dump(self) -> dict[str, Any]:
        """The section as plain values, as a resolved configuration and a manifest hold it."""
        return self.model_dump(mode="json")
