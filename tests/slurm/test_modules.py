"""Environment modules of jobs, with the real `module` command."""

from pathlib import Path

import pytest
import yaml
from tests.slurm.experiments import script
from tests.slurm.private import PrivateSlurm

from retlab.section import PROJECT_ROOT

pytestmark = [
    pytest.mark.component,
    pytest.mark.skipif(
        not Path("/usr/share/modules/init/bash").exists(),
        reason="needs environment modules: apt-get install environment-modules",
    ),
]

# The second one shows what the first has set.
MODULES = {
    "first/1.0": "setenv FIRST one\n",
    "second/2.0": "setenv SECOND $::env(FIRST),two\nprepend-path PYTHONPATH {tell}\n",
    "broken": "error here\n",
}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in MODULES.items():
        file = tmp_path / "modules" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("#%Module\n" + text.format(tell=tmp_path / "tell"))
    # Python runs it at its start, in the stage as everywhere.
    tell = f"import os, pathlib\npathlib.Path('{tmp_path}/told').write_text(os.environ.get('SECOND', 'nothing'))\n"
    (tmp_path / "tell").mkdir()
    (tmp_path / "tell" / "sitecustomize.py").write_text(tell)
    monkeypatch.setenv("MODULEPATH", str(tmp_path / "modules"))
    (tmp_path / "text.txt").write_text("some text\n" * 100)
    values = {"name": "mine", "output_dir": str(tmp_path / "runs"), "emissions": {"enabled": False}}
    values["data"] = {"folder": str(tmp_path / "data"), "source": str(tmp_path / "text.txt")}
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def run(slurm: PrivateSlurm, config: Path, modules: str) -> tuple[dict[str, str], str]:
    """The first stage's job, and its log."""
    answer = script(PROJECT_ROOT, "01_download_data.sh", str(config), f"cluster.modules={modules}")
    assert answer.returncode == 0, answer.stderr
    (log,) = (config.parent / "runs" / "mine" / "slurm").glob("*.json")
    (job,) = slurm.wait(int(log.stem))
    return job, log.with_name(f"download_data-{log.stem}.log").read_text()


def test_modules_are_loaded_in_their_order_before_the_stage(slurm: PrivateSlurm, config: Path) -> None:
    job, log = run(slurm, config, "[first/1.0, second/2.0]")
    assert job["JobState"] == "COMPLETED", log
    assert (config.parent / "told").read_text() == "one,two"


@pytest.mark.parametrize("modules", ["[first/1.0, not-there]", "[broken]"])
def test_a_module_that_cannot_be_loaded_ends_the_job(slurm: PrivateSlurm, config: Path, modules: str) -> None:
    job, log = run(slurm, config, modules)
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "2:0"), log
    name = modules.strip("[]").rpartition(", ")[2]
    assert f"error: module load {name} failed on " in log
    assert "(cluster.modules); module avail lists what there is" in log
    assert not (config.parent / "data" / "raw").exists()
