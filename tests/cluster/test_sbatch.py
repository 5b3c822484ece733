"""What sbatch is asked for, and what its refusals are blamed on."""

import subprocess

import pytest

from retlab.cluster import sbatch
from retlab.cluster_settings import ClusterSection
from retlab.errors import UserError

CLUSTER = ClusterSection.model_validate(
    {"partition": "main", "time": 90, "memory": "32G", "cpus": 8, "gpus": 2, "signal_seconds": 60,
     "stages": {"train_model": {"partition": "long", "time": "2-00:00:00"}, "evaluate_model": {"gpus": 0}}}
)  # fmt: skip
ALWAYS = ["--signal=B:USR1@60", "--requeue", "--open-mode=append", "--ntasks-per-node=1"]


def test_each_stage_has_its_own_options() -> None:
    shared = ["--time=90", "--mem=32G", "--cpus-per-task=8"]
    assert sbatch.options(CLUSTER, "split_data") == ["--partition=main", *shared, *ALWAYS]
    train = ["--partition=long", "--time=2-00:00:00", "--mem=32G", "--cpus-per-task=8", "--gpus-per-node=2"]
    assert sbatch.options(CLUSTER, "train_model", 3) == [*train, "--nodes=3", *ALWAYS]
    assert sbatch.options(CLUSTER, "evaluate_model") == ["--partition=main", *shared, *ALWAYS]
    assert "--gpus-per-node=2" in sbatch.options(CLUSTER, "grid_search")
    assert sbatch.options(ClusterSection(), "download_data") == ["--signal=B:USR1@120", *ALWAYS[1:]]


def _answering(monkeypatch: pytest.MonkeyPatch, code: int, out: str = "", err: str = "") -> list[list[str]]:
    called = []

    def call(command: list[str], **_: object) -> "subprocess.CompletedProcess[str]":
        called.append(command)
        return subprocess.CompletedProcess(command, code, out, err)

    monkeypatch.setattr(sbatch, "call", call)
    return called


def test_the_users_words_come_last_and_before_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    called = _answering(monkeypatch, 0, "12;test\n")
    words = ["--job-name=x", "/some/script.sh", "one.yaml", "--force"]
    assert sbatch.submit(words, stage="split_data", cluster=CLUSTER, given=["-p", "other"]) == 12
    assert called[0][:2] == ["sbatch", "--parsable"]
    assert called[0][-6:] == ["--job-name=x", "-p", "other", "/some/script.sh", "one.yaml", "--force"]


ACCOUNT = "Invalid account or account/partition combination specified"
REJECTED = "sbatch: error: Batch job submission failed: "


