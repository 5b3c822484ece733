"""Measure the speed and memory of RetLab and of the peers that are installed, in one run on this machine:

    python src/benchmark_speed.py
    python src/benchmark_speed.py CONFIG [key.path=value ...] --peers torchscale,llama --output FOLDER

Without CONFIG a RetNet, a Transformer and a LongNet are measured at fixed sizes: 242, 187 and 187 million parameters
on a GPU, small ones on a CPU. With it, the model, window and micro-batch of that configuration, and peers of the same
sizes. Leaves benchmark.csv, benchmark.md and benchmark.png in the place of those of an earlier run; the first two are
written anew after every measurement.

    python src/benchmark_speed.py [CONFIG [key.path=value ...]] --devices 2

measures instead the first of these trainings in one process and in several, by DDP and by FSDP, at the same batch per
process, and leaves devices.csv and devices.md.
"""

import argparse
import shlex
import sys
from pathlib import Path

import retlab.script_start  # noqa: F401
from retlab.command import Parser, run_command
from retlab.config import ExperimentConfig, load_config
from retlab.errors import UserError
from retlab.section import PROJECT_ROOT, shown_path
from retlab.training.settings import TrainSection

DEFAULT_OUTPUT = PROJECT_ROOT / "runs" / "benchmark_speed"
PEERS_HELP = "some of torchscale,flash-linear-attention,llama, or none; default all that are installed"


def read_command_line() -> argparse.Namespace:
    """The options, `config` with its overrides in it or None."""
    parser = Parser("%(prog)s [CONFIG [key.path=value ...]] [options]")
    parser.add_argument("config", metavar="CONFIG", nargs="?", help="measure this experiment's model and shapes")
    parser.add_argument("rest", metavar="key.path=value", nargs="*", help="overrides of the configuration")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), help="where to measure; auto takes a GPU")
    parser.add_argument("--devices", metavar="N", type=int, help="measure training on N GPUs against one, nothing else")
    parser.add_argument("--peers", metavar="NAMES", help=PEERS_HELP)
    parser.add_argument("--measure", metavar="KINDS", help="some of training,loader,generation; default all")
    parser.add_argument("--output", metavar="FOLDER", type=Path, help=f"default {shown_path(DEFAULT_OUTPUT)}")
    options, unknown = parser.parse_known_intermixed_args()
    parser.refuse_unknown([*unknown, *(word for word in options.rest if "=" not in word)], ["CONFIG", "key.path=value"])
    if options.config is not None and "=" in options.config and not Path(options.config).exists():
        raise UserError(f"command line: the experiment's YAML file comes first, before {options.config}")
    return options


def main() -> None:
    """Measure everything, and say where the results lie."""
    options = read_command_line()
    config = None if options.config is None else load_config(options.config, options.rest)
    train = TrainSection() if config is None else config.train
    if options.device is not None:
        train = train.model_copy(update={"device": options.device})
    # Imported here, so that a wrong command line is answered at once.
    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("command line: --device is cuda, but torch sees no GPU here; take cpu, or check the driver")
    if options.devices is not None:
        measure_devices(options, config, train)
        return
    from retlab.benchmark.run import run_benchmark

    run_benchmark(config, train, options.peers, options.measure, output_folder(options), command_line())


def measure_devices(options: argparse.Namespace, config: ExperimentConfig | None, train: TrainSection) -> None:
    """Training in one process and in several."""
    from retlab.benchmark.plan import default_plan, plan_of
    from retlab.benchmark.several import run_several
    from retlab.training.hardware import choose_hardware

    if options.devices < 2:
        raise UserError(f"command line: --devices is {options.devices}, but it compares one GPU with 2 or more")
    named = [option for option in ("peers", "measure") if getattr(options, option) is not None]
    if named:
        raise UserError(f"command line: --devices measures RetLab's training alone; leave --{named[0]} out")
    hardware = choose_hardware(train.model_copy(update={"devices": options.devices, "num_nodes": 1}))
    if config is None:
        plan = default_plan(hardware.device, train)
    else:
        plan = plan_of(config.model_copy(update={"train": train}), hardware.device)
    run_several(plan, hardware, output_folder(options), command_line())


def command_line() -> str:
    """How this was started, as a user would."""
    return shlex.join(["bash", "scripts/benchmark_speed.sh", *sys.argv[1:]])


def output_folder(options: argparse.Namespace) -> Path:
    """Where the results go."""
    return (options.output or DEFAULT_OUTPUT).expanduser().absolute()


if __name__ == "__main__":
    run_command(main, "what was measured lies in the output folder")
