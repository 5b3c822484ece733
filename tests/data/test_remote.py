"""Splitting and tokenising on a Dask cluster: the files of the local run, whatever becomes of the workers."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.data.documents import contents, write_parquet, write_raw

from retlab.data import remote, shuffle, split, tokens
from retlab.data.parallel import on_cluster, run_tasks, scratch_folder, written_aside
from retlab.data.remote import Remote
from retlab.data.settings import DataSection, TokenizerSection
from retlab.data.split import split_documents
from retlab.data.tokenizer import make_tokenizer
from retlab.data.tokens import tokenise
from retlab.errors import UserError
from retlab.section import PROJECT_ROOT

distributed = pytest.importorskip("distributed")


def test_nothing_of_a_file_shows_before_it_is_whole_and_a_stale_task_writes_none(tmp_path: Path) -> None:
    target = tmp_path / "part"
    with scratch_folder(tmp_path) as scratch, written_aside(target, scratch) as aside:
        aside.write_text("all of it")
        assert not target.exists()
    assert target.read_text() == "all of it"
    assert contents(tmp_path).keys() == {"part"}
    # Of an attempt whose scratch folder is gone.
    with pytest.raises(FileNotFoundError), written_aside(target, scratch) as aside:
        aside.write_text("something else")
    assert target.read_text() == "all of it"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw documents in ten parts, and a tokenizer."""
    folder = tmp_path_factory.mktemp("remote")
    chance = random.Random(0)
    words = ["def ", "return ", "é", "\n", " the", "quick", "1"]
    documents = ["".join(chance.choices(words, k=chance.randrange(1, 300))) for _ in range(2000)]
    documents += documents[:50]
    write_raw(folder / "raw", [documents[start : start + 205] for start in range(0, 2050, 205)])
    write_raw(folder / "text" / "train", [documents[:1000]])
    write_raw(folder / "text" / "validation", [documents[1000:1100]])
    make_tokenizer(TokenizerSection(vocab_size=300), folder / "text", folder / "tokenizer")
    return folder


def prepare(data: Path, folder: Path, **settings: Any) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """Split and tokenise. Returns what every file holds, and the reports."""
    section = DataSection(dask_workers=2, **settings)
    (folder / "tokens").mkdir(parents=True)
    (folder / "splits").mkdir()
    reports = [split_documents(section, data / "raw", folder / "splits")]
    reports.append(tokenise(section, data / "raw", data / "tokenizer", folder / "tokens"))
    return contents(folder), reports


