"""generate_text as a command."""

import csv
import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from retlab.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_USER_ERROR
from retlab.section import PROJECT_ROOT
from tests.evaluation.trained import write_model
from tests.forked import Script

pytestmark = pytest.mark.component
SCRIPT = PROJECT_ROOT / "src" / "generate_text.py"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generate")
    write_model(folder / "runs" / "one" / "model")
    values = {"name": "one", "output_dir": str(folder / "runs"), "evaluate": {"device": "cpu"}}
    values["generate"] = {"prompts": ["the ", "a "], "max_new_tokens": 5}
    (folder / "one.yaml").write_text(yaml.safe_dump(values))
    return folder / "one.yaml"


def run(config: Path, *words: str, typed: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), str(config), *words]
    return subprocess.run(command, input=typed, capture_output=True, text=True, timeout=300)


def test_the_same_samples_on_the_terminal_as_json_and_in_files(config: Path, tmp_path: Path) -> None:
    answer = run(config, "--json", "--output", str(tmp_path / "all.csv"))
    assert answer.returncode == EXIT_OK, answer.stderr
    samples = [json.loads(line) for line in answer.stdout.splitlines()]
    assert [sample["prompt"] for sample in samples] == ["the ", "a "]
    assert all(0 < sample["new_tokens"] <= 5 for sample in samples)
    with open(tmp_path / "all.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["continuation"] for row in rows] == [sample["continuation"] for sample in samples]
    shown = run(config, "--output", str(tmp_path / "all.jsonl"))
    assert shown.stdout == "".join(f"{sample['prompt']}{sample['continuation']}\n" for sample in samples)
    kept = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text().splitlines()]
    assert [one["continuation"] for one in kept] == [sample["continuation"] for sample in samples]
    # A run of it without a terminal asks line by line.
    typed = run(config, "--interactive", "--json", typed="the \na \n")
    assert [json.loads(line)["continuation"] for line in typed.stdout.splitlines()] == [
        sample["continuation"] for sample in samples
    ]


def test_a_model_that_was_trained_otherwise_writes_and_that_is_said(config: Path) -> None:
    manifest = config.parent / "runs" / "one" / "model" / "manifest.json"
    made = {"train.learning_rate": 0.5}
    manifest.write_text(json.dumps({"settings": made, "inputs": {}, "outputs": {}}))
    try:
        answer = run(config, "--json", "train.learning_rate=0.25")
    finally:
        manifest.unlink()
    assert answer.returncode == EXIT_OK
    assert len(answer.stdout.splitlines()) == 2
    assert "train.learning_rate 0.5 and not 0.25" in answer.stderr


def test_at_a_terminal_ctrl_c_ends_a_text_and_ctrl_d_the_program(config: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, str(SCRIPT), str(config), "--interactive", "generate.max_new_tokens=1000000"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    text = ""

    def until(sign: str) -> None:
        nonlocal text
        end = time.monotonic() + 300
        while sign not in text:
            assert time.monotonic() < end, text
            text += os.read(ours, 10_000).decode(errors="replace")
        text = text.partition(sign)[2]

    until(">>> ")
    os.write(ours, b"the \n")
    until("the ")
    # It writes.
    until("\n")
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    until("[ended by Ctrl-C]")
    until(">>> ")
    os.write(ours, b"\x04")
    assert process.wait(300) == EXIT_OK
    os.close(ours)


def test_ctrl_c_is_no_traceback_before_the_first_text(config: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "prompts.txt")
    process = Script(SCRIPT, str(config), "--prompts", str(tmp_path / "prompts.txt"))
    # Opened here as soon as it is read there.
    with open(tmp_path / "prompts.txt", "wb"):
        process.send_signal(signal.SIGINT)
        assert process.wait() == EXIT_INTERRUPTED
    output, _ = process.communicate()
    assert output == "interrupted: SIGINT received; run the same command again to continue\n"


def test_ctrl_c_ends_the_program_with_the_texts_that_were_finished(config: Path, tmp_path: Path) -> None:
    words = ["--prompt", "the ", "--prompt", "a ", "--output", "all.jsonl", "generate.max_new_tokens=1000000"]
    command = [sys.executable, str(SCRIPT), str(config), *words]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.read(6)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=300)
    assert process.returncode == EXIT_INTERRUPTED
    assert b"interrupted: SIGINT received, 0 samples finished before" in said
    assert (tmp_path / "all.jsonl").read_text() == ""


def test_a_reader_that_leaves_is_no_error(config: Path) -> None:
    command = [sys.executable, str(SCRIPT), str(config), "--prompt", "the ", "generate.max_new_tokens=1000000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(6)
        process.stdout.close()
        assert process.wait(300) == -signal.SIGPIPE
        assert b"Traceback" not in process.stderr.read()


def test_files_of_the_command_line_are_relative_to_where_it_is_given(config: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("the ")
    process = Script(SCRIPT, str(config), "--prompts", "mine.txt", "--output", "all.csv", cwd=tmp_path)
    output, _ = process.communicate()
    assert process.returncode == EXIT_OK, output
    assert output.endswith("1 sample: all.csv\n")
    assert (tmp_path / "all.csv").read_text().startswith("prompt,continuation,")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--output", "all.txt"], "--output all.txt ends with neither .csv nor .jsonl"),
        (["--output", "nowhere/all.csv"], "--output nowhere/all.csv: there is no folder"),
        (["--output", str(PROJECT_ROOT)], "ends with neither .csv nor .jsonl"),
        (["generate.seed=99999999999999999999"], "generate.seed: found 99999999999999999999; must be below"),
        (["--interactive", "--prompt", "a"], "--interactive asks for its prompts"),
        (["generate.prompts=[]"], "generate.prompts is empty"),
        (["--prompts", "nowhere.txt"], "nowhere.txt cannot be read"),
        (["name=other"], "holds no trained model"),
        (["--force"], "--force is not understood; allowed are key.path=value, --prompt,"),
        (["--promt", "a"], "--promt is not understood (did you mean --prompt?)"),
    ],
)
def test_mistakes_are_a_sentence(config: Path, words: list[str], sentence: str) -> None:
    process = Script(SCRIPT, str(config), *words)
    output, _ = process.communicate()
    assert process.returncode == EXIT_USER_ERROR, output
    assert output.count("\n") == 1, output
    assert sentence in output
