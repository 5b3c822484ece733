"""Batches from token shards: shuffled for training with an exact position, in file order for measuring."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from retlab.data.settings import DataSection
from retlab.data.shards import open_shards
from retlab.data.windows import Windows, WindowStream, document_offsets, to_batch
from retlab.errors import UserError

Batch = dict[str, Any]

# Tokens whose windows are shuffled together: several row groups, a few tens of megabytes.
MIX_TOKENS = 2**23


class TokenLoader:
    """Endless micro-batches of the train split, shuffled anew in every epoch, from an exact position.

    An epoch reads the row groups in an order drawn from (seed, epoch), cuts that stream into windows, and shuffles the
    windows of `mix_tokens` tokens at a time, a whole number of global batches. What step s holds depends on the data, the
    seed and the global batch size alone: not on the number of ranks, worker processes or micro-batches, which only share
    it out. Micro-batch m of rank r is the r-th slice of the m-th part of the global batch. Windows beyond the last full
    global batch are left out of that epoch (`tail_windows`); another order leaves out others.

    Each `iter()` goes on at `step`, the number of global batches handed out so far. A batch is that of
    `windows.to_batch`, on the CPU, and `step` (int), the global batch that it belongs to, counted from 0 over all epochs.
    Every process decodes the row groups that its ranks share, at tens of millions of tokens a second.
    """

    def __init__(
        self,
        section: DataSection,
        folder: Path,
        *,
        global_batch_size: int,
        micro_batch_size: int,
        seed: int,
        eos_id: int,
        pad_id: int,
        rank: int = 0,
        world_size: int = 1,
        mix_tokens: int = MIX_TOKENS,
    ) -> None:
        """Count the shards of a split.

        Args:
            section: sequence_length, packing, reset_at_documents and loader_workers are read.
            folder: token shards of one split.
            global_batch_size: windows of one optimizer step, over all ranks and micro-batches.
            micro_batch_size: windows of one batch; times world_size it divides the global batch size.

        Raises:
            UserError: no readable shards, or less than one window or global batch in them.
        """
        assert global_batch_size % (micro_batch_size * world_size) == 0
        self.micro_batches = global_batch_size // (micro_batch_size * world_size)
        self.micro_batch_size, self.workers = micro_batch_size, section.loader_workers
        self.pad_id, self.reset_at_documents = pad_id, section.reset_at_documents
        self._blocks = _TrainBlocks(
            section, folder, global_batch_size, micro_batch_size, seed, eos_id, rank, world_size, mix_tokens
        )
        self.windows_per_epoch: int = self._blocks.windows
        self.steps_per_epoch: int = self._blocks.steps
        self.tail_windows: int = self.windows_per_epoch - self.steps_per_epoch * global_batch_size
        self.step = 0

    def seek(self, step: int) -> None:
        """Let the next `iter()` start with global batch `step`; reads nothing."""
        self.step = step

    def state_dict(self) -> dict[str, int]:
        """Position after the last complete global batch that was handed out, and what it was counted in."""
        return {"step": self.step, **self._blocks.unit}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a saved position.

        Raises:
            UserError: it was counted with other data, seed, window or batch size, so the batches would be others.
        """
        for key, value in self._blocks.unit.items():
            if state[key] != value:
                raise UserError(
                    f"the saved position in the training data was counted with {key} {state[key]}, now it is {value};"
                    " restore the old value or start the training anew"
                )
        self.seek(state["step"])

    def __iter__(self) -> Iterator[Batch]:
        block, skipped = self._blocks.locate(self.step)
        for windows in _ahead(self._blocks, block, self.workers):
            rows = self.micro_batches * self.micro_batch_size
            for start in range(skipped * rows, len(windows.ids), self.micro_batch_size):
                part = windows[start : start + self.micro_batch_size]
                batch: Batch = to_batch(part, self.pad_id, self.reset_at_documents)
                batch["step"] = self.step
                # The last micro-batch completes its step: whoever holds it and saves the position goes on behind it.
                self.step += (start + self.micro_batch_size) % rows == 0
                yield batch
            skipped = 0


