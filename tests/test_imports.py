"""Imports go one way, and `import retlab` loads nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from retlab.section import PROJECT_ROOT

PACKAGE = PROJECT_ROOT / "src" / "retlab"
# Each layer may import from itself and from those before it.
LAYERS = [
    {
        "differences",
        "drawing",
        "errors",
        "section",
        "artifacts",
        "measuring",
        "memory",
        "nodes",
        "progress",
        "provenance",
        "slurm_step",
        "storage",
        "yaml_file",
    },
    {"own_kernels"},
    {"mixers", "data", "synthetic"},
    {"models"},
    {"training", "evaluation", "conversion", "emissions", "emissions_rows", "emissions_monitor"},
    {"sweep_settings", "cluster_settings"},
    {"config", "config_checks", "config_errors", "config_problems", "config_model", "config_template", "grid_checks"}
    | {"upstream", "machine_checks"},
    {"cluster", "subject"},
    {"sweep", "benchmark", "comparison"},
    {"command", "script_start", "stage"},
]
RANK = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}
FILES = sorted(file for file in PACKAGE.rglob("*.py") if file != PACKAGE / "__init__.py")


def _imported(file: Path) -> set[str]:
    """First-level names of the retlab modules that a file imports, type-checking imports left out."""
    found = set()
    tree = ast.parse(file.read_text())
    guarded = {
        inner for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }  # fmt: skip
    package = file.relative_to(PACKAGE.parent).parent.parts
    for node in ast.walk(tree):
        if node in guarded:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) + "." if node.level else ""
            module = (base + (node.module or "")).rstrip(".")
            found |= {f"{module}.{alias.name}" for alias in node.names}
    return {name.split(".")[1] for name in found if name.startswith("retlab.")}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_one_way(file: Path) -> None:
    own = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    later = {name for name in _imported(file) if RANK[name] > RANK[own]}
    assert not later, f"{own} may not import {later}"


@pytest.mark.parametrize("script", sorted(PACKAGE.parent.glob("*.py")), ids=lambda file: file.name)
def test_scripts_import_no_scripts(script: Path) -> None:
    names = {other.stem for other in PACKAGE.parent.glob("*.py")}
    imported = {
        alias.name.split(".")[0]
        for node in ast.walk(ast.parse(script.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in ([ast.alias(node.module or "")] if isinstance(node, ast.ImportFrom) else node.names)
    }
    assert not imported & names


def test_import_retlab_loads_no_heavy_library() -> None:
    code = "import sys, retlab; print(sorted({'torch', 'transformers', 'pydantic', 'pyarrow'} & set(sys.modules)))"
    command = [sys.executable, "-c", code]
    environment = {"PYTHONPATH": str(PACKAGE.parent), "PATH": "/usr/bin:/bin"}
    answer = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert answer.stdout.strip() == "[]"


def test_models_on_a_cpu_need_no_compiler() -> None:
    """Importing torch's compiler takes a second, and plans and workers of stages compile nothing."""
    code = """
import sys
from retlab.models.body import Body
from retlab.models.counting import count_parameters
from retlab.models.fields import FIELDS
for name in ("retnet", "transformer", "longnet"):
    fields = FIELDS[name](hidden_size=16, num_attention_heads=2)
    Body(16, fields.block_list(), 1, 1e-6)
    count_parameters(fields)
print(sorted({"torch._dynamo", "transformers"} & set(sys.modules)))
"""
    command = [sys.executable, "-c", code]
    environment = {"PYTHONPATH": str(PACKAGE.parent), "PATH": "/usr/bin:/bin"}
    answer = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert answer.stdout.strip() == "[]"
