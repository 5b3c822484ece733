"""Compare training in bf16 with training in float32 on the quickstart's data, over several seeds:

python tests/precision_curves.py --folder /tmp/precision [--steps 300] [--seeds 0 1 2] [--at-once 6] [key=value ...]

Stages 1 to 4, then the training stage of the quickstart's RetNet and Transformer for every precision and seed, several
at a time and not compiled (twelve graphs would take longer to compile than to run); key=value words change the
configuration. Leaves curves.csv, curves.png and table.md in the folder, and prints the table. Made for a GPU: a CPU
takes bf16 too, and many times as long.
"""

import argparse
import csv
import itertools
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from retlab.config import dump_config, load_config
from retlab.errors import UserError
from retlab.section import PROJECT_ROOT

STAGES = ("download_data", "split_data", "train_tokenizer", "tokenize_data")
ARCHITECTURES = ("retnet", "transformer")
PRECISIONS = ("float32", "bf16")
LOSSES = ("loss", "validation_loss")


class Point(NamedTuple):
    """The losses of one training at one step, in nats per token."""

    architecture: str
    precision: str
    seed: int
    step: int
    loss: float
    "Mean over the steps since the point before."
    validation_loss: float


def run_stage(stage: str, config: Path, words: Sequence[str]) -> None:
    """One stage in a process of its own."""
    command = [sys.executable, str(PROJECT_ROOT / "src" / f"{stage}.py"), str(config), *words]
    answer = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if answer.returncode:
        raise SystemExit(f"{stage} {' '.join(words)} failed:\n{answer.stderr}")


def train(config: Path, every: int, architecture: str, precision: str, seed: int) -> list[Point]:
    """The curve of one training."""
    name = f"{architecture}-{precision}-{seed}"
    words = [f"name={name}", f"seed={seed}", f"train.precision={precision}", f"train.validate_every_steps={every}",
             f"train.log_every_steps={every}", "train.checkpoint_every_steps=null", "train.tensorboard=false",
             "train.compile=off"]  # fmt: skip
    if architecture != "retnet":
        words += [f"model.architecture={architecture}", f"model.match_parameters_of={config}"]
    run_stage("train_model", config, words)
    with open(config.parent / "runs" / name / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["loss"] and row["validation_loss"]]
    losses = ((int(row["step"]), *(float(row[loss]) for loss in LOSSES)) for row in rows)
    print(f"{name}: trained", flush=True)
    return [Point(architecture, precision, seed, *values) for values in losses]


class Distance(NamedTuple):
    """How far bf16 is from float32, and how far seeds are from each other, in nats."""

    signed: float
    "Mean over the seeds of bf16 less float32 of the same seed."
    mean: float
    "Mean of its size."
    largest: float
    spread: float
    "Largest less smallest float32 loss over the seeds."
    deviation: float
    "Their standard deviation."


def distance(points: Sequence[Point], loss: str) -> Distance:
    """Of all points of one architecture and step."""
    values = {(point.precision, point.seed): getattr(point, loss) for point in points}
    exact = [value for (precision, _), value in values.items() if precision == "float32"]
    gaps = [value - values["float32", seed] for (precision, seed), value in values.items() if precision == "bf16"]
    sizes = list(map(abs, gaps))
    deviation = statistics.stdev(exact) if len(exact) > 1 else 0.0
    return Distance(statistics.mean(gaps), statistics.mean(sizes), max(sizes), max(exact) - min(exact), deviation)


def by_step(points: Sequence[Point], architecture: str) -> dict[int, list[Point]]:
    """The points of one architecture at every step."""
    chosen = sorted((point for point in points if point.architecture == architecture), key=lambda point: point.step)
    return {step: list(group) for step, group in itertools.groupby(chosen, key=lambda point: point.step)}