@pytest.mark.parametrize(
    ("said", "given", "blamed", "spared"),
    [
        (ACCOUNT, [], ["cluster.partition: main"], "time"),
        (ACCOUNT, ["-A", "them"], ["--account=them after --"], "time"),
        ("Invalid qos specification", ["--qos=low"], ["--qos=low after --"], "partition"),
        ("Requested time limit is invalid (missing or exceeds some limit)", [], ["cluster.time: 90"], "partition"),
        ("Requested time limit is invalid", ["-t5"], ["--time=5 after --"], "cluster.time"),
        ("Job violates something new", [], ["cluster.partition: main"], "memory"),
    ],
)  # fmt: skip
def test_a_refusal_names_the_key_that_it_is_about(
    said: str, given: list[str], blamed: list[str], spared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _answering(monkeypatch, 1, err=REJECTED + said + "\n")
    with pytest.raises(UserError) as refusal:
        sbatch.submit(["script.sh"], stage="split_data", cluster=CLUSTER, given=given)
    text = str(refusal.value)
    assert all(word in text for word in (said, *blamed)), text
    assert spared not in text.split("; it comes from ")[1]


def test_a_dependency_of_the_user_is_for_the_first_stage_alone() -> None:
    words = ["-d", "afterok:3", "--dependency=singleton", "-dafter:4", "--exclusive", "--dependency", "afterok:5"]
    assert sbatch.without(words, "--dependency", "-d") == ["--exclusive"]


GENERAL = "Requested node configuration is not available"
AMOUNTS = {"partition": "main", "time": 90, "memory": "9T", "cpus": 8, "gpus": 9, "nodes": 2}


@pytest.mark.parametrize(
    ("refused", "given", "blamed"),
    [
        (["--gpus-per-node=9"], [], ["cluster.gpus: 9"]),
        (["--nodes=2"], [], ["cluster.nodes: 2"]),
        (["--mem=9T"], [], ["cluster.memory: 9T"]),
        (["--time=90"], [], ["cluster.time: 90"]),
        (["--partition=main"], [], ["cluster.partition: main"]),
        # Each of two is too much, or both together are.
        (["--mem=9T", "--gpus-per-node=9"], [], ["cluster.memory: 9T", "cluster.gpus: 9"]),
        (["--cpus-per-task=8 --gpus-per-node=9"], [], ["cluster.cpus: 8", "cluster.gpus: 9"]),
        (["--gres=gpu:7"], ["--gres=gpu:7", "--nice", "3"], ["--gres=gpu:7 after --"]),
        (["-N 7"], ["-N", "7"], ["--nodes=7 after --"]),
    ],
)
def test_where_slurm_names_nothing_it_is_asked_what_it_would_take(
    refused: list[str], given: list[str], blamed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "Job violates something" if refused[0].startswith(("--time", "--partition")) else GENERAL

    def call(command: list[str], **_options: object) -> "subprocess.CompletedProcess[str]":
        assert "--dependency=afterok:3" not in command or command[1] == "--parsable"
        bad = any(set(words.split()) <= set(command) for words in refused)
        return subprocess.CompletedProcess(command, int(bad), "3\n", f"{REJECTED}{said}\n" if bad else "")

    monkeypatch.setattr(sbatch, "call", call)
    words = ["--dependency=afterok:3", "script.sh"]
    with pytest.raises(UserError) as refusal:
        sbatch.submit(words, stage="train_model", cluster=ClusterSection.model_validate(AMOUNTS), given=given)
    assert str(refusal.value).split("; it comes from ")[1] == ", ".join(blamed)


def test_a_limit_of_submitted_jobs_says_nothing_about_those_that_were_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
    _answering(monkeypatch, 1, err=f"allocation failure: {policy}\n")
    assert sbatch.unstartable(["script.sh"], stage="split_data", cluster=CLUSTER) is None
    _answering(monkeypatch, 1, err="allocation failure: Node count specification invalid\n")
    found = sbatch.unstartable(["script.sh"], stage="train_model", cluster=CLUSTER, num_nodes=9)
    assert found == (
        "Slurm refuses a job for train_model: Node count specification invalid; it comes from train.num_nodes: 9",
        ["train.num_nodes: 9"],
    )


EVERYTHING = {
    "partition": "p",
    "account": "a",
    "qos": "q",
    "time": 90,
    "memory": "9T",
    "cpus": 8,
    "gpus": 9,
    "nodes": 2,
}


@pytest.mark.parametrize(
    ("said", "keys"),
    [
        ("invalid partition specified: p; Invalid partition name specified", ["partition: p"]),
        (ACCOUNT, ["partition: p", "account: a"]),
        ("Invalid qos specification", ["qos: q"]),
        ("Requested time limit is invalid (missing or exceeds some limit)", ["time: 90"]),
        ("Invalid --mem specification", ["memory: 9T"]),
        ("Memory specification can not be satisfied", ["memory: 9T"]),
        ("Invalid generic resource (gres) specification", ["gpus: 9"]),
        ("Node count specification invalid", ["nodes: 2"]),
    ],
)
def test_slurms_own_words_name_one_key_of_all(said: str, keys: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    _answering(monkeypatch, 1, err=REJECTED + said + "\n")
    with pytest.raises(UserError) as refusal:
        sbatch.submit(["script.sh"], stage="train_model", cluster=ClusterSection.model_validate(EVERYTHING))
    assert str(refusal.value).split("; it comes from ")[1] == ", ".join(f"cluster.{key}" for key in keys)
