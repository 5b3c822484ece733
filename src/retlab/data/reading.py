"""Reading what earlier stages wrote: texts in lots of bounded size, and a sentence where a file is damaged."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from retlab.errors import UserError
from retlab.section import script, shown_path


@contextmanager
def readable(path: Path, stage: str) -> Iterator[None]:
    """Turn the errors of a damaged parquet file into a sentence that names it and the stage that writes it anew."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        # Arrow reports damage without an error number; other errors are the machine's.
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UserError(
            f"{shown_path(path)} cannot be read because it is truncated or damaged; run {script(stage)}"
            " with this configuration and --force"
        ) from None


def parts_of(folder: Path) -> list[Path]:
    """The parquet parts of a folder, in order."""
    return sorted(folder.glob("part-*.parquet"))


def texts_of(path: Path, stage: str = "split_data") -> Iterator[pa.LargeStringArray]:
    """The documents of one part that a stage wrote, a row group at a time: 16 MB of text, or one longer document.

    Raises:
        UserError: the file is damaged.
    """
    with readable(path, stage):
        parquet = pq.ParquetFile(path)
        groups = parquet.num_row_groups
    for group in range(groups):
        with readable(path, stage):
            column = parquet.read_row_group(group, columns=["text"], use_threads=False)["text"]
        yield from column.chunks


def text_bytes(folder: Path) -> int:
    """About how many bytes of text a split holds, from the footers of its parts."""
    total = 0
    for path in parts_of(folder):
        with readable(path, "split_data"):
            metadata = pq.ParquetFile(path).metadata
        for group in range(metadata.num_row_groups):
            column = metadata.row_group(group).column(0)
            # Plain encoding: a length of four bytes before each text.
            total += column.total_uncompressed_size - 4 * column.num_values
    return total