def table(points: Sequence[Point]) -> str:
    """Markdown: distances and spreads of each architecture at the end and over the course (means; largest of all)."""
    lines = [
        "| model | loss | when | bf16 - float32 | mean distance | largest distance | spread over seeds "
        "| their standard deviation | mean distance / spread |",
        "|---|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for architecture, loss in itertools.product(ARCHITECTURES, LOSSES):
        steps = [distance(group, loss) for group in by_step(points, architecture).values()]
        means = [statistics.mean(values) for values in zip(*steps, strict=True)]
        course = Distance(*means)._replace(largest=max(step.largest for step in steps))
        for when, found in (("at the end", steps[-1]), ("over the course", course)):
            numbers = " | ".join([f"{found.signed:+.4f}", *(f"{value:.4f}" for value in found[1:])])
            share = f"{found.mean / found.spread:.2f}" if found.spread else ""
            lines.append(f"| {architecture} | {loss.replace('_', ' ')} | {when} | {numbers} | {share} |")
    return "\n".join(lines) + "\n"


def draw(points: Sequence[Point], file: Path) -> None:
    """Above the validation curves, below bf16 less float32 of every seed before the spread over the seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 9), dpi=110, layout="constrained")
    axes: Any = figure.subplots(2, len(ARCHITECTURES), sharex=True, sharey="row")
    seeds = list(dict.fromkeys(point.seed for point in points))
    colours = dict(zip(seeds, itertools.cycle(("#4477aa", "#ee6677", "#228833", "#ccbb44", "#aa3377")), strict=False))
    for column, architecture in enumerate(ARCHITECTURES):
        above, below = axes[0][column], axes[1][column]
        steps = by_step(points, architecture)
        for seed in seeds:
            curves = {
                precision: [
                    next(p.validation_loss for p in group if (p.precision, p.seed) == (precision, seed))
                    for group in steps.values()
                ]
                for precision in PRECISIONS
            }
            for precision, dashes in zip(PRECISIONS, ("-", "--"), strict=True):
                above.plot(
                    list(steps), curves[precision], dashes, color=colours[seed], label=f"{precision}, seed {seed}"
                )
            gaps = [half - full for full, half in zip(*curves.values(), strict=True)]
            below.plot(list(steps), gaps, "o-", color=colours[seed], label=f"seed {seed}")
        spreads = [distance(group, "validation_loss").spread for group in steps.values()]
        below.fill_between(list(steps), [-s for s in spreads], spreads, color="#bbbbbb", alpha=0.4, lw=0,
                           label="spread over seeds (largest less smallest)")  # fmt: skip
        above.set_title(f"{architecture}: validation loss, nats per token")
        below.set_title(f"{architecture}: bf16 less float32 of the same seed")
        below.set_xlabel("step")
        for part in (above, below):
            part.grid(alpha=0.3)
            part.legend(fontsize=9)
    figure.savefig(file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--every", type=int, default=25, help="steps between two points of a curve")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--at-once", type=int, default=6, help="trainings that share the device")
    parser.add_argument("words", nargs="*", help="key=value, as the stages take them")
    options = parser.parse_intermixed_args()
    folder = options.folder.resolve()
    words = [f"data.folder={folder}/data", f"output_dir={folder}/runs", f"train.max_steps={options.steps}"]
    words += ["emissions.enabled=false", *options.words]
    try:
        config = load_config(PROJECT_ROOT / "configs" / "quickstart.yaml", words)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "quickstart.yaml").write_text(dump_config(config), encoding="utf-8")
    for stage in STAGES:
        run_stage(stage, folder / "quickstart.yaml", [])
    tasks = itertools.product(ARCHITECTURES, PRECISIONS, options.seeds)
    with ThreadPoolExecutor(options.at_once) as pool:
        curves = pool.map(partial(train, folder / "quickstart.yaml", options.every), *zip(*tasks, strict=True))
        points = [point for curve in curves for point in curve]
    with open(folder / "curves.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([Point._fields, *points])
    (folder / "table.md").write_text(table(points), encoding="utf-8")
    draw(points, folder / "curves.png")
    print(table(points))


if __name__ == "__main__":
    main()