class Workers:
    """Two workers of a scheduler, replaced when they die, as a queue or a supervisor does it on a real cluster."""

    def __init__(self, address: str) -> None:
        self._command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--no-nanny", "--no-dashboard"]
        self._command += ["--nthreads", "1", "--death-timeout", "60"]
        self._processes = [self._start() for _ in range(2)]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._replace, daemon=True)
        self._thread.start()

    def _start(self) -> subprocess.Popen[bytes]:
        paths = os.pathsep.join(map(str, (PROJECT_ROOT / "src", Path(__file__).parent)))
        return subprocess.Popen(
            self._command, env=os.environ | {"PYTHONPATH": paths}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def _replace(self) -> None:
        while not self._ended.wait(0.2):
            for place, process in enumerate(self._processes):
                if process.poll() is not None:
                    self._processes[place] = self._start()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()
        for process in self._processes:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def client() -> "Iterator[distributed.Client]":
    with (
        distributed.LocalCluster(n_workers=0, dashboard_address=None) as cluster,
        distributed.Client(cluster, set_as_default=False) as found,
    ):
        workers = Workers(cluster.scheduler_address)
        yield found
        workers.end()


@pytest.fixture
def cluster(client: "distributed.Client") -> Iterator["distributed.Client"]:
    client.wait_for_workers(1, timeout=120)
    with on_cluster(Remote(client, "the cluster", "its logs", lambda: None)):
        yield client


def kill_one(client: "distributed.Client") -> None:
    """Kill a worker that has something to do."""
    busy = [address for address, tasks in client.processing().items() if tasks]
    assert busy
    pid = client.run(os.getpid, workers=busy[:1])[busy[0]]
    os.kill(pid, signal.SIGKILL)


@pytest.mark.component
@pytest.mark.parametrize("shuffled", [True, False])
def test_files_are_those_of_the_local_run_though_workers_are_killed(
    data: Path, cluster: "distributed.Client", tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shuffled: bool
) -> None:
    # Several buckets in each split, several runs of each part.
    monkeypatch.setattr(shuffle, "BUCKET_BYTES", 2**14)
    with on_cluster(None):
        expected = prepare(data, tmp_path / "local", shuffle=shuffled)
    killed = []

    def killing(function: Callable[..., Any], calls: Any, workers: int | None, done: Callable[[Any], None]) -> Any:
        def then_kill(result: Any) -> None:
            done(result)
            if function not in killed:
                killed.append(function)
                kill_one(cluster)

        return run_tasks(function, calls, workers, then_kill)

    with on_cluster(Remote(cluster, "the cluster", "its logs", lambda: None)):
        for module in (split, shuffle, tokens):
            monkeypatch.setattr(module, "run_tasks", killing)
        assert prepare(data, tmp_path / "remote", shuffle=shuffled) == expected
    assert len(killed) == 2 + shuffled


def _fail(path: Path) -> None:
    raise UserError(f"{path.name} is damaged")


@pytest.mark.component
@pytest.mark.usefixtures("cluster")
def test_what_goes_wrong_on_workers_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusal(function: Callable[..., None], path: Path) -> str:
        with pytest.raises(UserError) as caught:
            run_tasks(function, [(path,)], None, lambda _: None)
        return str(caught.value)

    assert refusal(_fail, tmp_path / "part") == "part is damaged"
    assert "does not see the folder /nowhere/shared" in refusal(_fail, Path("/nowhere/shared/part"))
    monkeypatch.setattr(remote, "identity", lambda: {"pyarrow": "0.1"})
    assert "and here it is 0.1" in refusal(_fail, tmp_path / "part")


@pytest.mark.component
def test_a_stage_on_a_running_cluster_makes_what_the_local_one_makes(
    client: "distributed.Client", tmp_path: Path
) -> None:
    write_parquet(tmp_path / "source" / "a.parquet", [f"document {number}" for number in range(500)])
    found = []
    for name, words in {"here": [], "there": [f"cluster.dask={client.cluster.scheduler_address}"]}.items():
        folder = tmp_path / name
        config = {"name": name, "output_dir": str(folder / "runs"), "emissions": {"enabled": False}}
        config["data"] = {"source": str(tmp_path / "source"), "folder": str(folder / "data")}
        (tmp_path / "lab.yaml").write_text(json.dumps(config))
        for stage in ("download_data", "split_data"):
            answer = run(stage, tmp_path / "lab.yaml", *(words if stage == "split_data" else []))
            assert answer.returncode == 0, answer.stderr
            assert ("on the Dask cluster at" in answer.stdout) == (stage == "split_data" and bool(words))
        found.append({key: value for key, value in contents(folder / "data").items() if key.endswith(".parquet")})
    assert found[0] == found[1]
    answer = run("split_data", tmp_path / "lab.yaml", "--force", "cluster.dask=tcp://127.0.0.1:9")
    assert answer.returncode == 2
    assert "no Dask scheduler answers at tcp://127.0.0.1:9" in answer.stderr
    assert "Traceback" not in answer.stderr


def run(stage: str, config: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROJECT_ROOT / "src" / f"{stage}.py"), str(config), *words]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def test_a_local_run_does_not_import_distributed(data: Path, tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from retlab.cluster.dask_client import data_cluster
from retlab.cluster_settings import ClusterSection
from retlab.data.settings import DataSection
from retlab.data.split import split_documents
with data_cluster(ClusterSection(), "split_data", None, Path("nowhere"), print):
    split_documents(DataSection(), Path({str(data / "raw")!r}), Path({str(tmp_path)!r}))
print("distributed" in sys.modules)
"""
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT / "src")}
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert answer.stdout.splitlines()[-1:] == ["False"], answer.stderr


def _die(_: Path) -> None:
    os._exit(1)


@pytest.mark.component
@pytest.mark.usefixtures("cluster")
def test_a_task_that_takes_worker_after_worker_with_it_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"every worker that worked on .*part\.parquet was lost"):
        run_tasks(_die, [(tmp_path / "part.parquet",)], None, lambda _: None)
