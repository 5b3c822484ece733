"""slurm/job.sh without Slurm: what it does at a signal, by the exit code of the stage and the requeues so far."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from retlab.section import PROJECT_ROOT

pytestmark = pytest.mark.component

# The stage and what asks the configuration; the first runs until it is signalled.
RUN_STAGE = """\
if [ "$1" = enter_job ]; then
  {entering}
  printf 'notes\\0{folder}\\0requeues\\0003\\0variable\\0GIVEN=a b, $c\\0word\\0one.yaml\\0word\\0--force\\0'
  printf '%s\\0' {modules}
  exit
fi
printf '%s\\n' "$*" "$GIVEN" "$LOADED" > {folder}/called
trap 'exit {code}' USR1 TERM
touch {folder}/ready
for i in $(seq 400); do sleep 0.05; done
"""
SCONTROL = '#!/bin/bash\necho "$@" >> {folder}/scontrol\n{refusal}\n'


# Bash runs this before every command.
SIGNAL_BEFORE_THE_CHILD_IS_KNOWN = """\
set -o functrace
trap '[[ $BASH_COMMAND$FUNCNAME != "child=\\$!run_child" ]] || kill -USR1 $$' DEBUG
"""


def start(
    folder: Path,
    code: int = 75,
    refusal: str = "",
    before: str = "",
    entering: str = "",
    modules: tuple[str, ...] = (),
    **variables: str,
) -> "subprocess.Popen[str]":
    """A job in a checkout of stand-ins."""
    for name in ("slurm", "scripts", "bin"):
        (folder / name).mkdir()
    script = (PROJECT_ROOT / "slurm" / "job.sh").read_text()
    # Nothing of the machine's own, whatever it has, beside what the test names.
    (folder / "slurm" / "job.sh").write_text(script.replace("/etc/profile.d/", f"{folder}/"))
    shutil.copy(PROJECT_ROOT / "scripts" / "run_child.sh", folder / "scripts")
    named = " ".join(f"module {name}" for name in modules)
    values = {"entering": entering, "folder": str(folder), "code": str(code), "modules": named or "ignored nothing"}
    text = RUN_STAGE
    for key, value in values.items():
        text = text.replace(f"{{{key}}}", value)
    (folder / "scripts" / "run_stage.sh").write_text(text)
    (folder / "bin" / "scontrol").write_text(SCONTROL.format(folder=folder, refusal=refusal))
    (folder / "bin" / "scontrol").chmod(0o755)
    (folder / "job").write_text(f'. {folder}/slurm/job.sh\n{before}run_as_job train_model "$@"\n')
    changed = {**os.environ, "PATH": f"{folder}/bin:{os.environ['PATH']}", "SLURM_JOB_ID": "7", **variables}
    command, merged = ["bash", str(folder / "job"), "one.yaml"], subprocess.STDOUT
    return subprocess.Popen(command, env=changed, stdout=subprocess.PIPE, stderr=merged, text=True)


def signalled(folder: Path, job: "subprocess.Popen[str]", number: signal.Signals) -> tuple[str, dict[str, object]]:
    """What the job says and notes when it is signalled while the stage runs."""
    end = time.monotonic() + 300
    while not (folder / "ready").exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    job.send_signal(number)
    text, _ = job.communicate(timeout=300)
    (note,) = (json.loads(file.read_text()) for file in folder.glob("*.ended.json"))
    return text, note


def test_told_to_leave_it_goes_back_into_the_queue(tmp_path: Path) -> None:
    job = start(tmp_path, SLURM_RESTART_COUNT="2")
    text, note = signalled(tmp_path, job, signal.SIGUSR1)
    assert (tmp_path / "scontrol").read_text() == "requeue 7\n"
    assert "requeue 3 of at most 3" in text
    assert (note["code"], note["outcome"], job.returncode) == (75, "requeued", 75)
    assert (tmp_path / "called").read_text() == "train_model one.yaml --force\na b, $c\n\n"


def test_a_signal_as_the_stage_is_started_reaches_it(tmp_path: Path) -> None:
    job = start(tmp_path, before=SIGNAL_BEFORE_THE_CHILD_IS_KNOWN)
    text, _ = job.communicate(timeout=300)
    assert (tmp_path / "scontrol").read_text() == "requeue 7\n", text


def test_a_task_of_an_array_is_requeued_alone(tmp_path: Path) -> None:
    job = start(tmp_path, SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="0")
    signalled(tmp_path, job, signal.SIGUSR1)
    assert (tmp_path / "scontrol").read_text() == "requeue 7_0\n"
    assert (tmp_path / "7_0.ended.json").exists()


@pytest.mark.parametrize(
    ("number", "code", "restarts", "said", "outcome"),
    [
        (signal.SIGUSR1, 75, "3", "cluster.max_requeues allows (3)", "no requeue left"),
        (signal.SIGUSR1, 2, "0", "", "failed"),
        (signal.SIGUSR1, 0, "0", "", "done"),
        (signal.SIGTERM, 75, "0", "told to end", "told to end"),
    ],
)
def test_it_does_not_go_back(
    number: signal.Signals, code: int, restarts: str, said: str, outcome: str, tmp_path: Path
) -> None:
    job = start(tmp_path, code, SLURM_RESTART_COUNT=restarts)
    text, note = signalled(tmp_path, job, number)
    assert not (tmp_path / "scontrol").exists()
    assert said in text
    assert (note["outcome"], note["code"], job.returncode) == (outcome, code, code)


@pytest.mark.parametrize("to", ["the shell", "all"])
@pytest.mark.parametrize(("restarts", "outcome"), [("2", "requeued"), ("3", "no requeue left")])
def test_a_signal_before_the_configuration_is_read_keeps_to_its_bound(
    to: str, restarts: str, outcome: str, tmp_path: Path
) -> None:
    """The configuration allows three; nothing was begun yet."""
    itself = "" if to == "the shell" else f"[ -e {tmp_path}/hit ] || {{ touch {tmp_path}/hit; kill -USR1 $$; }}"
    entering = f"kill -USR1 $PPID; {itself}"
    job = start(tmp_path, entering=entering, SLURM_RESTART_COUNT=restarts)
    text, _ = job.communicate(timeout=300)
    (note,) = (json.loads(file.read_text()) for file in tmp_path.glob("*.ended.json"))
    assert (note["outcome"], note["code"]) == (outcome, 75), text
    assert (tmp_path / "scontrol").exists() == (outcome == "requeued")
    assert not (tmp_path / "called").exists()


def test_where_the_configuration_cannot_be_read_at_all_it_does_not_go_back(tmp_path: Path) -> None:
    job = start(tmp_path, entering="kill -USR1 $PPID $$; sleep 1")
    text, _ = job.communicate(timeout=300)
    assert "told to leave before the configuration was read" in text
    assert not (tmp_path / "scontrol").exists()
    assert job.returncode > 2


# As Lmod and Environment Modules give it to a shell.
MODULE = """\
module() {
  [ "$2" != broken ] || { echo "cannot find $2" >&2; return 1; }
  export LOADED="$LOADED $1:$2"
}
"""


def test_modules_are_loaded_in_their_order_before_the_stage(tmp_path: Path) -> None:
    (tmp_path / "profile").write_text(MODULE)
    job = start(tmp_path, modules=("cuda/12.4", "gcc"), BASH_ENV=str(tmp_path / "profile"))
    signalled(tmp_path, job, signal.SIGTERM)
    assert (tmp_path / "called").read_text().splitlines()[2] == " load:cuda/12.4 load:gcc"


@pytest.mark.parametrize(
    ("profile", "sentence"),
    [
        (MODULE, "error: module load broken failed on .* (cluster.modules)"),
        ("", "error: cluster.modules asks for cuda/12.4 broken gcc, and there is no module command on "),
    ],
)
def test_modules_that_cannot_be_loaded_end_the_job(profile: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "profile").write_text(profile)
    nowhere = {"MODULESHOME": str(tmp_path), "LMOD_PKG": str(tmp_path), "BASH_ENV": str(tmp_path / "profile")}
    job = start(tmp_path, modules=("cuda/12.4", "broken", "gcc"), **nowhere)
    text, _ = job.communicate(timeout=300)
    assert re.search(sentence.replace("(", r"\(").replace(")", r"\)"), text), text
    assert (job.returncode, (tmp_path / "called").exists()) == (2, False)
    (note,) = (json.loads(file.read_text()) for file in tmp_path.glob("*.ended.json"))
    assert (note["outcome"], note["code"]) == ("failed", 2)


@pytest.mark.skipif(not Path("/usr/share/modules/init/bash").is_file(), reason="Environment Modules is not installed")
def test_environment_modules_itself(tmp_path: Path) -> None:
    for name, before in (("base", ""), ("top", "prereq base\n")):
        (tmp_path / "modulefiles").mkdir(exist_ok=True)
        (tmp_path / "modulefiles" / name).write_text(f"#%Module\n{before}append-path --delim , LOADED {name}\n")
    path = {"MODULEPATH": str(tmp_path / "modulefiles")}
    job = start(tmp_path, modules=("base", "top"), **path)
    signalled(tmp_path, job, signal.SIGTERM)
    assert (tmp_path / "called").read_text().splitlines()[2] == "base,top"


def test_a_refused_requeue_is_named(tmp_path: Path) -> None:
    job = start(tmp_path, refusal="echo Access denied >&2; exit 1")
    text, note = signalled(tmp_path, job, signal.SIGUSR1)
    assert "scontrol requeue 7 failed: Access denied" in text
    assert note["outcome"] == "not requeued: scontrol failed"


def test_sbatch_words_in_a_job_come_too_late(tmp_path: Path) -> None:
    job = start(tmp_path)
    job.kill()
    job.wait()
    again = subprocess.run(
        ["bash", str(tmp_path / "job"), "one.yaml", "--", "-N2"],
        env={**os.environ, "SLURM_JOB_ID": "7"}, capture_output=True, text=True,
    )  # fmt: skip
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert "put them before the script's name" in again.stderr
