"""The whole command, tiny: everything about its output, nothing about time."""

import csv
import re
import subprocess
from pathlib import Path

import pytest
import torch
import yaml
from tests.benchmark.sizes import MODELS
from tests.conftest import environment

from retlab.benchmark.report import COLUMNS
from retlab.section import PROJECT_ROOT

pytestmark = pytest.mark.component
SCRIPT = PROJECT_ROOT / "scripts" / "benchmark_speed.sh"
# Without CONFIG the sizes of a real measurement are taken; this is a model that takes seconds.
CONFIG = {
    "name": "tiny",
    "data": {"sequence_length": 32},
    "tokenizer": {"vocab_size": 300},
    "model": MODELS["retnet"],
    "train": {"batch_size": 8, "micro_batch_size": 2, "device": "cpu"},
}


def run(*words: str | Path, cwd: Path) -> "subprocess.CompletedProcess[str]":
    command = ["bash", str(SCRIPT), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=cwd)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the printed text of one run."""
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    answer = run("tiny.yaml", "data.loader_workers=0", "--output", "results", cwd=folder)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert "Traceback" not in answer.stderr
    return folder / "results", answer.stdout


@pytest.fixture(scope="module")
def rows(finished: tuple[Path, str]) -> list[dict[str, str]]:
    with open(finished[0] / "benchmark.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def markdown_cells(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines if not set(line) <= set("|-: ")]


def test_every_measurement_has_its_rows_and_numbers(rows: list[dict[str, str]]) -> None:
    found = {(row["measurement"], row["implementation"], row["batch"], row["tokens"]) for row in rows}
    ours = [("training", "2", "32"), ("training: forward", "2", "32"), ("training: loader", "2", "32"),
            ("training: constant", "2", "32"), ("loader alone", "2", "32"), ("tokeniser", "", "")]  # fmt: skip
    shapes = [(batch, tokens) for batch in ("1", "4") for tokens in ("8", "32", "128")]
    ours += [(name, *shape) for shape in shapes for name in ("prefill", "decode", "decode: first 64 tokens")]
    expected = {(name, "RetLab", batch, tokens) for name, batch, tokens in ours}
    assert found == expected | {("training", "torchscale, eager", "2", "32")}
    for row in rows:
        if row["measurement"].startswith("decode") and row["remark"]:
            continue
        assert float(row["tokens_per_second"]) > 0, row
        if row["measurement"].startswith(("training", "prefill", "decode")):
            assert row["model"] == "RetNet 48.0 k"
            assert float(row["milliseconds"]) > 0
    decode = {row["tokens"]: row for row in rows if row["measurement"] == "decode" and row["batch"] == "4"}
    measured = [float(row["state_mib"]) for row in decode.values() if row["state_mib"]]
    # Two layers, 4 rows, 2 heads of key width 16 and value width 32, float32, whatever the context.
    assert set(measured) == {2 * 4 * 2 * 16 * 32 * 4 / 2**20}
    own = next(row for row in rows if (row["measurement"], row["implementation"]) == ("training", "RetLab"))
    peer = next(row for row in rows if row["implementation"].startswith("torchscale"))
    ratio = float(own["tokens_per_second"]) / float(peer["tokens_per_second"])
    assert float(peer["retlab_ratio"]) == pytest.approx(ratio)


def test_flops_and_utilisation_by_hand(finished: tuple[Path, str], rows: list[dict[str, str]]) -> None:
    # Retention: q, k of 32, v and gate of 64, out; GLU of 64; norms 32 each; final norm. Two layers. Head 300 x 32.
    layer = 32 * (32 + 32 + 64 + 64) + 64 * 32 + 3 * 32 * 64 + 2 * 32
    core = 2 * (2 * 16 * (32 + 64) + 4 * 16 * 64)
    flops = 6 * (2 * layer + 32 + 300 * 32) + 3 * core
    text = (finished[0] / "benchmark.md").read_text()
    rate = float(re.search(r"measured first: ([\d.,]+) TFLOP/s", text)[1].replace(",", ""))
    for row in rows:
        if row["measurement"] in ("training", "training: loader", "training: constant"):
            assert float(row["flops_per_token"]) == flops
            share = float(row["tokens_per_second"]) * flops / (rate * 1e12)
            assert float(row["model_flops_utilization"]) == pytest.approx(share, rel=0.01)
    assert "MFU = tokens/s x FLOPs per token" in text
    assert f"RetNet 48.0 k at T = 32: {flops / 1e6:,.1f} million" in text


def test_markdown_and_csv_hold_the_same_numbers(finished: tuple[Path, str], rows: list[dict[str, str]]) -> None:
    text = (finished[0] / "benchmark.md").read_text()
    titles, *lines = markdown_cells(text)
    assert len(lines) == len(rows)
    columns = {column.title: column for column in COLUMNS}
    for cells, row in zip(lines, rows, strict=True):
        for title, cell in zip(titles, cells, strict=True):
            value = row[columns[title].key]
            if value == "":
                assert cell == ""
            elif columns[title].show is str:
                assert cell == value.replace("|", "/")
            else:
                number = int(value) if title in ("batch", "tokens") else float(value)
                assert cell == columns[title].show(number)
    for unit in ("tokens/s", "ms", "MFU", "peak GiB", "state MiB"):
        assert unit in titles
    assert all(line in finished[1] for line in text.splitlines() if line.startswith("|")), "the table is printed too"


def test_the_report_names_machine_versions_command_and_what_is_missing(finished: tuple[Path, str]) -> None:
    text = (finished[0] / "benchmark.md").read_text()
    for part in ("CPU, ", "float32", f"torch {torch.__version__}", "transformers 5.", "torchscale 0.3.0",
                 "tiny.yaml data.loader_workers=0 --output results", "flash-linear-attention: "):  # fmt: skip
        assert part in text, part
    assert "RetNet 48.0 k, training: loader over training: constant: " in text
    assert "RetNet 48.0 k, prefill over training: forward: " in text


def test_the_picture_can_be_opened(finished: tuple[Path, str]) -> None:
    from matplotlib import image

    picture = image.imread(finished[0] / "benchmark.png")
    assert picture.shape[0] >= 600
    assert picture.std() > 0.05
    assert sorted(path.name for path in finished[0].iterdir()) == ["benchmark.csv", "benchmark.md", "benchmark.png"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["no.yaml"], "no.yaml"),
        (["seed=3"], "the experiment's YAML file comes first"),
        (["--peer", "llama"], "--peer is not understood (did you mean --peers?)"),
        (["--device", "gpu"], "--device"),
        (["--peers", "torchscal"], "there is no peer 'torchscal' (did you mean torchscale?)"),
        (["--peers", "fla"], "there is no peer 'fla' (did you mean flash-linear-attention?)"),
        (["--measure", "speed"], "there is no measurement 'speed'"),
        ([str(PROJECT_ROOT / "configs" / "quickstart.yaml"), "model.retention_kernel=fla", "--device", "cpu"], "fla"),
        pytest.param(["--device", "cuda"], "torch sees no GPU here",
                     marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(words: list[str], sentence: str, tmp_path: Path) -> None:
    answer = run(*words, "--output", tmp_path / "results", cwd=tmp_path)
    assert (answer.returncode, answer.stderr.count("\n"), answer.stdout) == (2, 1, ""), answer.stderr
    assert answer.stderr.startswith("error: ")
    assert sentence in answer.stderr
    assert not (tmp_path / "results").exists()


def test_where_nothing_can_be_measured_earlier_results_stay(tmp_path: Path) -> None:
    (tmp_path / "benchmark.csv").write_text("earlier")
    config, words = str(PROJECT_ROOT / "configs" / "quickstart.yaml"), ["--measure", "training", "--peers", "none"]
    answer = run(config, "model.hidden_size=10000000", *words, "--device", "cpu", "--output", tmp_path, cwd=tmp_path)
    assert answer.returncode == 2
    assert answer.stderr == "error: nothing could be measured: out of memory\n"
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("benchmark.csv", "earlier")]
