"""Batches from token shards: shuffled for training with an exact position, in file order for measuring."""

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass
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


@dataclass(eq=False)
class _ShardLoader:
    """Counts the shards of a split when it is made: UserError where none are readable, or none hold a document."""

    section: DataSection
    "sequence_length, packing, reset_at_documents and, for training, loader_workers are read."
    folder: Path
    "Token shards of one split."
    _: KW_ONLY
    eos_id: int
    "End-of-text token; opens and ends every document."
    pad_id: int
    "Fills up padded windows."
    rank: int = 0
    "Which share of each global batch, of `world_size`."
    world_size: int = 1
    "Processes that share the work."
    mix_tokens: int = MIX_TOKENS
    "Tokens whose windows are prepared, and for training shuffled, together."

    def __post_init__(self) -> None:
        self._shards = open_shards(self.folder, self.section.sequence_length)
        self._cutting = Cutting(self.section.sequence_length, self.section.packing, self.eos_id)

    def _divide(self, global_batch_size: int, micro_batch_size: int) -> Division:
        return Division(global_batch_size, micro_batch_size, self.rank, self.world_size)

    def _to_batch(self, windows: Windows) -> Batch:
        return to_batch(windows, self.pad_id, self.section.reset_at_documents)


@dataclass(eq=False, kw_only=True)
class TokenLoader(_ShardLoader):
    """Endless micro-batches of the train split, shuffled anew in every epoch, from an exact position.

    An epoch reads the row groups in an order drawn from (seed, epoch), cuts that stream into windows, and shuffles the
    windows of `mix_tokens` tokens at a time, a whole number of global batches. What a step holds depends on the data,
    the seed and the global batch size alone. Ranks, worker processes and micro-batches only share it out: micro-batch m
    of rank r is the r-th slice of the m-th part of the global batch. Where they do not share it evenly, batches are
    filled up with windows whose loss mask is False and whose number in `sample_ids` is -1. The windows beyond whole
    global batches (`tail_windows`), and packed the tokens beyond whole windows, are left out of an epoch; the next
    leaves out others.

    Each `iter()` goes on at `step`, the number of global batches handed out so far. A batch is that of
    `windows.to_batch`, on the CPU, with `step` (int): the global batch that it is part of, counted from 0 over all
    epochs. Every rank decodes all row groups, at tens of millions of tokens a second, and cuts its own windows.

    Raises:
        UserError: no readable shards, or less than one window or one global batch in them.
    """

    global_batch_size: int
    "Windows of one optimizer step, over all ranks and micro-batches."
    micro_batch_size: int
    "Windows of one batch."
    seed: int
    "Of the order."

    def __post_init__(self) -> None:
        super().__post_init__()
        division = self._divide(self.global_batch_size, self.micro_batch_size)
        self.micro_batches = division.micro_batches
        self._blocks = TrainBlocks(self.folder, self._shards, self._cutting, division, self.seed, self.mix_tokens)
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
        for windows in ahead(self._blocks, block, self.section.loader_workers):
            for start in range(skipped * rows_per_step, len(windows.ids), size):
                batch = self._to_batch(windows.rows(start, start + size))
                batch["loss_mask"][batch["sample_ids"] < 0] = False
                batch["step"] = self.step
                # The last micro-batch completes its step: a position saved by whoever holds it lies behind it.
                if (start + size) % rows_per_step == 0:
                    self.step += 1
                yield batch
            skipped = 0


@dataclass(eq=False, kw_only=True)
class SequentialLoader(_ShardLoader):
    """All windows of a split once, in file order, the last shorter one included: for validation and test.

    Each `iter()` starts from the beginning. A batch is that of `windows.to_batch`, with `document_ids`, int64 [B, T]:
    the number, in file order, of the document that input and target belong to, -1 for padding. The batch size changes
    no window. Every rank gets the same number of batches, `len(loader)`; where the last one has fewer windows than
    there are ranks, a rank without any gets one whose loss mask is False throughout.
    """

    batch_size: int
    "Windows of one rank in one batch."

    def __post_init__(self) -> None:
        super().__post_init__()
        division = self._divide(self.batch_size * self.world_size, self.batch_size)
        self._blocks = SequentialBlocks(self._shards, self._cutting, division, self.mix_tokens)
        self.documents = int(self._shards.documents.sum())
        self.targets = int(self._shards.targets.sum())
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
        batch = self._to_batch(windows)
        if is_borrowed:
            batch["loss_mask"] = torch.zeros_like(batch["loss_mask"])
        documents = torch.from_numpy(windows.documents[:, None] + document_offsets(windows))
        batch["document_ids"] = documents.masked_fill(~batch["loss_mask"], -1)
        return batch
