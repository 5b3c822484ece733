"""What people see of latency and memory: the table, the pictures, the files."""

from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from retlab.evaluation.latency.plots import write_plots
from retlab.evaluation.latency.rows import NO_CACHE, LatencyRow, read_rows, write_rows
from retlab.evaluation.latency.table import WIDTH, latency_table


def a_row(method: Any = "recurrent", context: int = 256, batch: int = 1, slowness: float = 1.0) -> LatencyRow:
    measured = {
        "prefill_median_s": 0.02 * slowness, "prefill_p95_s": 0.03 * slowness, "decode_median_s": 0.004 * slowness,
        "decode_p95_s": 0.005 * slowness, "peak_memory_bytes": int(9_000_000 * slowness),
        "state_bytes_per_sequence": None if method == NO_CACHE else 98_304,
    }  # fmt: skip
    return LatencyRow("mine", method, "cpu, 1 thread", "float32", batch, context, 32, 5, **measured)


def refused(method: Any = "recurrent", context: int = 2**31 - 1, batch: int = 1) -> LatencyRow:
    status = "not tried: a trial would take 6060 h 35 min or longer, and evaluate.latency.longest_trial_seconds is 120"
    return LatencyRow("mine", method, "cpu, 1 thread", "float32", batch, context, 32, 0, status=status)


ROWS = [
    a_row(), a_row(context=4096), refused(), a_row(NO_CACHE, slowness=7), a_row(NO_CACHE, 4096, slowness=0.5),
    refused(NO_CACHE),
]  # fmt: skip


def test_the_file_gives_back_what_was_written(tmp_path: Path) -> None:
    file = tmp_path / "latency.csv"
    file.write_text(write_rows(ROWS))
    assert read_rows(file) == ROWS
    assert file.read_text().splitlines()[0] == (
        "model,method,device,precision,batch_size,context,new_tokens,trials,prefill_median_s,prefill_p95_s,"
        "decode_median_s,decode_p95_s,peak_memory_bytes,state_bytes_per_sequence,status"
    )


def test_numbers_stand_below_each_other() -> None:
    table = latency_table(ROWS)
    rules = [number for number, line in enumerate(table) if line.startswith("----")]
    body = [line for line in table[rules[0] + 1 : rules[1]] if line and line.split()[-1].replace(".", "").isdigit()]
    by_recurrence = [line for line in body if line.startswith("recurrent")]
    assert [line.split() for line in by_recurrence] == [
        ["recurrent", "1", "256", "*20.0", "30.0", "*4.000", "5.000", "*8.583", "0.094"],
        ["recurrent", "1", "4,096", "20.0", "30.0", "4.000", "5.000", "8.583", "0.094"],
    ]
    assert len({len(line) for line in [table[rules[0]], *by_recurrence]}) == 1
    titles = table[rules[0] - 1]
    assert titles.split() == ["method", "batch", "context", "median", "95", "%", "median", "95", "%", "peak", "state"]
    assert [part.strip() for part in table[rules[0] - 2].split("  ") if part] == [
        "first token, ms", "time per token, ms", "memory, MiB",
    ]  # fmt: skip


def test_the_lowest_is_marked_where_methods_compare() -> None:
    lines = [line for line in latency_table(ROWS) if line.startswith(("recurrent", "no cache")) and "." in line]
    assert [line.count("*") for line in lines if "not tried" not in line][:4] == [3, 0, 0, 3]
    alone = latency_table([a_row(), a_row(NO_CACHE, context=512), refused(NO_CACHE, 256)])
    assert not any("*" in line for line in alone)


@pytest.mark.parametrize("slowness", [1e-3, 1.0, 1e4])
def test_nothing_is_wider_than_a_terminal(slowness: float) -> None:
    rows = [
        *(a_row(context=context, batch=2**20, slowness=slowness) for context in (1, 2**31 - 1)),
        refused(batch=2**20), a_row(NO_CACHE, 2**31 - 1, 2**20, slowness=slowness),
    ]  # fmt: skip
    assert max(map(len, latency_table(rows))) <= WIDTH
    assert max(map(len, latency_table([refused()]))) <= WIDTH


def test_pictures_of_one_and_of_several_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **named: (figures.append(self), save(self, *a, **named))[1])
    transformer = [
        a_row("cache", context, batch, slowness=context / 256) for batch in (1, 8) for context in (256, 4096)
    ]
    runs = {"retnet": ROWS, "transformer": transformer, "broken": [refused()]}
    for shown in ({"retnet": ROWS}, {"retnet": ROWS[:1]}, runs):
        write_plots(shown, tmp_path)
        assert all(
            (tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in ("time_per_token.png", "memory.png")
        )
    for figure in figures[-2:]:
        (legend,) = figure.legends
        assert [text.get_text() for text in legend.get_texts()] == [
            "retnet, recurrent, batch 1", "retnet, no cache, batch 1", "transformer, cache, batch 1",
            "transformer, cache, batch 8",
        ]  # fmt: skip
    times = figures[-2].axes[0]
    assert [times.get_xscale(), times.get_yscale()] == ["log", "log"]
    assert [text.get_text() for text in times.get_xticklabels()] == ["256", "4,096"]
    assert list(times.containers[0].lines[0].get_ydata()) == [4.0, 4.0]
    # The cache of a sequence is the same at every batch size.
    assert len(figures[-1].axes[1].containers) == 2


def test_no_picture_without_numbers(tmp_path: Path) -> None:
    write_plots({"mine": [refused()]}, tmp_path)
    assert list(tmp_path.iterdir()) == []
