"""Data sets on the Hub, through the real client against a stand-in on this machine."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.data.documents import contents, texts, write_parquet
from tests.stand_ins.hub import COMMIT, Hub

from retlab.section import PROJECT_ROOT

pytestmark = pytest.mark.component

# Takes data.source entries after the folder, downloads each to a folder of its own, and prints reports or sentences.
DOWNLOAD = """
import json, sys
from pathlib import Path
from retlab.data.download import download
from retlab.data.settings import DataSection
from retlab.errors import UserError
for number, source in enumerate(sys.argv[2:]):
    folder = Path(sys.argv[1]) / str(number)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        print("ANSWER", json.dumps(download(DataSection(source=source), folder)))
    except UserError as error:
        print("ANSWER", json.dumps(str(error)))
"""
SHARDS = [f"en/c4-train.{number:05d}-of-00003.json.gz" for number in range(3)]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """Data set owner/name: three C4-like shards of 50 documents, two parquet files of over 2 MB, and a README."""
    root = tmp_path / "hub" / "datasets" / "owner" / "name"
    for number, name in enumerate(SHARDS):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps({"text": f"shard {number} line {line}", "url": "u"}) for line in range(50)]
        (root / name).write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))
    for name in ("a", "b"):
        rows = [name + os.urandom(2000).hex() for _ in range(600)]
        write_parquet(root / "data" / f"{name}.parquet", rows, compression="none")
    (root / "README.md").write_text("# About the data")
    (root / "load.py").write_text("print('a loading script')")
    (root / ".gitattributes").write_text("*.parquet lfs")
    with Hub(tmp_path / "hub") as running:
        yield running


def run(hub: Hub, folder: Path, *sources: str, **environment: str) -> list[dict[str, object] | str]:
    """Reports or sentences of one process that downloads these sources one after the other."""
    variables = hub.environment(folder.parent / "home", PYTHONPATH=str(PROJECT_ROOT / "src"), **environment)
    command = [sys.executable, "-c", DOWNLOAD, str(folder), *sources]
    answer = subprocess.run(command, env=variables, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    return [json.loads(line[7:]) for line in answer.stdout.splitlines() if line.startswith("ANSWER ")]


def stage(hub: Hub, root: Path, source: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Stage 1 as a user runs it, into root/data."""
    config = root / "config.yaml"
    values = {"source": source, "folder": str(root / "data")}
    config.write_text(json.dumps({"name": "lab", "output_dir": str(root / "runs"), "data": values}))
    command = [sys.executable, str(PROJECT_ROOT / "src" / "download_data.py"), str(config)]
    variables = hub.environment(root / "home", **environment)
    return subprocess.run(command, env=variables, capture_output=True, text=True)


def test_repository_folder_glob_and_file(hub: Hub, tmp_path: Path) -> None:
    sources = [
        "hf://datasets/owner/name",
        "hf://datasets/owner/name/en",
        "hf://datasets/owner/name/en/c4-train.0000[12]-of-00003.json.gz",
        "hf://datasets/owner/name@main/**/*.parquet",
        f"hf://datasets/owner/name@{COMMIT}/data/b.parquet",
    ]
    reports = run(hub, tmp_path / "raw", *sources)
    assert [report["source_files"] for report in reports] == [5, 3, 2, 2, 1]
    assert [report["documents"] for report in reports] == [1350, 150, 100, 1200, 600]
    assert texts(tmp_path / "raw" / "1") == [f"shard {shard} line {line}" for shard in range(3) for line in range(50)]
    assert texts(tmp_path / "raw" / "0")[-150:] == texts(tmp_path / "raw" / "1")
    assert texts(tmp_path / "raw" / "2") == texts(tmp_path / "raw" / "1")[50:]
    assert {report["hub_commits"][0] for report in reports} == {f"datasets/owner/name@{COMMIT}"}
    left = {path.name for path in (tmp_path / "raw").rglob("*.*") if path.is_file() and path.name[0] != "."}
    assert left == {"part-00000.parquet"}


def test_revisions_and_names_with_odd_characters(hub: Hub, tmp_path: Path) -> None:
    hub.branches.add("refs/convert/parquet")
    odd = tmp_path / "hub/datasets/owner/name/odd [1]"
    odd.mkdir()
    (odd / "a b#%.jsonl").write_text('{"text": "odd"}')
    reports = run(
        hub,
        tmp_path / "raw",
        "hf://datasets/owner/name@refs/convert/parquet/data/*.parquet",
        "hf://datasets/owner/name@refs%2Fconvert%2Fparquet/data",
        "hf://datasets/owner/name/odd [1]",
        "hf://datasets/owner/name/odd [1]/a b#%.jsonl",
    )
    assert [report["documents"] for report in reports] == [1200, 1200, 1, 1]


def test_what_is_missing_is_named(hub: Hub, tmp_path: Path) -> None:
    hub.private.add("owner/private")
    (tmp_path / "hub/datasets/owner/private").mkdir()
    (tmp_path / "hub/datasets/owner/empty/images").mkdir(parents=True)
    (tmp_path / "hub/datasets/owner/empty/images/a.png").write_text("")
    answers = run(
        hub,
        tmp_path / "raw",
        "hf://datasets/owner/nothing",
        "hf://datasets/owner/private",
        "hf://datasets/owner/name@v9/en",
        "hf://datasets/owner/name/nothing.parquet",
        "hf://datasets/owner/name/en/*.parquet",
        "hf://datasets/owner/empty",
    )
    assert "the Hub has no data set owner/nothing, or it is private" in answers[0]
    assert "the Hub has no data set owner/private, or it is private" in answers[1]
    assert "owner/name has no such revision" in answers[2]
    assert "owner/name has no such file or folder" in answers[3]
    assert "owner/name has no file that matches" in answers[4]
    assert "owner/empty holds no data files; it holds images/a.png" in answers[5]


@pytest.mark.parametrize("token", [None, "hf_wrong"])
def test_gated_data_set_without_access(hub: Hub, tmp_path: Path, token: str | None) -> None:
    hub.gated.add("owner/name")
    (answer,) = run(hub, tmp_path / "raw", "hf://datasets/owner/name/en", **({"HF_TOKEN": token} if token else {}))
    assert f"owner/name is gated: accept its conditions on {hub.url}/datasets/owner/name" in answer
    assert "log in with `hf auth login` or set HF_TOKEN" in answer
    assert token is None or token not in answer


@pytest.mark.parametrize("login", ["environment", "file"])
def test_token_opens_the_gate_and_is_written_nowhere(hub: Hub, tmp_path: Path, login: str) -> None:
    hub.gated.add("owner/name")
    environment = {"HF_TOKEN": hub.token} if login == "environment" else {}
    if login == "file":
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / "token").write_text(hub.token)
    answer = stage(hub, tmp_path, "hf://datasets/owner/name/en", **environment)
    assert answer.returncode == 0, answer.stderr
    assert len(texts(tmp_path / "data" / "raw")) == 150
    assert any(request.authorization == f"Bearer {hub.token}" for request in hub.requests)
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path != tmp_path / "home" / "token"]
    assert tmp_path / "runs/lab/config.yaml" in written
    assert all(hub.token.encode() not in path.read_bytes() for path in written)
    assert hub.token not in answer.stdout + answer.stderr


def test_offline_and_without_a_network(hub: Hub, tmp_path: Path) -> None:
    source = "hf://datasets/owner/name"
    (offline,) = run(hub, tmp_path / "raw", source, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE forbids to ask the Hub" in offline
    assert hub.requests == []
    (unreachable,) = run(hub, tmp_path / "raw", source, HF_ENDPOINT="http://127.0.0.1:9")
    assert "http://127.0.0.1:9 cannot be reached" in unreachable


def test_connection_that_breaks_off_once_is_taken_up_again(hub: Hub, tmp_path: Path) -> None:
    hub.cut_after["data/a.parquet"], hub.cuts = 2_000_000, 1
    (report,) = run(hub, tmp_path / "raw", "hf://datasets/owner/name/data/a.parquet")
    assert report["documents"] == 600
    assert hub.ranges("data/a.parquet") == [None, f"bytes={2**20}-"]


def test_next_run_continues_where_the_connection_broke_off(hub: Hub, tmp_path: Path) -> None:
    source = "hf://datasets/owner/name/data"
    (undisturbed,) = run(hub, tmp_path / "undisturbed", source)
    hub.requests.clear()
    hub.cut_after["data/b.parquet"], hub.cuts = 2_000_000, 100
    (sentence,) = run(hub, tmp_path / "raw", source)
    assert "hf://datasets/owner/name/data/b.parquet: " in sentence
    assert "the connection broke off" in sentence
    hub.cuts = 0
    (report,) = run(hub, tmp_path / "raw", source)
    assert report == undisturbed
    # The first file was fetched once, and the second continued after the megabyte that had arrived.
    assert hub.ranges("data/a.parquet") == [None]
    assert hub.ranges("data/b.parquet") == [None, f"bytes={2**20}-", f"bytes={2**20}-"]
    assert contents(tmp_path / "raw") == contents(tmp_path / "undisturbed")


def test_stage_keeps_what_has_arrived_when_the_connection_breaks_off(hub: Hub, tmp_path: Path) -> None:
    source = "hf://datasets/owner/name/data/a.parquet"
    hub.cut_after["data/a.parquet"], hub.cuts = 2_000_000, 100
    answer = stage(hub, tmp_path, source)
    assert answer.returncode == 2
    assert "the connection broke off" in answer.stderr
    hub.cuts = 0
    hub.requests.clear()
    assert stage(hub, tmp_path, source).returncode == 0
    assert hub.ranges("data/a.parquet") == [f"bytes={2**20}-"]
    assert sorted(path.name for path in (tmp_path / "data").rglob("*")) == [
        "manifest.json",
        "part-00000.parquet",
        "raw",
    ]


def test_refusal_leaves_nothing(hub: Hub, tmp_path: Path) -> None:
    hub.gated.add("owner/name")
    assert stage(hub, tmp_path, "hf://datasets/owner/name/en").returncode == 2
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("listed", [1000, 10_000_000])
def test_size_that_differs_from_the_listing(hub: Hub, tmp_path: Path, listed: int) -> None:
    hub.listed_sizes["data/a.parquet"] = listed
    (answer,) = run(hub, tmp_path / "raw", "hf://datasets/owner/name/data/a.parquet")
    size = (tmp_path / "hub/datasets/owner/name/data/a.parquet").stat().st_size
    assert f"data/a.parquet: the Hub sent {size:,} bytes where it lists {listed:,}" in answer
    hub.listed_sizes.clear()
    (report,) = run(hub, tmp_path / "raw", "hf://datasets/owner/name/data/a.parquet")
    assert report["documents"] == 600