class SequentialLoader:
    """All windows of a split once, in file order, the last shorter one included: for validation and test.

    Each `iter()` starts from the beginning. Every rank gets the same number of batches, `len(loader)`; where the last
    one has fewer windows than there are ranks, a rank without any gets a window whose loss mask is False throughout.
    A batch is that of `windows.to_batch` and `document_ids`, int64 [B, T]: the number of the document, in file order,
    that the target belongs to, -1 for padding. Batches are the same whatever their size: it changes no window.
    """

    def __init__(
        self,
        section: DataSection,
        folder: Path,
        *,
        batch_size: int,
        eos_id: int,
        pad_id: int,
        rank: int = 0,
        world_size: int = 1,
        mix_tokens: int = MIX_TOKENS,
    ) -> None:
        """Count the shards of a split; `batch_size` is that of one rank.

        Raises:
            UserError: no readable shards or no documents in them.
        """
        self.pad_id, self.reset_at_documents = pad_id, section.reset_at_documents
        self._blocks = _SequentialBlocks(section, folder, batch_size, eos_id, rank, world_size, mix_tokens)
        self.windows: int = self._blocks.windows
        self.targets: int = self._blocks.targets
        "Predicted tokens of the split: its tokens and one end of text for each document."
        self.documents: int = self._blocks.documents

    def __len__(self) -> int:
        return len(self._blocks.batches)

    def __iter__(self) -> Iterator[Batch]:
        blocks = self._blocks
        done = 0
        for windows in _ahead(blocks, 0, workers=0):
            start = 0
            for low, high in blocks.batches[done : done + blocks.batches_per_block]:
                rows = max(high - low, 1)
                yield self._batch(windows[start : start + rows], is_filler=high == low)
                start, done = start + rows, done + 1

    def _batch(self, windows: Windows, is_filler: bool) -> Batch:
        batch: Batch = to_batch(windows, self.pad_id, self.reset_at_documents)
        documents = torch.from_numpy(np.asarray(windows.documents)[:, None] + document_offsets(windows))
        batch["document_ids"] = documents.masked_fill(~batch["loss_mask"], -1)
        if is_filler:
            batch["loss_mask"] = torch.zeros_like(batch["loss_mask"])
        return batch


class _Blocks(Dataset[Windows]):
    """Numbered lots of windows of one rank, in the order in which they are handed out."""

    def __getitem__(self, block: int) -> Windows:
        raise NotImplementedError

    def numbers(self, first: int) -> Iterator[int]:
        """The blocks that follow, `first` included."""
        raise NotImplementedError


