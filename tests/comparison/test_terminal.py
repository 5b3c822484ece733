"""The comparison as text and as a command: numbers, width, notes, and what cannot be compared."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.comparison.made_runs import METHOD, write_run
from tests.forked import Script

from retlab.comparison.report import compare
from retlab.comparison.runs import read_run, read_runs
from retlab.comparison.terminal import to_text
from retlab.comparison.writing import WIDTH
from retlab.errors import EXIT_INTERRUPTED, UserError
from retlab.section import PROJECT_ROOT

SCRIPT = PROJECT_ROOT / "src" / "compare_runs.py"


def text_of(*folders: Path) -> str:
    runs = read_runs(folders)
    return to_text(compare(runs, runs[0]))


def flat(text: str) -> str:
    return " ".join(text.split())


def test_the_table_has_every_number_and_fits_the_terminal(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name, worse) for name, worse in (("quickstart-retnet", 0.0), ("transformer", 0.25))]
    text = text_of(*folders)
    assert max(map(len, text.splitlines())) <= WIDTH
    row = next(line.split() for line in text.splitlines() if line.startswith("quickstart-retnet "))
    assert row == ["quickstart-retnet", "1,234,567", "4.0000*", "54.60*", "1.4427*", "400", "0.75000", "0.18750"]
    assert next(line.split() for line in text.splitlines() if line.startswith("xz")) == ["xz", "1.3880"]
    for word in ("nats/token", "bits per byte", "tokens/s", "kWh", "kg CO2e", "bigram counts", METHOD, "* the better"):
        assert word in flat(text)
    assert "transformer +0.2500 +0.2500 +0.2500 nats/token 40" in flat(text)
    assert "choice, acc, 0 shots 0.5000 ±0.012* 0.4750 ±0.012" in flat(text)
    assert "rolling, bits_per_byte, 0 shots 1.9000* 2.1500" in flat(text), "fewer bits are better"
    assert "4,096 x 1: transformer, no cache: 4,096 tokens do not fit in memory" in flat(text)


def test_samples_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    text = text_of(write_run(tmp_path / "a"))
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "  | def read(path):\n  |     return " in text


def test_runs_that_do_not_compare_are_named(tmp_path: Path) -> None:
    changed = write_run(tmp_path / "e")
    results = json.loads((changed / "results.json").read_text())
    results["settings"] |= {"sequence_length": 64, "precision": "bf16"}
    results["reference_points"]["bigram"]["train_tokens"] = 7
    (changed / "results.json").write_text(json.dumps(results))
    folders = [
        write_run(tmp_path / "a"), write_run(tmp_path / "b", -1.0, tokens=20),
        write_run(tmp_path / "c", -1.0, text="other"), write_run(tmp_path / "d"), changed,
    ]  # fmt: skip
    text = text_of(*folders)
    assert "e was trained on other text: the unigram and bigram counts are those of a." in flat(text)
    assert "e was evaluated with data.sequence_length 64, a with 256" in flat(text)
    assert "e was evaluated in bf16, a in float32" in flat(text)
    assert "d was" not in text
    said = "b has another tokenizer than a: compare bits per byte; its loss and perplexity, which are per token"
    assert said in flat(text)
    assert "c was tested on other text (40 documents, 4,000 bytes): do not compare its loss" in flat(text)
    assert "c: no document's loss to pair with one of a." in flat(text)
    lines = {line.split()[0]: line.split() for line in text.split("\n\n")[0].splitlines()}
    assert lines["b"][2] == "0.8656*", "no loss; the fewest bits per byte of those with the same text"
    assert lines["c"][2] == "3.0000", "a loss, without a mark"
    bits = [line for line in text.splitlines() if line.startswith("b ") and "bits/byte" in line]
    assert bits, "other tokens are paired in bits per byte"


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    lines = text_of(*(write_run(tmp_path / folder / "mine") for folder in ("here", "there"))).splitlines()
    assert [line.split()[0] for line in lines[3:5]] == ["here/mine", "there/mine"]
    # Two checkouts of the same experiment.
    folders = [write_run(tmp_path / checkout / "runs" / "mine") for checkout in ("a", "b")]
    assert [run.name for run in read_runs(folders)] == ["a/runs/mine", "b/runs/mine"]
    assert "b/runs/mine +0.0000" in flat(text_of(*folders))


def test_long_names_are_told_apart_by_both_ends(tmp_path: Path) -> None:
    name = "an-experiment-with-a-name-that-nobody-should-give-to-any-experiment-at-all-"
    lines = text_of(*(write_run(tmp_path / f"{name}{number}") for number in (1, 2))).split("Where")[0].splitlines()
    assert max(map(len, lines)) <= WIDTH
    named = {line.split()[0] for line in lines if line.startswith("an-experiment")}
    assert {f"an-experiment-with-a...y-experiment-at-all-{number}" for number in (1, 2)} <= named


def test_rows_without_a_value_are_not_repeated_below(tmp_path: Path) -> None:
    table = text_of(write_run(tmp_path / ("x" * 60))).split("* the better")[0]
    assert "kWh" in table.split("\n\n")[1], "the last columns stand below"
    assert table.count("uniform guess") == 1


def test_what_a_run_lacks_is_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    for place in ("emissions", "evaluation", "model"):
        shutil.rmtree(folder / place)
    (folder / "config.yaml").unlink()
    results = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps({key: results[key] for key in ("model", "settings", "test")}))
    # A kill while a line was written.
    with open(folder / "metrics.csv", "a") as file:
        file.write("110,11")
    assert math.isclose(read_run(folder).tokens_per_second or 0, 400)
    (folder / "metrics.csv").unlink()
    row = next(line.split() for line in text_of(folder).splitlines() if line.startswith("a "))
    assert row == ["a", "1,234,567", "4.0000", "54.60", "1.4427"]
    only = write_run(tmp_path / "only-latency")
    results = json.loads((only / "results.json").read_text())
    (only / "results.json").write_text(json.dumps({key: results[key] for key in ("model", "latency")}))
    assert "only-latency was not tested on text" in flat(text_of(only, folder))


def test_folders_that_are_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere is no run folder; run bash .*06_evaluate_model.sh"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is not evaluated"):
        read_run(tmp_path)
    half = write_run(tmp_path / "half")
    (half / "results.json").write_text((half / "results.json").read_text()[:200])
    with pytest.raises(UserError, match="half is not evaluated"):
        read_run(half)


def run(*words: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(SCRIPT), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.component
def test_command(tmp_path: Path) -> None:
    first, second = write_run(tmp_path / "first"), write_run(tmp_path / "second", 0.5)
    good = run(first, second)
    assert (good.returncode, good.stderr) == (0, "")
    assert good.stdout == text_of(first, second) + "\n"
    # The baseline comes first, whether it is among the runs or not.
    other = run(first, "--baseline", second)
    assert other.stdout == text_of(second, first) + "\n"
    assert run(first, second, "--baseline", second).stdout == other.stdout
    told = json.loads(run(first, second, "--json").stdout)
    assert told["baseline"] == "first"
    assert told["tables"]["difference from the baseline"][0]["difference"] == pytest.approx(0.5)
    assert told["tables"]["summary"][1]["test loss (nats/token)"] == pytest.approx(4.5)
    assert told["tables"]["summary"][0]["bits/byte"] == pytest.approx(1 / math.log(2))


def test_json_has_no_numbers_that_json_does_not_know(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    with open(folder / "metrics.csv", "a") as file:
        file.write("110,11000,nan,inf,30,1\n")
    told = json.loads(run(folder, "--json").stdout, parse_constant=pytest.fail)
    assert told["tables"]["learning curve of a"][-1]["training loss (nats/token)"] is None


@pytest.mark.component
def test_ctrl_c_is_no_traceback(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "results.json")
    process = Script(SCRIPT, str(tmp_path))
    # Opened here as soon as it is read there.
    with open(tmp_path / "results.json", "wb"):
        process.send_signal(signal.SIGINT)
        assert process.wait() == EXIT_INTERRUPTED
    assert process.communicate()[0] == "interrupted: SIGINT received; run the same command again\n"


@pytest.mark.component
def test_wrong_words_are_a_sentence(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for words, sentence in (
        ([], "RUN_FOLDER is missing"),
        ([folder, tmp_path], "is not evaluated"),
        ([folder, folder], "is named twice"),
        ([folder, "--baseline", tmp_path / "none"], "is no run folder"),
        ([folder, "--output", tmp_path / "full"], "holds other files"),
        ([folder, "--output", tmp_path / "file"], "is a file"),
        ([folder, "--output", tmp_path / "page.html"], "names a file; name a folder"),
        ([folder, "--outptu", tmp_path / "page"], "did you mean --output?"),
    ):
        bad = run(*words)
        assert (bad.returncode, bad.stdout) == (2, ""), bad.stderr
        assert bad.stderr.startswith("error: ")
        assert sentence in bad.stderr
        assert "Traceback" not in bad.stderr
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"
    assert not (tmp_path / "page.html").exists()


@pytest.mark.component
def test_it_starts_without_torch() -> None:
    heavy = "{'torch', 'transformers', 'pyarrow', 'codecarbon', 'matplotlib'}"
    code = f"import sys, retlab.comparison.terminal; print({heavy} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"
