"""What is wrong with a command line is one sentence that names the option, the value and what is allowed."""

import argparse
import os
import subprocess
import sys

import pytest

from retlab.command import Parser
from retlab.errors import UserError
from retlab.section import PROJECT_ROOT


@pytest.fixture
def parser() -> argparse.ArgumentParser:
    made = Parser("stage CONFIG [options]")
    made.add_argument("--from", choices=("split_data", "train_model"))
    made.add_argument("--task", "-t", metavar="N", type=int)
    made.add_argument("--share", type=float)
    made.add_argument("--export", nargs=2, metavar=("CHECKPOINT", "FOLDER"))
    made.add_argument("--force", action="store_true")
    return made


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--from train_mode",
         "--from train_mode is not understood (did you mean train_model?); allowed are split_data, train_model"),
        ("--from=stage", "--from stage is not understood; allowed are split_data, train_model"),
        ("--from", "--from needs a value: one of split_data, train_model"),
        ("--task one", "--task is one, but must be a whole number"),
        ("-t", "--task needs a value"),
        ("--share half", "--share is half, but must be a number"),
        ("--export last", "--export takes 2 values: CHECKPOINT FOLDER"),
        ("--force=yes", "--force takes no value"),
    ],
)  # fmt: skip
def test_a_wrong_option_is_a_sentence(parser: argparse.ArgumentParser, words: str, sentence: str) -> None:
    with pytest.raises(UserError) as refusal:
        parser.parse_known_args(words.split())
    assert str(refusal.value) == f"command line: {sentence}"


def test_a_terminal_that_shows_ascii_alone_still_gets_the_sentence() -> None:
    code = "from retlab.command import run_command; run_command(lambda: print('the loss ± ★'), '')"
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT / "src"), "PYTHONIOENCODING": "ascii"}
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert (answer.returncode, answer.stdout) == (0, "the loss ? ?\n"), answer.stderr
