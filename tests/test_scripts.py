"""The shell scripts and the README's commands, run as a user would."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from retlab.section import PROJECT_ROOT
from tests.conftest import TINY, environment
from tests.forked import Script

pytestmark = pytest.mark.component
SCRIPTS = PROJECT_ROOT / "scripts"
README = (PROJECT_ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    "script", sorted([*PROJECT_ROOT.glob("s*/*.sh"), PROJECT_ROOT / ".ci" / "run"]), ids=lambda s: s.name
)
def test_scripts_are_valid_bash(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)


# A sweep over the quickstart would train; that one with its trials done is up to date is tested with the sweeps.
@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("0[1-6]*.sh")), ids=lambda script: script.name)
def test_numbered_scripts_run_from_any_folder_and_are_up_to_date(
    script: Path, quickstart: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "mine.yaml"
    shutil.copy(quickstart / "runs" / "quickstart-retnet" / "config.yaml", copy)
    answer = subprocess.run(
        ["bash", str(quickstart / "scripts" / script.name), "mine.yaml"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert answer.returncode == 0, answer.stderr
    assert "up to date" in answer.stdout


@pytest.mark.parametrize("script", sorted(SCRIPTS.glob("0*.sh")), ids=lambda script: script.name)
def test_numbered_scripts_say_what_is_wrong_and_exit_with_2(script: Path, tmp_path: Path) -> None:
    for words in ([str(tmp_path / "no.yaml")], [str(PROJECT_ROOT / "configs/quickstart.yaml"), "train.lerning_rate=1"]):
        answer = subprocess.run(["bash", str(script), *words], env=environment(), capture_output=True, text=True)
        assert answer.returncode == 2
        assert answer.stderr.startswith("error: ")
        assert "Traceback" not in answer.stderr


@pytest.mark.parametrize(
    ("script", "words", "sentence"),
    [
        ("run_pipeline.sh", [], "CONFIG is missing"),
        ("04_tokenize_data.sh", ["seed=3"], "the experiment's YAML file comes first"),
        ("run_stage.sh", [], "name a stage first"),
        ("run_stage.sh", ["compare_runs"], "RUN_FOLDER is missing"),
        ("run_stage.sh", ["compare_runs", "--all"], "--all is not understood"),
    ],
)
def test_a_wrong_command_line_is_one_sentence(script: str, words: list[str], sentence: str) -> None:
    command = ["bash", str(SCRIPTS / script), *words]
    answer = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert (answer.returncode, answer.stderr.count("\n"), answer.stdout) == (2, 1, ""), answer.stderr
    assert sentence in answer.stderr


def test_an_environment_without_the_requirements_is_named(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "empty")], check=True)
    command = ["bash", str(SCRIPTS / "run_pipeline.sh"), str(PROJECT_ROOT / "configs" / "quickstart.yaml")]
    changed = environment() | {"VIRTUAL_ENV": str(tmp_path / "empty")}
    changed.pop("PYTHONPATH", None)
    answer = subprocess.run(command, env=changed, capture_output=True, text=True)
    assert (answer.returncode, "setup_environment.sh" in answer.stderr) == (2, True)
    assert "Traceback" not in answer.stderr


def test_tokenize_takes_the_names_of_splits(quickstart: Path) -> None:
    config = str(quickstart / "runs" / "quickstart-retnet" / "config.yaml")
    script = str(quickstart / "scripts" / "04_tokenize_data.sh")
    answer = subprocess.run(["bash", script, config, "test"], env=environment(), capture_output=True, text=True)
    assert answer.returncode == 0
    assert "tokenize_data test" in answer.stdout
    assert "train" not in answer.stdout
    answer = subprocess.run(["bash", script, config, "tets"], env=environment(), capture_output=True, text=True)
    assert (answer.returncode, "tets is not understood (did you mean test?)" in answer.stderr) == (2, True)


def test_python_entry_is_the_same_thing(quickstart: Path) -> None:
    config = str(quickstart / "runs" / "quickstart-retnet" / "config.yaml")
    command = [sys.executable, str(quickstart / "src" / "train_model.py"), config, "train.log_every_steps=1"]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert (answer.returncode, "up to date" in answer.stdout) == (0, True), answer.stderr


def test_the_quickstart_in_a_fresh_clone(quickstart: Path) -> None:
    text = (quickstart.parent / "quickstart.txt").read_text()
    for word in (
        "quickstart-retnet", "quickstart-transformer", "bits per byte", "perplexity", "uniform", "unigram", "bigram",
        "gzip", "xz", "kWh", "def read_lines",
    ):  # fmt: skip
        assert word in text, word
    comparison = text[text.rindex("[evaluate_model") :].splitlines()[1:]
    assert max(len(line) for line in comparison) <= 100
    assert (quickstart / "runs" / "quickstart-transformer" / "model" / "model.safetensors").is_file()
    # Without the locks of what tests of other processes run here.
    files = [file for name in ("data", "runs/quickstart-retnet", "runs/quickstart-transformer")
             for file in (quickstart / name).rglob("*") if file.is_file() and file.name[0] != "."]  # fmt: skip
    before = {file: file.stat().st_mtime_ns for file in files}
    status = ["git", "-C", str(quickstart), "status", "--short", "--", "data", "runs"]
    assert not subprocess.run(status, capture_output=True, text=True, check=True).stdout, "git ignores what runs leave"
    command = ["bash", str(quickstart / "scripts" / "quickstart.sh"), *TINY]
    second = subprocess.run(command, capture_output=True, text=True, cwd=quickstart.parent)
    assert second.stdout.count("up to date") == 18, second.stdout
    assert {file: file.stat().st_mtime_ns for file in files} == before


def test_check_config_prints_a_configuration_that_loads(tmp_path: Path) -> None:
    script = str(PROJECT_ROOT / "src" / "check_config.py")
    command = [sys.executable, script, str(PROJECT_ROOT / "configs" / "quickstart.yaml"), "seed=3"]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    (tmp_path / "copy.yaml").write_text(answer.stdout)
    again = subprocess.run(
        [sys.executable, script, str(tmp_path / "copy.yaml")], capture_output=True, text=True, check=True
    )
    assert again.stdout == answer.stdout


def _commands() -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", README, flags=re.S)
    return [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def test_the_readme_names_only_scripts_and_configurations_that_exist() -> None:
    paths = set(re.findall(r"\b(?:scripts|slurm|configs|src|tests)/[\w./-]+\.(?:sh|yaml|py|json)", README))
    missing = [path for path in paths if not (PROJECT_ROOT / path).is_file() and "user_configs/mine" not in path]
    assert not missing


def test_the_readmes_commands_for_own_experiments_run(quickstart: Path) -> None:
    """The commands with configs/user_configs/mine.yaml; the quickstart and the test command have tests of their own."""
    commands = [command for command in _commands() if "user_configs/mine.yaml" in command]
    assert len(commands) >= 3
    # A finished experiment as the user's own: what it has already is up to date.
    finished = (quickstart / "runs" / "quickstart-retnet" / "config.yaml").read_text()
    mine = finished.replace("emissions:\n  enabled: true", "emissions:\n  enabled: false")
    assert mine != finished
    (quickstart / "configs" / "user_configs" / "mine.yaml").write_text(mine)
    for command in commands:
        words = re.sub(r"\s+", " ", command).split(" ")
        answer = subprocess.run(words, cwd=quickstart, env=environment(), capture_output=True, text=True)
        assert answer.returncode == 0, f"{command}\n{answer.stdout}{answer.stderr}"


def test_the_readmes_python_snippets_run(quickstart: Path, tmp_path: Path) -> None:
    snippets = re.findall(r"```python\n(.*?)```", README, flags=re.S)
    assert len(snippets) >= 2
    model = str(quickstart / "runs/quickstart-retnet/model")
    for number, snippet in enumerate(snippets):
        (tmp_path / f"{number}.py").write_text(snippet.replace("runs/quickstart-retnet/model", model))
        process = Script(tmp_path / f"{number}.py", cwd=tmp_path)
        text, _ = process.communicate()
        assert process.returncode == 0, text


@pytest.mark.parametrize("name", ["TERM", "INT", "USR1"])
def test_a_script_that_is_asked_to_end_hands_it_on_and_waits(name: str, tmp_path: Path) -> None:
    """The stage saves first; the script ends with its exit code, and no later than it."""
    stage = (
        "import signal, sys, time\n"
        "def save(*_):\n"
        "    time.sleep(0.3)\n"
        "    print('saved', flush=True)\n"
        "    sys.exit(75)\n"
        f"signal.signal(signal.SIG{name}, save)\n"
        "print('ready', flush=True)\n"
        "time.sleep(600)\n"
    )
    (tmp_path / "stage.py").write_text(stage)
    script = f"set -euo pipefail\n. {PROJECT_ROOT}/scripts/run_child.sh\nrun_child bash inner.sh\necho not reached\n"
    (tmp_path / "outer.sh").write_text(script)
    inner = f"set -euo pipefail\n. {PROJECT_ROOT}/scripts/run_child.sh\nrun_child {sys.executable} stage.py\n"
    (tmp_path / "inner.sh").write_text(inner)
    process = subprocess.Popen(["bash", "outer.sh"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(getattr(signal, f"SIG{name}"))
    assert process.stdout.read() == "saved\n"
    assert process.wait(300) == 75


def test_a_script_ends_with_the_code_of_what_it_runs(tmp_path: Path) -> None:
    for command, code in (("true", 0), ("bash -c 'exit 3'", 3), ("bash -c 'kill -TERM $$'", 143)):
        script = f"set -euo pipefail\n. {PROJECT_ROOT}/scripts/run_child.sh\nrun_child {command}\n"
        (tmp_path / "script.sh").write_text(script)
        assert subprocess.run(["bash", "script.sh"], cwd=tmp_path).returncode == code


@pytest.mark.parametrize("script", sorted(PROJECT_ROOT.glob("src/*.py")), ids=lambda script: script.name)
def test_ctrl_c_while_a_script_loads_its_libraries_is_no_traceback(script: Path, tmp_path: Path) -> None:
    pressed = "event == 'import' and words[0] == 'pydantic' and os.kill(os.getpid(), signal.SIGINT)"
    (tmp_path / "sitecustomize.py").write_text(
        f"import os, signal, sys\nsys.addaudithook(lambda event, words: {pressed})\n"
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(script), "any.yaml"]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment() | {"PYTHONPATH": path})
    assert (answer.returncode, answer.stderr) == (-signal.SIGINT, "")


@pytest.mark.parametrize("script", sorted(PROJECT_ROOT.glob("src/*.py")), ids=lambda script: script.name)
def test_a_python_without_the_libraries_is_a_sentence(script: Path) -> None:
    # -S leaves out the folder that packages are installed into.
    command = [sys.executable, "-S", str(script), "configs/quickstart.yaml"]
    answer = subprocess.run(command, capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
    assert answer.returncode == 2
    assert "source .venv/bin/activate" in answer.stderr
    assert answer.stderr.count("\n") == 1


def test_data_that_an_experiment_of_another_name_has_is_hinted_at() -> None:
    command = [sys.executable, str(PROJECT_ROOT / "src" / "split_data.py")]
    command += [str(PROJECT_ROOT / "configs" / "quickstart.yaml"), "name=never-made", "data.folder=null"]
    answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 2
    assert "or take another experiment's data: data.folder=data/<its name>" in answer.stderr
    assert not (PROJECT_ROOT / "data" / "never-made").exists()
