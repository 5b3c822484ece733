"""Measure the speed and memory of RetLab and of the peers that are installed, in one run on this machine:

    python src/benchmark_speed.py
    python src/benchmark_speed.py CONFIG [key.path=value ...] --peers torchscale,llama --output FOLDER

Without CONFIG a RetNet and a Transformer are measured at fixed sizes: 242 and 187 million parameters on a GPU, small
ones on a CPU. With it, the model, window and micro-batch of that configuration, and peers of the same sizes. Leaves
benchmark.csv and benchmark.md, which grow with every measurement, and benchmark.png.
"""

import argparse
import shlex
import sys
from pathlib import Path

from retlab.command import Parser, run_command
from retlab.config import load_config
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
    parser.add_argument("--peers", metavar="NAMES", help=PEERS_HELP)
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
    from retlab.benchmark.run import run_benchmark

    words = ["bash", "scripts/benchmark_speed.sh", *sys.argv[1:]]
    output = (options.output or DEFAULT_OUTPUT).expanduser().absolute()
    run_benchmark(config, train, options.peers, output, shlex.join(words))


if __name__ == "__main__":
    run_command(main, "what was measured lies in the output folder")
