"""Measure one retention layer of RetLab beside TorchScale's, on one thread of this machine's CPU:

    python src/benchmark_retention_layer.py
    python src/benchmark_retention_layer.py --tokens 512 --memory-tokens 0

Forward and backward at width 512, 8 heads, batch 1: fewest CPU milliseconds of some rounds, and peak memory, each
beside what the project asks for. A missed floor is a number in the table and no error. The memory of TorchScale's
parallel form at 8,192 tokens is 7 GB and takes a minute.
"""

import importlib.util

import retlab.script_start  # noqa: F401
from retlab.command import Parser, run_command
from retlab.errors import UserError


def main() -> None:
    """Measure and print one table."""
    parser = Parser("%(prog)s [options]")
    parser.add_argument("--tokens", type=int, default=2048, help="a multiple of 512; default 2048")
    parser.add_argument("--rounds", type=int, default=8, help="steps of each layer, of which the fastest counts")
    parser.add_argument("--memory-tokens", type=int, default=8192, help="length of the memory's step; 0 for none")
    options, unknown = parser.parse_known_args()
    parser.refuse_unknown(unknown, [])
    for name, value, least in (("tokens", options.tokens, 512), ("memory-tokens", options.memory_tokens, 0)):
        if value < least or value % 512:
            raise UserError(f"command line: --{name} is {value}, but must be a multiple of 512, TorchScale's chunk")
    if options.rounds < 1:
        raise UserError(f"command line: --rounds is {options.rounds}, but must be at least 1")
    if importlib.util.find_spec("torchscale") is None:
        raise UserError("torchscale is not installed; run: pip install --no-deps torchscale==0.3.0 einops")
    from retlab.benchmark.retention_layer import contestants, measure, table

    memory_tokens = options.memory_tokens or None
    lines = []
    for line in measure(contestants(), options.tokens, options.rounds, memory_tokens):
        lines.append(line)
        print(f"[benchmark_retention_layer] {line.contestant.name}: measured", flush=True)
    print(table(lines, options.tokens, memory_tokens))


if __name__ == "__main__":
    run_command(main, "nothing is kept of it")
