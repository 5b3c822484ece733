"""Lots of windows prepared ahead of their use: in a thread, or in worker processes, in the same order."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from retlab.data.blocks import Blocks
from retlab.data.windows import Windows
from retlab.errors import UserError


def ahead(blocks: Blocks, first: int, workers: int) -> Iterator[Windows]:
    """The lots from number `first` on.

    Args:
        blocks: what makes them.
        first: number of the first one.
        workers: processes, each with one lot in hand; 0 takes a thread of this process.

    Raises:
        UserError: as `blocks.make`.
    """
    return _from_processes(blocks, first, workers) if workers else _from_thread(blocks, first)


def _from_thread(blocks: Blocks, first: int) -> Iterator[Windows]:
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="loader")
    numbers = blocks.numbers(first)
    try:
        pending = [pool.submit(blocks.make, next(numbers))]
        while pending:
            windows = pending.pop().result()
            pending = [pool.submit(blocks.make, number) for number in [next(numbers, None)] if number is not None]
            yield windows
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _from_processes(blocks: Blocks, first: int, workers: int) -> Iterator[Windows]:
    loader = DataLoader(
        _MadeInWorker(blocks), batch_size=None, sampler=_Numbers(blocks, first), num_workers=workers, prefetch_factor=1
    )
    for made in loader:
        if isinstance(made, UserError):
            raise made
        yield Windows(*(field.numpy() for field in made))


class _MadeInWorker(Dataset[tuple[torch.Tensor, ...] | UserError]):
    """Tensors, because they travel through shared memory, and errors as values: as exceptions they gain a traceback."""

    def __init__(self, blocks: Blocks) -> None:
        self.blocks = blocks

    def __getitem__(self, number: int) -> tuple[torch.Tensor, ...] | UserError:
        try:
            return tuple(torch.from_numpy(np.ascontiguousarray(field)) for field in self.blocks.make(number))
        except UserError as error:
            return error


class _Numbers(Sampler[int]):
    def __init__(self, blocks: Blocks, first: int) -> None:
        self.blocks, self.first = blocks, first

    def __iter__(self) -> Iterator[int]:
        return self.blocks.numbers(self.first)
