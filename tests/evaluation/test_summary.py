"""The closing table: its numbers, its width, its notes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from retlab.emissions_rows import COLUMNS, claim_row_file, write_row
from retlab.errors import UserError
from retlab.evaluation.summary import WIDTH, read_run, summary
from retlab.section import PROJECT_ROOT

METHOD = "cpu estimated from its load and a constant TDP of 16 W; ram estimated from its size"


def write_run(
    folder: Path,
    tokens: int = 1000,
    text_bytes: int = 3000,
    train_tokens: int = 9000,
    settings: dict[str, Any] | None = None,
    **test: Any,
) -> Path:
    folder.mkdir(parents=True)
    numbers = {"loss": 4.0, "perplexity": 54.598, "bits_per_byte": 1.7654321, "documents": 36, **test}
    results: dict[str, Any] = {
        "model": {"architecture": "retnet", "parameters": 1_234_567, "vocab_size": 2048},
        "settings": {
            "test_text_sha256": str(text_bytes),
            "sequence_length": 256,
            "packing": "packed",
            "reset_at_documents": True,
            **(settings or {}),
        },
        "test": {**numbers, "tokens": tokens, "bytes": text_bytes},
        "reference_points": {
            "uniform": {"loss": 7.62, "perplexity": 2048.0, "bits_per_byte": 3.66},
            "unigram": {"loss": 6.1, "perplexity": 445.9, "bits_per_byte": 2.946},
            "bigram": {"loss": 3.9, "perplexity": 49.4, "bits_per_byte": 1.875},
            "gzip": {"bits_per_byte": 1.799},
            "xz": {"bits_per_byte": 1.388},
        },
    }
    results["reference_points"]["unigram"]["train_tokens"] = train_tokens
    (folder / "results.json").write_text(json.dumps(results))
    sample = {"prompt": "def read(", "continuation": "path):\n\treturn \x1b[31m" + "x" * 300, "seed": 0}
    (folder / "evaluation" / "samples").mkdir(parents=True)
    (folder / "evaluation" / "samples" / "samples.json").write_text(json.dumps([sample]))
    (folder / "metrics.csv").write_text(
        "step,tokens,validation_loss,seconds\n10,1000,,1.0\n20,9000,,2.0\n20,9000,4.1,\n"
    )
    for energy in (0.5, 0.25):
        file, attempt = claim_row_file(folder, "train_model")
        row: dict[str, Any] = dict.fromkeys(COLUMNS, "") | {"attempt": attempt, "status": "complete"}
        write_row(file, row | {"energy_kwh": energy, "emissions_kg_co2e": energy / 4, "power_method": METHOD})
    return folder


def test_table_has_every_number_and_fits_the_terminal(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / name)) for name in ("quickstart-retnet", "quickstart-transformer")]
    text = summary(runs)
    lines = text.splitlines()
    assert max(map(len, lines)) <= WIDTH
    row = next(line.split() for line in lines if line.startswith("quickstart-retnet "))
    assert row == ["quickstart-retnet", "1,234,567", "4.0000", "54.60", "1.7654", "4,500", "0.75000", "0.18750"]
    assert next(line.split() for line in lines if line.startswith("gzip -9")) == ["gzip", "-9", "1.7990"]
    assert next(line.split() for line in lines if line.startswith("uniform")) == [
        "uniform", "guess", "7.6200", "2,048.00", "3.6600"
    ]  # fmt: skip
    for word in ("nats/token", "bits per byte", "tokens/s", "kWh", "kg CO2e", "bigram counts", "xz", METHOD):
        assert word in " ".join(text.split())
    ends = {line.rstrip().rfind(".") for line in lines if line.startswith(("gzip", "xz"))}
    assert len(ends) == 1


def test_samples_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    text = summary([read_run(write_run(tmp_path / "a"))])
    assert "\x1b" not in text
    assert "  | def read(path):\n  |     return " in text


def test_runs_that_do_not_compare_are_named(tmp_path: Path) -> None:
    runs = [
        read_run(write_run(tmp_path / "a")),
        read_run(write_run(tmp_path / "b", tokens=900)),
        read_run(write_run(tmp_path / "c", text_bytes=77)),
        read_run(write_run(tmp_path / "d")),
        read_run(write_run(tmp_path / "e", train_tokens=7000, settings={"sequence_length": 64})),
    ]
    text = " ".join(summary(runs).split())
    assert "e was trained on other text: the unigram and bigram counts are those of a." in text
    assert "e was evaluated with data.sequence_length 64, a with 256" in text
    assert "d was" not in text
    assert "b has another tokenizer: compare bits per byte" in text
    assert "c was tested on other text (77 bytes)" in text


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    lines = summary([read_run(write_run(tmp_path / folder / "mine")) for folder in ("here", "there")]).splitlines()
    assert [line.split()[0] for line in lines[3:5]] == ["here/mine", "there/mine"]


def test_long_names_are_cut(tmp_path: Path) -> None:
    name = "an-experiment-with-a-name-that-nobody-should-give-to-an-experiment"
    lines = summary([read_run(write_run(tmp_path / name))]).split("\n\n")[0].splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert any(line.startswith("an-experiment") and "...  " in line for line in lines)


def test_run_without_emissions_speed_and_reference_points(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    samples = folder / "evaluation" / "samples" / "samples.json"
    for file in [*(folder / "emissions").iterdir(), folder / "metrics.csv", samples]:
        file.unlink()
    results = json.loads((folder / "results.json").read_text())
    del results["reference_points"]
    (folder / "results.json").write_text(json.dumps(results))
    lines = summary([read_run(folder)]).splitlines()
    assert next(line.split() for line in lines if line.startswith("a ")) == [
        "a",
        "1,234,567",
        "4.0000",
        "54.60",
        "1.7654",
    ]


def test_folder_without_results(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere is no run folder; run bash .*06_evaluate_model.sh"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is not evaluated"):
        read_run(tmp_path)


def test_command(tmp_path: Path) -> None:
    command = [sys.executable, str(PROJECT_ROOT / "src" / "compare_runs.py")]
    folder = write_run(tmp_path / "a")
    good = subprocess.run([*command, str(folder)], capture_output=True, text=True)
    assert (good.returncode, good.stderr) == (0, "")
    assert good.stdout == summary([read_run(folder)]) + "\n"
    bad = subprocess.run([*command, str(folder), str(tmp_path)], capture_output=True, text=True)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith("error: ")
    assert "Traceback" not in bad.stderr


def test_summary_starts_without_torch() -> None:
    heavy = "{'torch', 'transformers', 'pyarrow', 'codecarbon'}"
    code = f"import sys, retlab.evaluation.summary; print({heavy} & set(sys.modules))"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"