class _TrainBlocks(_Blocks):
    """Block k of an epoch: this rank's windows of its k-th lot of global batches, in the order of their steps."""

    def __init__(
        self,
        section: DataSection,
        folder: Path,
        global_batch_size: int,
        micro_batch_size: int,
        seed: int,
        eos_id: int,
        rank: int,
        world_size: int,
        mix_tokens: int,
    ) -> None:
        self.section, self.seed, self.eos_id = section, seed, eos_id
        self.global_batch_size = global_batch_size
        self.micro_batch_size, self.rank, self.world_size = micro_batch_size, rank, world_size
        self.shards = open_shards(folder, section.sequence_length)
        self._streams: dict[int, WindowStream] = {}
        self.windows = self._stream(0).full_windows
        self.steps = self.windows // global_batch_size
        self.steps_per_block = max(1, mix_tokens // (global_batch_size * section.sequence_length))
        self.blocks = -(-self.steps // self.steps_per_block)
        if self.windows == 0:
            raise UserError(
                f"data.sequence_length {section.sequence_length} is longer than the split in {folder}, which holds"
                f" {self.shards.targets.sum()} tokens; shorten the window or get more text"
            )
        if self.steps == 0:
            raise UserError(
                f"{folder} holds {self.windows} windows of {section.sequence_length} tokens, fewer than one batch of"
                f" train.batch_size {global_batch_size}; lower the batch size or get more text"
            )

    @property
    def unit(self) -> dict[str, int]:
        """What a position is counted in: with any of these changed, step s holds other windows."""
        return {
            "seed": self.seed,
            "batch_size": self.global_batch_size,
            "sequence_length": self.section.sequence_length,
            "windows_per_epoch": self.windows,
            "steps_per_block": self.steps_per_block,
        }

    def locate(self, step: int) -> tuple[int, int]:
        """Block of a step, and how many steps of that block come before it."""
        epoch, position = divmod(step, self.steps)
        block, skipped = divmod(position, self.steps_per_block)
        return epoch * self.blocks + block, skipped

    def numbers(self, first: int) -> Iterator[int]:
        while True:
            yield first
            first += 1

    def __getitem__(self, block: int) -> Windows:
        epoch, number = divmod(block, self.blocks)
        first = number * self.steps_per_block
        steps = min(self.steps_per_block, self.steps - first)
        size = self.global_batch_size
        order = _random(self.seed, epoch, 1 + number).permutation(steps * size) + first * size
        shares = order.reshape(-1, self.world_size, self.micro_batch_size)
        return self._stream(epoch).cut(shares[:, self.rank].reshape(-1))

    def _stream(self, epoch: int) -> WindowStream:
        if epoch not in self._streams:
            order = _random(self.seed, epoch, 0).permutation(len(self.shards.group))
            section = self.section
            # One epoch at a time: a block of the next one is never followed by a block of this one.
            self._streams = {
                epoch: WindowStream(self.shards, order, section.sequence_length, section.packing, self.eos_id)
            }
        return self._streams[epoch]


class _SequentialBlocks(_Blocks):
    """Block k: this rank's windows of the k-th lot of batches, in file order."""

    def __init__(
        self,
        section: DataSection,
        folder: Path,
        batch_size: int,
        eos_id: int,
        rank: int,
        world_size: int,
        mix_tokens: int,
    ) -> None:
        shards = open_shards(folder, section.sequence_length)
        order = np.arange(len(shards.group))
        self.stream = WindowStream(shards, order, section.sequence_length, section.packing, eos_id)
        self.windows = self.stream.all_windows
        self.targets, self.documents = int(shards.targets.sum()), int(shards.documents.sum())
        self.batches = _Shares(self.windows, batch_size, rank, world_size)
        self.batches_per_block = max(1, mix_tokens // (batch_size * world_size * section.sequence_length))

    def numbers(self, first: int) -> Iterator[int]:
        yield from range(first, -(-len(self.batches) // self.batches_per_block))

    def __getitem__(self, block: int) -> Windows:
        shares = self.batches[block * self.batches_per_block : (block + 1) * self.batches_per_block]
        # A rank without a window in the last batch borrows one; its loss mask will be False.
        ids = np.concatenate(
            [np.arange(low, high) if high > low else [min(low, self.windows - 1)] for low, high in shares]
        )
        return self.stream.cut(ids.astype(np.int64))


class _Shares(Sequence[tuple[int, int]]):
    """First window and end of each batch of one rank; ranks share a global batch as evenly as it goes."""

    def __init__(self, windows: int, batch_size: int, rank: int, world_size: int) -> None:
        self.windows, self.size, self.rank, self.world_size = windows, batch_size * world_size, rank, world_size

    def __len__(self) -> int:
        return -(-self.windows // self.size)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[one] for one in range(*index.indices(len(self)))]
        first = index * self.size
        count = min(self.size, self.windows - first)
        return first + count * self.rank // self.world_size, first + count * (self.rank + 1) // self.world_size


def _random(seed: int, epoch: int, purpose: int) -> np.random.Generator:
    return np.random.default_rng([seed, epoch, purpose])


class _Guarded(Dataset[Windows | UserError]):
    """Hands a user's error back as a value: a worker process would wrap it in its traceback."""

    def __init__(self, blocks: _Blocks) -> None:
        self.blocks = blocks

    def __getitem__(self, block: int) -> Windows | UserError:
        try:
            return self.blocks[block]
        except UserError as error:
            return error


def _ahead(blocks: _Blocks, first: int, workers: int) -> Iterator[Windows]:
    """The blocks from `first` on, prepared ahead: in a thread, or in worker processes, in the same order."""
    if workers == 0:
        yield from _ahead_in_thread(blocks.__getitem__, blocks.numbers(first))
        return
    loader = DataLoader(
        _Guarded(blocks),
        # An iterable is enough where batches are not formed by the loader; an endless one has no length.
        sampler=_Numbers(blocks, first),  # type: ignore[arg-type]
        batch_size=None,
        num_workers=workers,
        prefetch_factor=1,
        collate_fn=_as_tensors,
    )
    for windows in loader:
        if isinstance(windows, UserError):
            raise windows
        yield Windows(*(field.numpy() for field in windows))


def _as_tensors(windows: Windows | UserError) -> Any:
    # Tensors travel through shared memory, arrays would be pickled.
    if isinstance(windows, UserError):
        return windows
    return tuple(torch.from_numpy(np.ascontiguousarray(field)) for field in windows)


class _Numbers:
    def __init__(self, blocks: _Blocks, first: int) -> None:
        self.blocks, self.first = blocks, first

    def __iter__(self) -> Iterator[int]:
        return self.blocks.numbers(self.first)


def _ahead_in_thread(make: Callable[[int], Windows], numbers: Iterator[int]) -> Iterator[Windows]:
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader")
    try:
        number = next(numbers, None)
        pending = None if number is None else pool.submit(make, number)
        while pending is not None:
            windows = pending.result()
            number = next(numbers, None)
            pending = None if number is None else pool.submit(make, number)
            yield windows
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
