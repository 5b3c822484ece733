"""A virtual environment that has torch and transformers, what they require, and nothing else."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement


def make_bare_environment(folder: Path) -> Path:
    """Make the environment out of links into this one, and return its Python. It needs no network."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = folder / "lib" / version / "site-packages"
    for distribution in required_by("torch", "transformers"):
        for file in distribution.files or []:
            top = file.parts[0]
            source = Path(str(distribution.locate_file(top)))
            # Scripts lie outside; a .pth file runs when Python starts.
            if top not in ("..", "__pycache__") and source.suffix != ".pth" and not (packages / top).exists():
                (packages / top).symlink_to(source.resolve())
    return folder / "bin" / "python"


def required_by(*names: str) -> list[metadata.Distribution]:
    """The installed distributions of these names and of everything that they require."""
    found: dict[str, metadata.Distribution] = {}
    waiting = [Requirement(name) for name in names]
    while waiting:
        needed = waiting.pop()
        distribution = metadata.distribution(needed.name)
        if needed.name in found and not needed.extras:
            continue
        found[needed.name] = distribution
        for line in distribution.requires or []:
            requirement = Requirement(line)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ["", *needed.extras]):
                waiting.append(requirement)
    return list(found.values())


def run_python(python: Path | str, script: str, *words: str | Path, cwd: Path, **environment: str) -> str:
    """Run a script in a fresh process without this process' paths and Hub settings; returns what it printed."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING", "PYTHON"))}
    answer = subprocess.run(
        [python, "-c", script, *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**kept, "HF_HOME": str(cwd / "hub"), "HF_HUB_OFFLINE": "1", **environment},
        stdin=subprocess.DEVNULL,
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout
