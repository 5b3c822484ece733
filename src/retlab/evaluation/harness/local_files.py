"""What a folder of task files consists of, told without lm-eval, whose import takes seconds."""

import glob
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from retlab.errors import UserError
from retlab.evaluation.settings import TasksSection
from retlab.section import portable, shown_path


class _TaskLoader(yaml.SafeLoader):
    """Reads task files without running what they name."""


_TaskLoader.add_multi_constructor("!", lambda _loader, _suffix, node: str(node.value))


def task_sources(section: TasksSection) -> dict[str, Any]:
    """What the results of tasks depend on beside the configuration and the model, as plain values.

    The version of lm-eval, and sizes and times of the files in `include_path` and of the data files that these name.

    Raises:
        UserError: lm-eval is not installed, or `include_path` is no folder.
    """
    try:
        found: dict[str, Any] = {"lm_eval": version("lm_eval")}
    except PackageNotFoundError:
        raise UserError(
            "evaluate.measure lists tasks, but lm-eval is not installed here; install it with"
            " pip install -r requirements.txt"
        ) from None
    folder = section.include_path
    if folder is None:
        return found
    if not folder.is_dir():
        raise UserError(f"evaluate.tasks.include_path: {shown_path(folder)} is no folder; name one with task files")
    files = {file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts}
    for file in sorted(folder.rglob("*.yaml")):
        files |= {data.absolute() for data in data_files(_read(file))}
    return found | {"task_files": {_name(file, folder): _state(file) for file in sorted(files)}}


def _name(file: Path, folder: Path) -> str:
    return str(file.relative_to(folder)) if file.is_relative_to(folder) else portable(file)


def _state(file: Path) -> str:
    status = file.stat()
    return f"{status.st_size:,} bytes, written {datetime.fromtimestamp(status.st_mtime_ns / 1e9, UTC).isoformat()}"


def _read(file: Path) -> dict[str, Any]:
    try:
        content = yaml.load(file.read_bytes(), _TaskLoader)
    except (yaml.YAMLError, UnicodeDecodeError):
        # What is wrong with it is said when its tasks are asked for.
        content = None
    return content if isinstance(content, dict) else {}


def data_files(config: dict[str, Any]) -> Iterator[Path]:
    """The files of this machine that a task's configuration takes its data from, as far as they are there.

    Relative paths are seen from the working directory, as the library `datasets` sees them.
    """
    keywords = config.get("dataset_kwargs") or {}
    folder = keywords.get("data_dir")
    for name in [*_texts(keywords.get("data_files")), *_texts(folder), *_texts(config.get("dataset_path"))]:
        if "://" in name:
            continue
        for path in (Path(name), Path(folder) / name if isinstance(folder, str) else Path(name)):
            found = [Path(one) for one in glob.glob(str(path), recursive=True)] if glob.has_magic(name) else [path]
            for one in found:
                if one.is_dir():
                    yield from (file for file in one.rglob("*") if file.is_file())
                elif one.is_file():
                    yield one


def _texts(value: Any) -> list[str]:
    """All strings in a value of strings, lists and mappings."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [text for entry in value for text in _texts(entry)] if isinstance(value, list) else []


def remote_data(config: dict[str, Any]) -> bool:
    """Whether a task's data come from elsewhere than this machine, as far as its configuration tells."""
    path, names = config.get("dataset_path"), _texts((config.get("dataset_kwargs") or {}).get("data_files"))
    if not isinstance(path, str) or any("://" in name for name in names):
        return True
    return path not in _FORMATS and not Path(path).exists()


_FORMATS = ("json", "parquet", "csv", "text", "arrow", "pandas", "xml", "imagefolder", "audiofolder", "webdataset")
"""Names of `dataset_path` that are file formats and no data sets of the hub."""
