"""`evaluate.model`: a model that RetLab did not train here, from a folder or the hub."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retlab.data.hub import hub_sentences
from retlab.errors import UserError
from retlab.section import absolute, shown_path

_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
"""What is fetched of a hub model: no weights in formats that can run code, and no code."""
AGAIN = "name a whole model folder, or a hub name, in evaluate.model"


@dataclass(frozen=True)
class OtherModel:
    """Where a model lies, and what tells it from others."""

    name: str
    "What its results are called: letters, digits, dots, dashes and underscores."
    folder: Path
    identity: dict[str, Any]
    "The hub's commit, or the files' sizes and times."


def find_other_model(source: str) -> OtherModel:
    """Find a model folder, or fetch a hub model into the hub's cache.

    Raises:
        UserError: there is none, it cannot be reached, or it has no weights in safetensors or no fast tokenizer.
    """
    folder = absolute(source)
    if folder.is_dir():
        # The folder of a trained model is called after its run.
        name = folder.parent.name if folder.name == "model" else folder.name
        states = {file.name: file.stat() for file in sorted(folder.iterdir()) if file.is_file()}
        identity = {"folder": str(folder), **{one: [state.st_size, state.st_mtime_ns] for one, state in states.items()}}
    elif source.count("/") > 1 or source.startswith((".", "/", "~")):
        raise UserError(f"evaluate.model: there is no folder {shown_path(folder)}; {AGAIN}")
    else:
        folder = _fetch(source)
        name, identity = source.split("/")[-1], {"hub": source, "commit": folder.name}
    for file, what in (("config.json", "model"), ("tokenizer.json", "fast tokenizer")):
        if not (folder / file).is_file():
            # What a user has in mind is often the run.
            inside = shown_path(folder / "model") if (folder / "model" / "config.json").is_file() else None
            raise UserError(
                f"evaluate.model: {source} holds no {what} ({file}); "
                + (f"that of this run lies in {inside}" if inside else AGAIN)
            )
    if not any(folder.glob("*.safetensors")):
        raise UserError(f"evaluate.model: {source} holds no weights (*.safetensors); {AGAIN}")
    plain = "".join(char if char.isascii() and (char.isalnum() or char in "._-") else "-" for char in name)
    return OtherModel(plain.lstrip("._-") or "model", folder, identity)


def _fetch(name: str) -> Path:
    from huggingface_hub import snapshot_download

    with hub_sentences(f"evaluate.model: {name}", name, "model"):
        return Path(snapshot_download(name, allow_patterns=list(_FILES)))
