"""Small splits for tests, written as the split stage writes them."""

from collections.abc import Sequence
from pathlib import Path

from retlab.data.documents import DocumentFile, as_texts, part_name


def write_split(folder: Path, parts: Sequence[Sequence[str]]) -> None:
    """Write one part for each list of documents."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, documents in enumerate(parts):
        with DocumentFile(folder / part_name(number)) as file:
            file.write(as_texts([text.encode() for text in documents]))
