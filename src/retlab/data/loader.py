"""Batches from token shards: shuffled for training with an exact position, in file order for measuring."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from retlab.data.blocks import Cutting, Division, SequentialBlocks, TrainBlocks
from retlab.data.prefetch import ahead
from retlab.data.settings import DataSection
from retlab.data.shards import open_shards
from retlab.data.windows import Windows, document_offsets, to_batch
from retlab.errors import UserError

Batch = dict[str, Any]

# Windows of so many tokens are shuffled together: several row groups, a few tens of megabytes.
MIX_TOKENS = 2**23


class TokenLoader:
    """Endless micro-batches of the train split, shuffled anew in every epoch, from an exact position.

    An epoch reads the row groups in an order drawn from (seed, epoch), cuts that stream into windows, and shuffles the
    windows of `mix_tokens` tokens at a time, a whole number of global batches. What a step holds depends on the data,
    the seed and the global batch size alone. Ranks, worker processes and micro-batches only share it out: micro-batch m
    of rank r is the r-th slice of the m-th part of the global batch. The windows beyond whole global batches
    (`tail_windows`), and packed the tokens beyond whole windows, are left out of an epoch; the next leaves out others.

    Each `iter()` goes on at `step`, the number of global batches handed out so far. A batch is that of
    `windows.to_batch`, on the CPU, with `step` (int): the global batch that it is part of, counted from 0 over all
    epochs. Every rank decodes all row groups, at tens of millions of tokens a second, and cuts its own windows.
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
            seed: of the order.
            eos_id: end-of-text token; opens and ends every document.
            pad_id: fills up padded windows.
            rank: which share of each global batch, of `world_size`.
            world_size: processes that share the work.
            mix_tokens: tokens whose windows are shuffled together.

        Raises:
            UserError: no readable shards, or less than one window or one global batch in them.
        """
        assert global_batch_size % (micro_batch_size * world_size) == 0
        self.micro_batches = global_batch_size // (micro_batch_size * world_size)
        self.micro_batch_size, self.workers = micro_batch_size, section.loader_workers
        self.pad_id, self.reset_at_documents = pad_id, section.reset_at_documents
        self._blocks = TrainBlocks(
            folder,
            open_shards(folder, section.sequence_length),
            Cutting(section.sequence_length, section.packing, eos_id),
            Division(global_batch_size, micro_batch_size, rank, world_size),
            seed,
            mix_tokens,
        )
        self.windows_per_epoch: int = self._blocks.windows
        self.steps_per_epoch: int = self._blocks.steps
        self.tail_windows: int = self._blocks.tail
        self.step = 0

    def seek(self, step: int) -> None:
        """Let the next `iter()` start with global batch `step`; reads nothing."""
        self.step = step

    def state_dict(self) -> dict[str, int]:
        """Position behind the last complete global batch that was handed out, and what it is counted in.

        A consumer that fetches batches before it uses them knows better than this: it should `seek` by its own count.
        """
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
        size, rows_per_step = self.micro_batch_size, self.micro_batches * self.micro_batch_size
        block, skipped = self._blocks.locate(self.step)
        for windows in ahead(self._blocks, block, self.workers):
            for start in range(skipped * rows_per_step, len(windows.ids), size):
                batch: Batch = to_batch(windows.rows(start, start + size), self.pad_id, self.reset_at_documents)
                batch["step"] = self.step
                # The last micro-batch completes its step: a position saved by whoever holds it lies behind it.
                if (start + size) % rows_per_step == 0:
                    self.step += 1
                yield batch
            skipped = 0


class SequentialLoader:
    """All windows of a split once, in file order, the last shorter one included: for validation and test.

    Each `iter()` starts from the beginning. A batch is that of `windows.to_batch`, with `document_ids`, int64 [B, T]:
    the number, in file order, of the document that input and target belong to, -1 for padding. The batch size changes
    no window. Every rank gets the same number of batches, `len(loader)`; where the last one has fewer windows than
    there are ranks, a rank without any gets one whose loss mask is False throughout.
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
        """Count the shards of a split; `batch_size` is in windows of one rank, all else as in `TokenLoader`.

        Raises:
            UserError: no readable shards or no documents in them.
        """
        self.pad_id, self.reset_at_documents = pad_id, section.reset_at_documents
        shards = open_shards(folder, section.sequence_length)
        cutting = Cutting(section.sequence_length, section.packing, eos_id)
        division = Division(batch_size * world_size, batch_size, rank, world_size)
        self._blocks = SequentialBlocks(shards, cutting, division, mix_tokens)
        self.windows: int = self._blocks.windows
        self.documents = int(shards.documents.sum())
        self.targets = int(shards.targets.sum())
        """Predicted tokens of the split: all its tokens and one end of text for each document."""

    def __len__(self) -> int:
        return self._blocks.batches

    def __iter__(self) -> Iterator[Batch]:
        numbers = iter(range(len(self)))
        for windows in ahead(self._blocks, 0, workers=0):
            start = 0
            while start < len(windows.ids):
                low, high = self._blocks.share(next(numbers))
                rows = max(high - low, 1)
                yield self._batch(windows.rows(start, start + rows), is_borrowed=high == low)
                start += rows

    def _batch(self, windows: Windows, is_borrowed: bool) -> Batch:
        batch: Batch = to_batch(windows, self.pad_id, self.reset_at_documents)
        if is_borrowed:
            batch["loss_mask"] = torch.zeros_like(batch["loss_mask"])
        documents = torch.from_numpy(windows.documents[:, None] + document_offsets(windows))
        batch["document_ids"] = documents.masked_fill(~batch["loss_mask"], -1)
        return batch
