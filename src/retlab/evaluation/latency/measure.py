"""Time to the first token, time per token, and memory of a model's own `generate()`, by context and batch size."""

import random
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from retlab.artifacts import write_atomic
from retlab.evaluation.latency.cells import Cell, cells_of, expected_obstacle
from retlab.evaluation.latency.generation import generating_model, random_ids, state_bytes_after, token_seconds
from retlab.evaluation.latency.limits import all_memory, described_room, learned_positions, least_bytes, memory_ceiling
from retlab.evaluation.latency.plots import write_plots
from retlab.evaluation.latency.rows import NO_CACHE, LatencyRow, write_rows
from retlab.evaluation.latency.table import latency_table, wrapped
from retlab.evaluation.settings import LatencySection
from retlab.evaluation.trained_model import TrainedModel, quiet_transformers
from retlab.measuring import Memory
from retlab.memory import exhausted_memory
from retlab.models.engines import forget, settle
from retlab.progress import Progress, progress


def measure_latency(
    trained: TrainedModel,
    section: LatencySection,
    folder: Path,
    say: Callable[[str], None] = lambda _line: None,
    name: str | None = None,
) -> dict[str, Any]:
    """Measure how long a model's `generate()` takes, and what memory, after contexts of random tokens.

    Writes latency.csv, and time_per_token.png and memory.png where there are numbers for them, into `folder`. A context
    that cannot be measured has a sentence in the place of its numbers.

    Args:
        trained: the model.
        section: what to measure.
        folder: where to write.
        say: prints a line for people.
        name: what to call the model; its architecture, if nothing is said.
    """
    name = name or trained.architecture
    with quiet_transformers(), generating_model(trained) as model, memory_ceiling(trained.device):
        bench = _Bench(model, trained, section)
        bench.measure()
    rows = [cell.row(name, _device_name(trained.device), trained.precision) for cell in bench.cells]
    write_atomic(folder / "latency.csv", write_rows(rows))
    write_plots({name: rows}, folder)
    say("\n".join([*latency_table(rows), *_notes(trained, rows)]))
    return {"rows": len(rows)}


class _Bench:
    """The cells of one model, being measured."""

    def __init__(self, model: PreTrainedModel, trained: TrainedModel, section: LatencySection) -> None:
        self.model, self.section, self.device = model, section, trained.device
        self.has_steps = trained.ours is not None
        self.cells = cells_of(section, "recurrent" if trained.carries_state else "cache")
        self.positions = learned_positions(model)
        self.weights = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
        self.unexpected: list[Exception] = []

    def measure(self) -> None:
        """Measure every cell.

        On a CPU the trials of all cells take turns, in another order each time, so that what else the machine does, and
        what the trial before left behind, hits all alike. On a GPU, where less disturbs, each cell has it to itself
        with all that was recorded and compiled for its shape.
        """
        trials = self.section.warmup + self.section.trials
        with progress("latency", len(self.cells) * (1 + trials), "trial") as bar:
            # Libraries that load at the first call are no part of the first cell.
            token_seconds(self.model, random_ids(self.model, 1, 8), 2, cached=True)
            for cell in self.cells:
                self._run(cell, bar, self._begin)
                if self.device.type == "cuda":
                    self._run(cell, bar, self._settle)
                    for number in range(trials):
                        self._run(cell, bar, self._trial, number)
            if self.device.type != "cuda":
                for number in range(trials):
                    for cell in random.Random(number).sample(self.cells, len(self.cells)):
                        self._run(cell, bar, self._trial, number)
        self._release()
        if self.unexpected and not any(cell.is_open for cell in self.cells):
            raise self.unexpected[0]

    def _run(self, cell: Cell, bar: Progress, work: Callable[..., None], *inputs: Any) -> None:
        """Do something with a cell, unless or until something keeps it from being measured."""
        if cell.is_open:
            bar.note(f"{cell.method}, {cell.batch} x {cell.context:,}")
            try:
                work(cell, *inputs)
            # A model of another library may fail in its own way, and the other cells have nothing to do with it.
            except Exception as error:
                self._close(cell, error)
        if work != self._settle:
            bar.advance()

    def _close(self, cell: Cell, error: Exception) -> None:
        cell.lacks_memory = exhausted_memory(error) is not None
        if cell.lacks_memory:
            # What the error's frames hold is given back first.
            error.__traceback__ = None
            self._release()
            cell.status = f"does not fit {described_room(self.device)}"
            return
        self.unexpected.append(error)
        reason = str(error).strip().partition("\n")[0]
        cell.status = f"failed: {reason or type(error).__name__}"

    def _begin(self, cell: Cell) -> None:
        """Find out whether it can be measured, and what memory it takes."""
        needed = least_bytes(self.model, cell.batch * cell.context, in_pieces=cell.method == "recurrent")
        if needed > all_memory(self.device):
            cell.lacks_memory = True
            cell.status = f"does not fit {described_room(self.device)}: it takes {needed / 2**30:,.0f} GiB at the least"
            return
        obstacle = expected_obstacle(cell, self.cells, self.positions, self.section.longest_trial_seconds)
        if obstacle is not None:
            cell.status = obstacle
            return
        self._release()
        memory = Memory(self.device)
        with memory.watch() as peak:
            cell.trial = self._seconds(cell)
        # What a GPU counts by itself: there the weights are part of the peak.
        cell.peak_bytes = peak.bytes + (0 if self.device.type == "cuda" else self.weights)
        if cell.method != NO_CACHE:
            cell.state_bytes = state_bytes_after(self.model, random_ids(self.model, cell.batch, cell.context))

    def _settle(self, cell: Cell) -> None:
        """Have everything recorded and compiled that will be."""
        if self.has_steps and cell.method != NO_CACHE:
            settle(self.model, lambda: self._seconds(cell))

    def _trial(self, cell: Cell, number: int) -> None:
        if self.device.type != "cuda":
            # On a CPU nothing is recorded, and the memory of other shapes may be missing for this one.
            forget(self.model)
        prefill, decode = self._seconds(cell)
        if number >= self.section.warmup:
            cell.prefills.append(prefill)
            cell.decodes.append(decode)

    def _seconds(self, cell: Cell) -> tuple[float, float]:
        """Seconds up to the first new token and per further one, of one call of `generate()`."""
        ids = random_ids(self.model, cell.batch, cell.context)
        first, *others = token_seconds(self.model, ids, cell.new_tokens, cell.method != NO_CACHE)
        return first, statistics.mean(others)

    def _release(self) -> None:
        """Give back what other cells left behind."""
        forget(self.model)
        Memory(self.device).release()


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"cpu, {threads} {'thread' if threads == 1 else 'threads'}"


def _notes(trained: TrainedModel, rows: list[LatencyRow]) -> list[str]:
    window = trained.window
    if trained.carries_state or not window:
        return []
    if not any(row.is_measured and row.context + row.new_tokens > window for row in rows):
        return []
    return wrapped(
        f"The model was made for at most {window:,} tokens: beyond, what it writes is no measure of it, its speed is."
    )
