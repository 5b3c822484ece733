"""What follows from the measured numbers, by hand."""

import dataclasses

import pytest

from retlab.benchmark.plot import to_png
from retlab.benchmark.processes import Machine
from retlab.benchmark.report import complete, ratio_lines, table, to_csv
from retlab.benchmark.row import DECODE, FORWARD, LOADER, PREFILL, TRAINING, Row

ROWS = [
    Row(TRAINING, "RetNet", "RetLab", 8, 2048, 240_000.0, 68.0, flops_per_token=1.5e9),
    Row(TRAINING, "RetNet", "torchscale, eager", 8, 2048, 80_000.0, 204.0, flops_per_token=1.5e9),
    Row(TRAINING, "RetNet", "torchscale, eager", 2, 8192, remark="out of memory | here"),
    Row(TRAINING, "RetNet", "RetLab", 2, 8192, 228_000.0, 71.0, flops_per_token=1.5e9),
    Row(FORWARD, "RetNet", "RetLab", 8, 2048, 700_000.0, 20.0),
    Row(LOADER[0], "RetNet", "RetLab", 8, 2048, 199_000.0, 80.0),
    Row(LOADER[1], "RetNet", "RetLab", 8, 2048, 200_000.0, 80.0),
    Row(PREFILL, "RetNet", "RetLab", 1, 2048, 770_000.0, 2.6),
    Row(DECODE, "RetNet", "RetLab", 1, 256, 2000.0, 0.5, weight_bytes=500_000_000),
    Row(DECODE, "RetNet", "RetLab", 1, 2048, 1900.0, 0.53, weight_bytes=500_000_000),
    Row(DECODE, "Transformer", "transformers Llama", 1, 2048, 19.0, 53.0, weight_bytes=300_000_000),
]
MACHINE = Machine(product_flops=8e14, copied_bytes=2.5e12)


def test_utilisation_ratio_and_weight_readings_by_hand() -> None:
    rows = complete(ROWS, MACHINE)
    assert rows[0].model_flops_utilization == pytest.approx(240_000 * 1.5e9 / 8e14)
    assert (rows[0].retlab_ratio, rows[1].retlab_ratio) == (None, 3.0)
    # Reading 0.5 GB at 2.5 TB/s takes 0.2 ms.
    assert rows[8].weight_readings == pytest.approx(2.5)
    assert rows[2] == ROWS[2]
    assert complete(ROWS, None)[0].model_flops_utilization is None


def test_ratios_between_rows() -> None:
    assert ratio_lines(complete(ROWS, MACHINE)) == [
        "RetNet, training, 8,192 over 2,048 tokens: 0.950 (2 x 8,192 over 8 x 2,048)",
        "RetNet, decode, 2,048 over 256 tokens: 0.950 (batch 1)",
        "RetNet, training: loader over training: constant: 0.995 (8 x 2,048)",
        "RetNet, prefill over training: forward: 1.100 (1 x 2,048 over 8 x 2,048)",
        "RetNet, decode, over transformers Llama: 100.000 (1 x 2,048)",
    ]


def test_a_failed_row_stands_in_table_csv_and_picture() -> None:
    rows = complete(ROWS, MACHINE)
    assert "out of memory / here |" in table(rows)
    assert len({len(line) for line in table(rows).splitlines()}) == 1, "columns are aligned"
    assert "torchscale, eager" in to_csv(rows)
    assert to_png(rows, "title").startswith(b"\x89PNG")
    assert to_png([], "nothing was measured").startswith(b"\x89PNG")
    assert to_png([dataclasses.replace(ROWS[2])], "all failed").startswith(b"\x89PNG")
