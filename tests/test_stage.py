"""What all stages share, run as processes: up to date, changes, --force, --verify, kills, locks, signals, disks."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from retlab.section import PROJECT_ROOT

pytestmark = pytest.mark.component
SCRIPT = PROJECT_ROOT / "tests" / "stand_ins" / "copy_stage.py"
AS_NOBODY = PROJECT_ROOT / "tests" / "stand_ins" / "as_nobody.py"


class Lab:
    """Runs the stand-in stage in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.script = [str(SCRIPT)]
        self.config = folder / "c.yaml"
        self.config.write_text(
            f"name: x\noutput_dir: {folder}/runs\ndata: {{source: {folder}/c.yaml}}\nemissions: {{enabled: false}}\n"
        )

    def start(
        self, output: str, *words: str, source: str = "", fault: str = "", **kwargs: Any
    ) -> subprocess.Popen[str]:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("COPY_")}
        environment |= {"COPY_OUTPUT": str(self.folder / output), "COPY_FAULT": fault} | kwargs.pop("env", {})
        if source:
            environment["COPY_INPUT"] = str(self.folder / source)
        command = [sys.executable, *self.script, str(self.config), *words]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=environment, text=True, stdout=pipe, stderr=pipe, **kwargs)

    def run(self, output: str, *words: str, **kwargs: Any) -> tuple[int, str]:
        process = self.start(output, *words, **kwargs)
        out, err = process.communicate(timeout=300)
        return process.returncode, out + err

    def wait_for(self, name: str) -> None:
        while not (self.folder / name).exists():
            time.sleep(0.02)

    def next_line(self, process: subprocess.Popen[str]) -> str:
        assert process.stdout is not None
        return process.stdout.readline()

    def manifest(self, output: str) -> dict[str, Any]:
        manifest = json.loads((self.folder / output / "manifest.json").read_text())
        assert isinstance(manifest, dict)
        return manifest

    def names(self, folder: str = ".") -> list[str]:
        return sorted(file.name for file in (self.folder / folder).iterdir())


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


def test_done_then_up_to_date_then_changed_then_forced(lab: Lab) -> None:
    code, text = lab.run("a")
    assert code == 0
    assert "done in" in text
    first = lab.manifest("a")
    assert first["settings"] == {"seed": 0}
    assert first["report"] == {"length": 6}
    assert set(first["outputs"]) == {"a.txt", "b.txt"}
    code, text = lab.run("a")
    assert (code, "up to date" in text) == (0, True)
    code, text = lab.run("a", "seed=4")
    assert "seed: 0 -> 4" in text
    assert (lab.folder / "a" / "a.txt").read_text() == "origin 4"
    code, text = lab.run("a", "--force")
    assert "seed: 4 -> 0" in text
    code, text = lab.run("a", "--force")
    assert "--force" in text
    again = lab.manifest("a")
    first.pop("volatile"), again.pop("volatile")
    assert again == first, "everything outside `volatile` is the same for the same work"
    assert lab.names() == ["a", "c.yaml", "runs"]
    assert lab.names("runs/x") == ["config.yaml"]


def test_a_changed_input_is_named_and_an_equal_one_is_not(lab: Lab) -> None:
    lab.run("a")
    assert lab.run("b", source="a")[0] == 0
    assert "up to date" in lab.run("b", source="a")[1]
    lab.run("a", "--force")
    assert "up to date" in lab.run("b", source="a")[1], "the same content again is no change"
    lab.run("a", "seed=1")
    code, text = lab.run("b", source="a")
    assert "input" in text
    assert "has changed" in text
    assert (lab.folder / "b" / "a.txt").read_text() == "origin 1 0"


def test_missing_unfinished_and_damaged_inputs_are_sentences_with_exit_code_2(lab: Lab) -> None:
    code, text = lab.run("b", source="nowhere/raw")
    assert (code, "01_download_data.sh" in text, "Traceback" in text) == (2, True, False)
    lab.run("a")
    (lab.folder / "a" / "a.txt").write_text("cut")
    code, text = lab.run("b", source="a")
    assert (code, "3 bytes instead of" in text, "01_download_data.sh" in text) == (2, True, True)
    assert lab.names() == ["a", "c.yaml", "runs"]


def test_damaged_output_is_made_anew_and_verify_sees_what_sizes_and_times_hide(lab: Lab) -> None:
    lab.run("a")
    file = lab.folder / "a" / "a.txt"
    status = file.stat()
    file.write_text("o" * status.st_size)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert "up to date" in lab.run("a")[1]
    code, text = lab.run("a", "--verify")
    assert "the content of" in text
    assert file.read_text() == "origin 0"


def test_killed_then_run_again_is_as_if_nothing_had_happened(lab: Lab) -> None:
    lab.run("calm")
    assert lab.run("a", fault="kill")[0] == -signal.SIGKILL
    assert lab.run("a")[0] == 0
    calm, killed = lab.manifest("calm"), lab.manifest("a")
    calm.pop("volatile"), killed.pop("volatile")
    assert killed == calm
    assert lab.names() == ["a", "c.yaml", "calm", "runs"]


def test_remains_of_a_killed_attempt_that_nobody_wants_again_are_removed(lab: Lab) -> None:
    lab.run("a")
    assert lab.run("a", "--force", fault="kill")[0] == -signal.SIGKILL
    shutil.copytree(lab.folder / "a", lab.folder / ".a.old")
    assert {".a.partial", ".a.old"} < set(lab.names())
    assert "up to date" in lab.run("a")[1]
    assert lab.names() == ["a", "c.yaml", "runs"]


