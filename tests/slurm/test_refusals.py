"""What Slurm rejects, or leaves waiting for ever, is said with its words and with the key that it comes from."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.slurm.experiments import script
from tests.slurm.private import PrivateSlurm

from retlab.artifacts import write_json
from retlab.data.settings import SPLITS
from retlab.section import PROJECT_ROOT

pytestmark = pytest.mark.component
WITH_SLURM = pytest.mark.usefixtures("slurm")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "mine.yaml"
    file.write_text(f"name: mine\noutput_dir: {tmp_path}/runs\ndata: {{folder: {tmp_path}/data}}\n")
    return file


@pytest.fixture
def ready(config: Path, tmp_path: Path) -> Path:
    """As if the stages before the training were done."""
    for name in ("splits", "tokenizer", *(f"tokens/{split}" for split in SPLITS)):
        (tmp_path / "data" / name).mkdir(parents=True)
        write_json(tmp_path / "data" / name / "manifest.json", {"outputs": {}})
    return config


@WITH_SLURM
@pytest.mark.parametrize(
    ("words", "said", "origin"),
    [
        (["cluster.partition=nope"], "invalid partition specified: nope", "cluster.partition: nope"),
        (["cluster.stages.train_model={partition: nope}"], "nope", "cluster.stages.train_model.partition: nope"),
        (["--", "-p", "nope"], "invalid partition specified: nope", "--partition=nope after --"),
        (["--", "--time=soon"], "Invalid --time specification", "--time=soon after --"),
        (["cluster.memory=lots"], "Invalid --mem specification", "cluster.memory: lots"),
        (["cluster.memory=9999G"], "Memory specification can not be satisfied", "cluster.memory: 9999G"),
        (["cluster.gpus=h100:1"], "node configuration", "cluster.gpus: h100:1"),
        # Of several keys that Slurm's words may mean, those without which it would take the job.
        (["cluster.gpus=9", "cluster.cpus=1", "cluster.memory=10M"], "node configuration", "from cluster.gpus: 9\n"),
        (["--", "--no-such-option"], "--no-such-option", "--no-such-option after --"),
    ],
)
def test_what_slurm_rejects(ready: Path, words: list[str], said: str, origin: str) -> None:
    answer = script(PROJECT_ROOT, "05_train_model.sh", str(ready), *words)
    assert (answer.returncode, answer.stderr.count("\n"), answer.stdout) == (2, 1, ""), answer.stderr
    assert said in answer.stderr
    assert origin in answer.stderr
    assert not (ready.parent / "runs" / "mine").exists()


@WITH_SLURM
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["data.source=/no/text.txt"], "data.source: there is no file or folder /no/text.txt"),
        (["cluster.time=4h"], "cluster.time: found '4h'"),
        (["--from", "evaluate_model"], "data.tokens_folder: "),
    ],
)
def test_what_would_fail_later_is_seen_before_anything_is_submitted(
    slurm: PrivateSlurm, config: Path, words: list[str], sentence: str
) -> None:
    answer = script(PROJECT_ROOT, "submit_pipeline.sh", str(config), *words)
    assert (answer.returncode, answer.stderr.count("\n"), answer.stdout) == (2, 1, ""), answer.stderr
    assert sentence in answer.stderr
    assert not slurm.run("squeue", "-h").stdout
    assert not (config.parent / "runs").exists()


def test_a_chain_that_cannot_be_submitted_as_a_whole_is_not_submitted(slurm: PrivateSlurm, config: Path) -> None:
    word = "cluster.stages={train_model: {partition: nope}}"
    answer = script(PROJECT_ROOT, "submit_pipeline.sh", str(config), word)
    assert (answer.returncode, "nothing is left in the queue" in answer.stderr) == (2, True), answer.stderr
    # A job that had begun takes a moment to end.
    slurm.until(lambda: not slurm.run("squeue", "-h").stdout, 200, "jobs are left in the queue")


@WITH_SLURM
def test_an_account_that_the_partition_does_not_admit_is_named(config: Path) -> None:
    """A Slurm without accounting takes the job and leaves it pending."""
    words = ["cluster.partition=paid", "cluster.account=them"]
    answer = script(PROJECT_ROOT, "01_download_data.sh", str(config), *words)
    (job,) = re.findall(r"job (\d+);", answer.stdout)
    assert answer.stdout.endswith(f"take it out of the queue with: scancel {job}\n"), answer.stdout
    for text in (answer.stdout, script(PROJECT_ROOT, "status.sh", str(config)).stdout):
        flat = " ".join(text.split())
        assert "account not known, so it can't use this partition (paid allows research)" in flat, text
        assert "cluster.account" in flat, text


ACCOUNT = "Invalid account or account/partition combination specified"


@pytest.mark.parametrize(
    ("words", "said", "origin"),
    [
        (["cluster.partition=paid", "cluster.account=nope"], ACCOUNT, "cluster.partition: paid, cluster.account: nope"),
        (["cluster.partition=paid", "--", "-A", "nope"], ACCOUNT, "cluster.partition: paid, --account=nope after --"),
        (["cluster.partition=short", "cluster.time=60"], "Requested time limit is invalid", "cluster.time: 60"),
        (["cluster.cpus=2", "cluster.nodes=3", "cluster.gpus=1"], "More processors requested", "cluster.nodes: 3"),
        (["cluster.cpus=3", "cluster.gpus=1"], "node configuration is not available", "cluster.cpus: 3"),
        (["cluster.cpus=2", "cluster.gpus=9", "cluster.memory=1G"], "node configuration", "cluster.gpus: 9"),
        (["cluster.cpus=2", "--", "--gres=gpu:9"], "node configuration", "--gres=gpu:9 after --"),
    ],
)
def test_what_a_partition_does_not_admit(
    slurm: PrivateSlurm, ready: Path, words: list[str], said: str, origin: str
) -> None:
    with slurm.refusing():
        answer = script(PROJECT_ROOT, "05_train_model.sh", str(ready), *words)
    assert (answer.returncode, answer.stderr.count("\n"), answer.stdout) == (2, 1, ""), answer.stderr
    assert said in answer.stderr
    assert answer.stderr.endswith(f"; it comes from {origin}\n")


def test_jobs_that_can_never_start_are_named_with_the_way_to_cancel_them(slurm: PrivateSlurm, config: Path) -> None:
    answer = script(PROJECT_ROOT, "submit_pipeline.sh", str(config), "cluster.partition=short", "cluster.time=1:00:00")
    texts = [answer.stdout, script(PROJECT_ROOT, "status.sh", str(config)).stdout]
    jobs = sorted(int(file.stem) for file in (config.parent / "runs" / "mine" / "slurm").glob("*.json"))
    for text in texts:
        # Slurm's first look gives a more general reason than its second.
        assert re.search(r"(?s)(PartitionTimeLimit|PartitionConfig): .*cluster\.time", text), text
        assert f"take all of them out of the queue with: scancel {' '.join(map(str, jobs))}\n" in text
    (command,) = re.findall("scancel .*", texts[1])
    slurm.run(*command.split())
    slurm.until(lambda: not slurm.run("squeue", "-h").stdout, 200, "jobs are left in the queue")


def test_a_later_job_that_can_never_start_is_named(slurm: PrivateSlurm, config: Path) -> None:
    words = ["--", "--begin=now+1hour"]
    answer = script(PROJECT_ROOT, "submit_pipeline.sh", str(config), "cluster.stages={train_model: {nodes: 5}}", *words)
    # A scheduler that was quicker gives the waiting job a reason of its own.
    assert re.search(r"train_model\b.* can never start", answer.stdout), answer.stdout + answer.stderr
    assert "it comes from cluster.stages.train_model.nodes: 5\n" in answer.stdout
    assert answer.stdout.count("note: ") == 1
    assert len(slurm.run("squeue", "-h").stdout.splitlines()) == 6


def test_without_slurm_it_is_one_sentence(config: Path, tmp_path: Path) -> None:
    """The programs of scripts alone: a machine that has no Slurm."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "dirname", "env", "python3"):
        found = shutil.which(name)
        assert found
        (tools / name).symlink_to(found)
    for name in ("submit_pipeline.sh", "05_train_model.sh"):
        command = ["bash", str(PROJECT_ROOT / "slurm" / name), str(config)]
        kept = {"PATH": str(tools), "VIRTUAL_ENV": sys.prefix}
        answer = subprocess.run(command, capture_output=True, text=True, env=kept)
        assert (answer.returncode, answer.stderr.count("\n")) == (2, 1), answer.stderr
        assert "sbatch is not installed here" in answer.stderr
