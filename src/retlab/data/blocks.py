"""Which windows are handed out when: shuffled global batches for training, file order for measuring."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from retlab.data.shards import Shards
from retlab.data.windows import Packing, Windows, WindowStream
from retlab.errors import UserError
from retlab.section import shown_path


class Blocks(Protocol):
    """Numbered lots of windows of one rank, in the order in which they are handed out."""

    def make(self, number: int) -> Windows:
        """Read and cut one lot. Raises UserError where a part cannot be read."""

    def numbers(self, first: int) -> Iterator[int]:
        """The lots that follow, `first` included."""


@dataclass(frozen=True)
class Cutting:
    """What decides the windows of a split, before any order."""

    sequence_length: int
    packing: Packing
    eos_id: int


@dataclass(frozen=True)
class Division:
    """How a global batch is shared out: to micro-batches, and inside each of them to ranks."""

    global_batch_size: int
    micro_batch_size: int
    rank: int
    world_size: int

    @property
    def micro_batches(self) -> int:
        """Micro-batches of each rank."""
        return -(-self.global_batch_size // (self.micro_batch_size * self.world_size))

    def places(self) -> np.ndarray:
        """Places in the global batch of this rank's windows, int64 [micro-batches, micro_batch_size].

        Where there are more of these than windows, all parts are as even as they can be, and -1 stands for none.
        """
        places = np.full((self.micro_batches, self.micro_batch_size), -1)
        for number, micro in enumerate(places):
            first, behind = (self.global_batch_size * k // self.micro_batches for k in (number, number + 1))
            low, high = (first + (behind - first) * r // self.world_size for r in (self.rank, self.rank + 1))
            micro[: high - low] = np.arange(low, high)
        return places


class _Epoch(NamedTuple):
    stream: WindowStream
    tail_start: int
    "Number of the first window of the run that is left out, so that whole global batches remain."


@dataclass(eq=False)
class TrainBlocks:
    """Lot k of an epoch: this rank's windows of its k-th run of global batches, in the order of their steps."""

    folder: Path
    shards: Shards
    cutting: Cutting
    division: Division
    seed: int
    mix_tokens: int
    _last_epoch: "tuple[int, _Epoch] | None" = field(default=None, init=False)

    def __post_init__(self) -> None:
        length, size = self.cutting.sequence_length, self.division.global_batch_size
        self.windows = _window_stream(self.shards, np.arange(len(self.shards.group)), self.cutting).full_windows
        self.steps = self.windows // size
        self.tail = self.windows - self.steps * size
        self.steps_per_block = max(1, self.mix_tokens // (size * length))
        self.blocks_per_epoch = -(-self.steps // self.steps_per_block)
        if self.windows == 0:
            raise UserError(
                f"data.sequence_length {length:,} is longer than the split in {shown_path(self.folder)}, which holds"
                f" {self.shards.targets.sum():,} tokens; shorten the window or get more text"
            )
        if self.steps == 0:
            raise UserError(
                f"{shown_path(self.folder)} holds {self.windows:,} of the {size:,} windows of {length:,} tokens that"
                " train.batch_size asks for; lower the batch size or get more text"
            )

    @property
    def unit(self) -> dict[str, int]:
        """What a position is counted in: with any of these changed, a step holds other windows."""
        return {
            "seed": self.seed,
            "batch_size": self.division.global_batch_size,
            "sequence_length": self.cutting.sequence_length,
            "windows_per_epoch": self.windows,
            "steps_per_block": self.steps_per_block,
        }

    def locate(self, step: int) -> tuple[int, int]:
        """Number of the lot that holds a step, and how many steps of that lot come before it."""
        epoch, position = divmod(step, self.steps)
        block, skipped = divmod(position, self.steps_per_block)
        return epoch * self.blocks_per_epoch + block, skipped

    def numbers(self, first: int) -> Iterator[int]:
        while True:
            yield first
            first += 1

    def make(self, number: int) -> Windows:
        epoch, block = divmod(number, self.blocks_per_epoch)
        first, division = block * self.steps_per_block, self.division
        windows = min(self.steps_per_block, self.steps - first) * division.global_batch_size
        order = self._epoch(epoch)
        ids = first * division.global_batch_size + self._random(epoch, 1 + block).permutation(windows)
        ids += np.where(ids >= order.tail_start, self.tail, 0)
        places = division.places().reshape(-1)
        # In a place without a window is any one of its step, which the number says does not count.
        shares = ids.reshape(-1, division.global_batch_size)[:, places]
        cut = order.stream.cut(shares.reshape(-1))
        if (places < 0).any():
            cut = cut._replace(ids=np.where(places < 0, -1, shares).reshape(-1))
        return cut

    def _epoch(self, epoch: int) -> "_Epoch":
        # A local name, because the thread of an abandoned iteration may still be reading.
        last = self._last_epoch
        if last is None or last[0] != epoch:
            random = self._random(epoch, 0)
            stream = _window_stream(self.shards, random.permutation(len(self.shards.group)), self.cutting)
            # Both at random places: at the end of the stream, they would be the same in every epoch of a single group.
            stream.first_position = int(random.integers(stream.spare_positions, endpoint=True))
            tail_start = int(random.integers(self.windows - self.tail, endpoint=True))
            last = self._last_epoch = epoch, _Epoch(stream, tail_start)
        return last[1]

    def _random(self, epoch: int, purpose: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch, purpose])


@dataclass(eq=False)
class SequentialBlocks:
    """Lot k: this rank's windows of the k-th run of batches, in file order."""

    shards: Shards
    cutting: Cutting
    division: Division
    mix_tokens: int

    def __post_init__(self) -> None:
        self.stream = _window_stream(self.shards, np.arange(len(self.shards.group)), self.cutting)
        self.windows = self.stream.all_windows
        size = self.division.global_batch_size
        self.batches = -(-self.windows // size)
        self.batches_per_block = max(1, self.mix_tokens // (size * self.cutting.sequence_length))

    def share(self, batch: int) -> tuple[int, int]:
        """First window, and the one behind the last, of this rank in a batch; ranks share it as evenly as it goes."""
        division = self.division
        first = batch * division.global_batch_size
        count = min(division.global_batch_size, self.windows - first)
        return (
            first + count * division.rank // division.world_size,
            first + count * (division.rank + 1) // division.world_size,
        )

    def numbers(self, first: int) -> Iterator[int]:
        yield from range(first, -(-self.batches // self.batches_per_block))

    def make(self, number: int) -> Windows:
        first = number * self.batches_per_block
        shares = [self.share(batch) for batch in range(first, min(first + self.batches_per_block, self.batches))]
        # A rank without a window in the last batch borrows one; its loss mask will be False.
        ids = [np.arange(low, high) if high > low else np.array([self.windows - 1]) for low, high in shares]
        return self.stream.cut(np.concatenate(ids))


def _window_stream(shards: Shards, order: np.ndarray, cutting: Cutting) -> WindowStream:
    return WindowStream(shards, order, cutting.sequence_length, cutting.packing, cutting.eos_id)