def test_killed_while_replacing_an_older_output(lab: Lab) -> None:
    lab.run("a")
    lab.run("a", "seed=1", fault="kill")
    assert (lab.folder / "a" / "a.txt").read_text() == "origin 0", "the old output stays until the new one is finished"
    lab.run("a", "seed=1")
    assert (lab.folder / "a" / "a.txt").read_text() == "origin 1"
    assert lab.names() == ["a", "c.yaml", "runs"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_leave_with_75_and_without_remains(lab: Lab, number: signal.Signals) -> None:
    process = lab.start("a", fault="wait")
    lab.wait_for("waiting")
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 75
    assert f"{number.name} received; run the same command again" in err
    assert "Traceback" not in err
    assert lab.names() == ["c.yaml", "waiting"]


def test_two_processes_for_one_output_work_once(lab: Lab) -> None:
    first = lab.start("a", fault="wait")
    lab.wait_for("waiting")
    second = lab.start("a")
    assert "waiting: another process is using" in lab.next_line(second)
    (lab.folder / "release").touch()
    out, _ = second.communicate(timeout=300)
    assert (second.returncode, "up to date" in out) == (0, True)
    assert "done in" in first.communicate(timeout=300)[0]


def test_a_reader_holds_back_who_would_replace_its_input(lab: Lab) -> None:
    lab.run("a")
    reader = lab.start("b", source="a", fault="wait")
    lab.wait_for("waiting")
    assert "waiting" not in lab.run("a")[1], "an up-to-date check does not wait for readers"
    writer = lab.start("a", "seed=9")
    assert "waiting: another process is using" in lab.next_line(writer)
    (lab.folder / "release").touch()
    reader.communicate(timeout=300)
    writer.communicate(timeout=300)
    assert (lab.folder / "b" / "a.txt").read_text() == "origin 0 0"
    assert (lab.folder / "a" / "a.txt").read_text() == "origin 9"


def test_an_ordinary_user_without_write_permission_gets_a_sentence(lab: Lab) -> None:
    lab.folder.chmod(0o755)
    for parent in lab.folder.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o011)
    (lab.folder / "closed").mkdir(mode=0o555)
    (lab.folder / "runs").mkdir()
    (lab.folder / "runs").chmod(0o777)
    lab.script = [str(AS_NOBODY), str(SCRIPT)]
    code, text = lab.run("closed/a")
    assert (code, "Traceback" in text) == (2, False), text
    assert "no permission" in text
    assert "closed" in text
    assert lab.names("closed") == []
    code, text = lab.run("closed/deep/er/a")
    assert (code, "no permission" in text) == (2, True), text


@pytest.mark.skipif(os.geteuid() != 0, reason="a disk that can be filled is made by mounting, which root alone may")
def test_a_full_disk_is_a_sentence_and_nothing_is_lost(lab: Lab) -> None:
    small = lab.folder / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], check=True)
    try:
        assert lab.run("small/a")[0] == 0
        code, text = lab.run("small/a", "seed=1", fault="disk")
        assert (code, "the disk is full: " in text, "Traceback" in text) == (2, True, False), text
        assert "/small; free some space" in text
        assert (small / "a" / "a.txt").read_text() == "origin 0"
        assert lab.names("small") == ["a"]
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["sead=1"], "sead: unknown key; did you mean 'seed'?"),
        (["seed=-1"], "seed: found -1; must be at least 0"),
        (["oops"], "oops is not understood; allowed are key.path=value, --force, --verify"),
        (["--forse"], "--forse is not understood (did you mean --force?); allowed are"),
        (["--force=yes"], "--force takes no value"),
    ],
)
def test_bad_configurations_and_words_create_nothing(lab: Lab, words: list[str], sentence: str) -> None:
    code, text = lab.run("a", *words)
    assert (code, text.startswith("error: "), text.count("\n")) == (2, True, 1), text
    assert sentence in text
    assert lab.names() == ["c.yaml"]


@pytest.mark.parametrize("fault", ["refuse at once", "refuse"])
def test_a_refused_attempt_leaves_no_folder(lab: Lab, fault: str) -> None:
    lab.config.write_text(lab.config.read_text().replace("{enabled: false}", "{interval_seconds: 60}"))
    code, text = lab.run("deep/er/a", fault=fault)
    assert (code, text.startswith("error: "), "Traceback" in text) == (2, True, False)
    assert lab.names() == ["c.yaml"]
    lab.run("deep/a")
    before = lab.names("runs/x"), lab.names("deep")
    assert lab.run("deep/a", "seed=2", fault=fault)[0] == 2
    assert (lab.names("runs/x"), lab.names("deep")) == before, "what earlier attempts left stays"
    assert "seed: 0" in (lab.folder / "runs" / "x" / "config.yaml").read_text()


def test_what_this_machine_has_not_is_said_before_anything_is_made(lab: Lab) -> None:
    words = ["data.source=/no/where", "train.init_from=./no-model"]
    code, text = lab.run("a", *words)
    assert (code, text) == (2, "error: data.source: there is no file or folder /no/where; correct the path\n")
    assert lab.names() == ["c.yaml"]
    lab.run("a")
    assert lab.run("a", *words)[0] == 0, "what is up to date asks for nothing"


def test_a_copied_output_stays_up_to_date(lab: Lab) -> None:
    lab.run("a")
    shutil.copytree(lab.folder / "a", lab.folder / "moved", copy_function=shutil.copyfile)
    assert "up to date" in lab.run("moved")[1]
