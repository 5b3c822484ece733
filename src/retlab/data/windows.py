"""Windows of a split in one order of its row groups: packed or padded, cut from any place without reading the rest.

A document is a segment that starts from an end-of-text token and ends with one as its last target:

    input_ids  <eos>  a   b   c   | <eos>  d   e   | ...
    targets      a    b   c  <eos>|   d    e  <eos>| ...

So every token of a document, the first one and the closing end of text included, is a target exactly once, and the
only context that a document's first token has is the token that opens every document. Packed windows cut this stream
every `sequence_length` positions and overlap by the one token that is a target here and an input there. Padded windows
cut each document by itself and fill up its last piece.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
import torch

from retlab.data.shards import GroupTokens, Shards

Packing = Literal["packed", "padded"]
PADDING_SEGMENT = -1


class Windows(NamedTuple):
    """Windows in compact form, as they are prepared ahead."""

    tokens: np.ndarray
    "uint16 or uint32 [windows, sequence_length + 1]; what lies beyond `lengths` is arbitrary."
    opens: np.ndarray
    "bool [windows, sequence_length]: a document starts here."
    lengths: np.ndarray
    "int64 [windows]: positions that count; the rest is padding."
    documents: np.ndarray
    "int64 [windows]: number, in the order of the stream, of the document at the first position."
    ids: np.ndarray
    "int64 [windows]: number of the window in the order of the stream."

    def rows(self, start: int, stop: int) -> "Windows":
        """The windows from `start` up to `stop`."""
        return Windows(*(field[start:stop] for field in self))


@dataclass(eq=False)
class WindowStream:
    """The windows of a split when its row groups are read in a given order."""

    shards: Shards
    order: np.ndarray
    "int64 [groups]: permutation of the row groups."
    sequence_length: int
    packing: Packing
    eos_id: int
    first_position: int = 0
    "Where the first packed window starts, at most `spare_positions` behind the beginning."

    def __post_init__(self) -> None:
        targets = self.shards.targets[self.order]
        sizes = targets if self.packing == "packed" else self.shards.pieces[self.order]
        # Positions (packed) or windows (padded) before each row group, and documents before it.
        self._bounds = np.concatenate([[0], np.cumsum(sizes)])
        self._documents = np.concatenate([[0], np.cumsum(self.shards.documents[self.order])])
        self._last: tuple[int, GroupTokens] | None = None

    @cached_property
    def full_windows(self) -> int:
        """Windows that need nothing after the end of the stream."""
        return int(self._bounds[-1]) // (self.sequence_length if self.packing == "packed" else 1)

    @property
    def spare_positions(self) -> int:
        """Positions of the stream beyond the full windows."""
        return int(self._bounds[-1]) % self.sequence_length if self.packing == "packed" else 0

    @cached_property
    def all_windows(self) -> int:
        """Windows with the last, shorter one."""
        return -(-int(self._bounds[-1]) // (self.sequence_length if self.packing == "packed" else 1))

    def cut(self, ids: np.ndarray) -> Windows:
        """Cut the windows of these numbers (int64 [windows], near to each other), in the order given.

        Reads the row groups from the lowest to the highest number, each once.

        Raises:
            UserError: a part cannot be read.
        """
        return self._cut_packed(ids) if self.packing == "packed" else self._cut_padded(ids)

    def _group(self, place: int) -> GroupTokens:
        # The next range of windows starts in the row group in which this one ends. A local name, because the thread of
        # an abandoned iteration may still be reading.
        last = self._last
        if last is None or last[0] != place:
            last = self._last = (place, self.shards.read(int(self.order[place]), self.eos_id))
        return last[1]

    def _places(self, start: int, stop: int) -> range:
        """Places, in the order, of the row groups that hold anything of [start, stop)."""
        first = int(np.searchsorted(self._bounds, start, side="right")) - 1
        return range(first, int(np.searchsorted(self._bounds, stop, side="left")))

    def _cut_packed(self, ids: np.ndarray) -> Windows:
        length = self.sequence_length
        begin, end = self.first_position + ids * length, int(self._bounds[-1])
        start, stop = int(begin.min()), min(int(begin.max()) + length, end)
        streams: list[np.ndarray] = []
        opens: list[np.ndarray] = []
        document = 0
        # One token more than there are inputs: the last target. Behind the last document it is its end of text.
        for place in self._places(start, min(stop + 1, end)):
            group = self._group(place)
            low, high = np.clip([start, stop + 1] - self._bounds[place], 0, len(group.stream))
            before, after = np.searchsorted(group.starts, [low, high])
            if not streams:
                document = int(self._documents[place] + np.searchsorted(group.starts, low, side="right")) - 1
            opens.append(group.starts[before:after] + self._bounds[place] - start)
            streams.append(group.stream[low:high])
        filler = np.full((-(stop - start)) % length + 1, self.eos_id, dtype=streams[0].dtype)
        tokens = np.concatenate([*streams, filler])
        is_open = np.zeros(len(tokens), dtype=bool)
        is_open[np.concatenate(opens)] = True
        # Documents that start after the range's first position, up to and including each window's first position.
        documents = document + np.searchsorted(np.flatnonzero(is_open[1:]) + 1, begin - start, side="right")
        return Windows(
            np.lib.stride_tricks.sliding_window_view(tokens, length + 1)[begin - start],
            np.lib.stride_tricks.sliding_window_view(is_open, length)[begin - start],
            np.minimum(length, end - begin),
            documents,
            ids,
        )

    def _cut_padded(self, ids: np.ndarray) -> Windows:
        length = self.sequence_length
        lengths, documents = np.zeros((2, len(ids)), dtype=np.int64)
        tokens: np.ndarray | None = None
        for place in self._places(int(ids.min()), int(ids.max()) + 1):
            group = self._group(place)
            rows = np.flatnonzero((ids >= self._bounds[place]) & (ids < self._bounds[place + 1]))
            sizes = np.diff(group.starts, append=len(group.stream))
            pieces = np.concatenate([[0], np.cumsum(-(-sizes // length))])
            document = np.searchsorted(pieces, ids[rows] - self._bounds[place], side="right") - 1
            offset = (ids[rows] - self._bounds[place] - pieces[document]) * length
            lengths[rows] = np.minimum(length, sizes[document] - offset)
            documents[rows] = self._documents[place] + document
            if tokens is None:
                tokens = np.empty((len(ids), length + 1), dtype=group.stream.dtype)
            filler = np.full(length + 1, self.eos_id, dtype=group.stream.dtype)
            view = np.lib.stride_tricks.sliding_window_view(np.concatenate([group.stream, filler]), length + 1)
            tokens[rows] = view[group.starts[document] + offset]
        assert tokens is not None
        return Windows(tokens, np.zeros((len(ids), length), dtype=bool), lengths, documents, ids)


def to_batch(windows: Windows, pad_id: int, reset_at_documents: bool) -> dict[str, torch.Tensor]:
    """Widen windows to the batch that models and objectives read, B windows of T positions.

    Returns:
        `input_ids` and `targets`, int64 [B, T], where targets[:, t] is the token after input_ids[:, t];
        `segment_ids`, int64 [B, T], 0 for the window's first document, 1 for the next one (0 for all of them without
        `reset_at_documents`), -1 for padding; `loss_mask`, bool [B, T], False for padding; `sample_ids`, int64 [B].
    """
    inputs, targets = windows.tokens[:, :-1].astype(np.int64), windows.tokens[:, 1:].astype(np.int64)
    segments = document_offsets(windows) if reset_at_documents else np.zeros_like(inputs)
    mask = np.ones(inputs.shape, dtype=bool)
    if (windows.lengths < inputs.shape[1]).any():
        mask = np.arange(inputs.shape[1]) < windows.lengths[:, None]
        inputs[~mask] = targets[~mask] = pad_id
        segments[~mask] = PADDING_SEGMENT
    batch = {
        "input_ids": inputs,
        "targets": targets,
        "segment_ids": segments,
        "loss_mask": mask,
        "sample_ids": windows.ids,
    }
    return {key: torch.from_numpy(value) for key, value in batch.items()}


def document_offsets(windows: Windows) -> np.ndarray:
    """Documents that start in each window after its first position, up to each position: int64 [windows, T]."""
    offsets = np.zeros(windows.opens.shape, dtype=np.int64)
    np.cumsum(windows.opens[:, 1:], axis=1, out=offsets[:, 1:])
    return offsets
