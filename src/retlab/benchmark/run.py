"""One run of the benchmark: chooses what to measure, shows each result, and keeps the report up to date."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from retlab.artifacts import write_atomic
from retlab.benchmark.conditions import busy, conditions
from retlab.benchmark.entries import Kind, choose_kinds, choose_peers, make_entries
from retlab.benchmark.peers import PEERS
from retlab.benchmark.plan import Plan, default_plan, plan_of
from retlab.benchmark.plot import to_png
from retlab.benchmark.processes import Failed, Machine, entry_rows, machine_answers
from retlab.benchmark.report import complete, say, table, to_csv, to_markdown
from retlab.benchmark.row import Row
from retlab.config import ExperimentConfig
from retlab.errors import UserError
from retlab.section import shown_path
from retlab.training.hardware import Hardware, choose_hardware
from retlab.training.kernels import training_kernels
from retlab.training.settings import TrainSection


@dataclass
class Results:
    """Everything that is known so far, and its files."""

    folder: Path
    header: list[str]
    missing: list[str]
    machine: Machine | None = None
    rows: list[Row] = field(default_factory=list)

    def add(self, rows: Sequence[Row]) -> None:
        """Show new rows and write CSV and Markdown anew."""
        self.rows += rows
        for row in rows:
            place = f" {row.batch} x {row.tokens:,}" if row.batch and row.tokens else ""
            what = f"{row.tokens_per_second:,.0f} tokens/s" if row.tokens_per_second else row.remark
            say(f"{' '.join(filter(None, (row.model, row.implementation)))}, {row.measurement}{place}: {what}")
        self.write()

    @property
    def has_numbers(self) -> bool:
        """Whether anything of a model has been measured."""
        return any(row.tokens_per_second for row in self.rows if row.model)

    def write(self) -> None:
        """Write CSV and Markdown, once there is something that is worth the place of an earlier run's."""
        if not self.has_numbers:
            return
        rows = complete(self.rows, self.machine)
        write_atomic(self.folder / "benchmark.csv", to_csv(rows))
        write_atomic(self.folder / "benchmark.md", to_markdown(rows, self.header, self.missing))

    def draw(self) -> None:
        """Write the picture."""
        picture = to_png(complete(self.rows, self.machine), f"Speed on {self.header[0]}")
        write_atomic(self.folder / "benchmark.png", picture)


def run_benchmark(
    config: ExperimentConfig | None,
    train: TrainSection,
    peers: str | None,
    measure: str | None,
    folder: Path,
    command: str,
) -> None:
    """Measure everything, one contestant after the other.

    Args:
        config: what to measure; None takes the default sizes.
        train: how it is trained, and on which device.
        peers: as `choose_peers` takes them.
        measure: as `choose_kinds` takes it.
        folder: gets benchmark.csv, benchmark.md and benchmark.png.
        command: how it was started.

    Raises:
        UserError: no GPU where one is asked for, a peer that cannot be had, or a model that cannot be.
    """
    kinds = choose_kinds(measure)
    hardware = choose_hardware(train.model_copy(update={"devices": 1, "num_nodes": 1}))
    plan = _plan(config, train, hardware)
    names, missing = choose_peers(plan, hardware.device, peers)
    folder.mkdir(parents=True, exist_ok=True)
    versions = [PEERS[name].version() for name in names]
    warnings = busy()
    results = Results(folder, conditions(str(hardware), versions, command) + warnings, missing)
    for line in missing:
        say(f"not measured: {line}")
    for line in warnings:
        say(line)
    _measure(plan, names, kinds, hardware, results)
    if not results.has_numbers:
        raise UserError(f"nothing could be measured: {results.rows[-1].remark if results.rows else results.header[-1]}")
    results.draw()
    print(table(complete(results.rows, results.machine)))
    say(f"explanations, ratios and versions: {shown_path(folder / 'benchmark.md')}")
    say(f"numbers: {shown_path(folder / 'benchmark.csv')}; picture: {shown_path(folder / 'benchmark.png')}")


def _plan(config: ExperimentConfig | None, train: TrainSection, hardware: Hardware) -> Plan:
    if config is None:
        return default_plan(hardware.device, train)
    plan = plan_of(config.model_copy(update={"train": train}), hardware.device)
    (subject,) = plan.subjects
    # A kernel that is asked for by name and cannot run here is refused, as by the training.
    training_kernels(subject.model.to_fields(subject.vocab_size), config.data, train, hardware, measure=False)
    return plan


def _measure(plan: Plan, peers: list[str], kinds: tuple[Kind, ...], hardware: Hardware, results: Results) -> None:
    with tempfile.TemporaryDirectory(prefix="retlab-benchmark-") as temporary:
        texts = Path(temporary)
        for answer in machine_answers(plan, hardware, texts if "loader" in kinds else None):
            if isinstance(answer, Failed):
                results.header.append(f"the machine could not be measured: {answer.reason}")
            elif isinstance(answer, Machine):
                results.machine = answer
                results.header.append(_rates(answer, hardware))
            else:
                results.add(answer)
        for entry in make_entries(plan, peers, hardware.compiled, kinds):
            for rows in entry_rows(plan, entry, texts):
                results.add(rows)


def _rates(machine: Machine, hardware: Hardware) -> str:
    precision = "bf16" if hardware.bf16 else "float32"
    return (
        f"measured first: {machine.product_flops / 1e12:,.3g} TFLOP/s in a matrix product ({precision}),"
        f" {machine.copied_bytes / 1e9:,.0f} GB/s read and written by a copy"
    )
