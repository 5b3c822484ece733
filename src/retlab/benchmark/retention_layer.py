"""One retention layer of RetLab beside TorchScale's, on one CPU thread: time and memory of forward and backward.

The layer is 512 wide with 8 heads of key width 64 and value width 128, batch 1, projections, gate and norm included.
Every contestant has a process of its own; they run in turns, one step each, and the fewest seconds of CPU time count:
other work on the machine makes steps slower and never faster. What depends on the length alone, TorchScale's masks and
RetLab's rotations, is computed once per model and not timed.
"""

import contextlib
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import torch

WIDTH, HEADS = 512, 8
DEFAULT_CHUNK = 512
"""TorchScale's `recurrent_chunk_size` where none is given."""


class Contestant(NamedTuple):
    """A layer in one form: RetLab's with its default settings, or TorchScale's, parallel or in chunks.

    Or nothing but the five products with weights that both compute, which no form of retention can do without.
    """

    name: str
    kind: Literal["retlab", "torchscale", "projections"] = "retlab"
    chunk: int | None = None

    def floors(self) -> tuple[float | None, float | None]:
        """How many times faster RetLab is to be, and how many times its memory this may take; None is not asked."""
        if self.kind != "torchscale":
            return None, None
        if self.chunk is None:
            return 4.0, 6.0
        return (1.5 if self.chunk == DEFAULT_CHUNK else None), None


@dataclass
class Measured:
    """One line of the table; None where nothing was measured."""

    contestant: Contestant
    milliseconds: float | None = None
    megabytes: float | None = None


def contestants(chunks: tuple[int, ...] = (64, 128, 256, DEFAULT_CHUNK)) -> list[Contestant]:
    """RetLab's layer, TorchScale's in its parallel form and with each of these chunks, and what they have in common."""
    peers = [Contestant(f"TorchScale, chunks of {chunk}", "torchscale", chunk) for chunk in chunks]
    parallel, common = Contestant("TorchScale, parallel", "torchscale"), Contestant("projections alone", "projections")
    return [Contestant("RetLab"), parallel, *peers, common]


def measure(who: list[Contestant], tokens: int, rounds: int, memory_tokens: int | None) -> Iterator[Measured]:
    """Each contestant's fewest CPU milliseconds at `tokens`, then its peak memory at `memory_tokens`, if any."""
    times: dict[Contestant, list[float]] = {one: [] for one in who}
    with contextlib.ExitStack() as stack:
        # The first step of each is its warm-up.
        pools = {one: stack.enter_context(_process(one, tokens)) for one in who}
        for pool in pools.values():
            pool.submit(_step).result()
        for _ in range(rounds):
            for one, pool in pools.items():
                times[one].append(pool.submit(_step).result())
    for one in who:
        line = Measured(one, milliseconds=1000 * min(times[one]))
        if memory_tokens is not None:
            with _process(one, memory_tokens) as pool:
                line.megabytes = pool.submit(_peak_megabytes).result()
        yield line


def table(lines: list[Measured], tokens: int, memory_tokens: int | None) -> str:
    """The measurements with RetLab's gains and, beside them, the gains that the project asks for."""
    own = lines[0]
    head = ["one layer, forward + backward", f"ms at {tokens:,}", "RetLab x", "floor"]
    if memory_tokens is not None:
        head += [f"peak MB at {memory_tokens:,}", "RetLab x", "floor"]
    rows = [head]
    for line in lines:
        speed_floor, memory_floor = line.contestant.floors()
        row = [line.contestant.name, *_cells(line.milliseconds, own.milliseconds, speed_floor)]
        if memory_tokens is not None:
            row += _cells(line.megabytes, own.megabytes, memory_floor)
        rows.append(row)
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    padded = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [padded[0], rule, *padded[1:]])


def _cells(value: float | None, own: float | None, floor: float | None) -> list[str]:
    if value is None or own is None:
        return ["", "", ""]
    return [f"{value:,.0f}", "" if value is own else f"{value / own:.2f}", "" if floor is None else f"{floor:g}"]


def _process(contestant: Contestant, tokens: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _Layer.prepare, (contestant, tokens))


class _Layer:
    """The layer of this process and its input."""

    current: ClassVar["_Layer"]

    def __init__(self, contestant: Contestant, tokens: int) -> None:
        # Memory that was there before the layer and the tables that it needs.
        self.baseline = _status("VmRSS")
        make = {"retlab": _retlab, "torchscale": _torchscale, "projections": _projections}[contestant.kind]
        self.layer, self.call = make(contestant, tokens)
        self.hidden = torch.randn(1, tokens, WIDTH, requires_grad=True)
        self.gradient = torch.randn(1, tokens, WIDTH)

    @classmethod
    def prepare(cls, contestant: Contestant, tokens: int) -> None:
        """Make this process's layer, after a small one has loaded everything that has to be imported."""
        torch.set_num_threads(1)
        torch.manual_seed(0)
        cls(contestant, contestant.chunk or 64).step()
        cls.current = cls(contestant, tokens)

    def step(self) -> float:
        """Seconds of CPU time of forward and backward."""
        start = time.process_time()
        self.call(self.hidden).backward(self.gradient)
        seconds = time.process_time() - start
        self.hidden.grad = None
        self.layer.zero_grad()
        return seconds


def _step() -> float:
    return _Layer.current.step()


def _peak_megabytes() -> float | None:
    layer = _Layer.current
    layer.step()
    peak = _status("VmHWM")
    return None if peak is None or layer.baseline is None else (peak - layer.baseline) / 1e6


def _status(key: str) -> int | None:
    """A line of Linux's account of this process, in bytes; None elsewhere."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(lines[key].split()[0]) * 1024


Layer = tuple[torch.nn.Module, Callable[[torch.Tensor], torch.Tensor]]
"""A module, and its output (1, tokens, WIDTH) from hidden states of that shape."""


def _retlab(_contestant: Contestant, tokens: int) -> Layer:
    from retlab.mixers.retention import Retention
    from retlab.mixers.rotary import rotation

    layer = Retention(WIDTH, num_heads=HEADS)
    assert layer.frequencies is not None
    turned = rotation(torch.arange(tokens)[None], layer.frequencies)
    return layer, lambda hidden: layer(hidden, turned)[0]


def _projections(_contestant: Contestant, _tokens: int) -> Layer:
    from retlab.mixers.retention import Retention

    layer = Retention(WIDTH, num_heads=HEADS)

    def call(hidden: torch.Tensor) -> torch.Tensor:
        # Sums are the cheapest way to have all of them take part.
        qk = torch.cat((layer.q_proj(hidden), layer.k_proj(hidden)), dim=-1)
        return layer.out_proj(qk + layer.v_proj(hidden) + layer.g_proj(hidden))

    return layer, call


def _torchscale(contestant: Contestant, tokens: int) -> Layer:
    from retlab.benchmark.peers import torchscale_module

    sizes = {"decoder_embed_dim": WIDTH, "decoder_value_embed_dim": 2 * WIDTH, "decoder_retention_heads": HEADS}
    chunk = contestant.chunk
    config = torchscale_module("architecture.config").RetNetConfig(
        **sizes, vocab_size=8, recurrent_chunk_size=chunk or DEFAULT_CHUNK
    )
    layer = torchscale_module("component.multiscale_retention").MultiScaleRetention(config, WIDTH, 2 * WIDTH, HEADS)
    positions = torchscale_module("architecture.retnet").RetNetRelPos(config)
    relative = positions(tokens, chunkwise_recurrent=chunk is not None)
    return layer, lambda hidden: layer(hidden, relative, chunkwise_recurrent=chunk is not None)
