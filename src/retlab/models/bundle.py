"""The modelling code that travels with a saved model: this library's model modules joined into one file.

One file, because transformers keeps a saved folder's files apart by the imports below each entry point: the
configuration's own file and the model's would define two different classes of the same name.
"""

import ast
import functools
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from retlab.models.configuration import ModelConfig

CODE_MODULE = "modeling_retlab"
"""Name of the file, without `.py`, as `auto_map` in `config.json` has it."""

_ROOT = "retlab.models.causal_lm"
_SOURCES = Path(__file__).parents[1]
_HEADER = '''"""The modelling code of a RetLab model, generated from RetLab; it needs torch and transformers only.

    AutoModelForCausalLM.from_pretrained("this folder", trust_remote_code=True)
"""
'''


class _Module(NamedTuple):
    """A source file; `package` is what its relative imports are relative to."""

    name: str
    package: str
    source: str
    tree: ast.Module


def add_modelling_code(config: "ModelConfig", folder: Path) -> None:
    """Write the modelling code into a folder, and have the configuration name it (`auto_map`)."""
    from retlab.models.causal_lm import MODELS

    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{CODE_MODULE}.py").write_text(modelling_code(), encoding="utf-8")
    config.auto_map = {
        "AutoConfig": f"{CODE_MODULE}.{type(config).__name__}",
        "AutoModelForCausalLM": f"{CODE_MODULE}.{MODELS[config.architecture].__name__}",
    }


@functools.cache
def modelling_code() -> str:
    """The models of all architectures and what they are made of as the text of one Python file."""
    modules = _in_import_order(_ROOT, {})
    imports = _outer_imports(modules)
    parts = [_HEADER, _import_block(imports)]
    defined = dict.fromkeys(imports, "an import")
    for module in modules:
        for name in _defined_names(module.tree):
            # The modules become one: of two definitions of a name, the second would replace the first in both.
            assert name not in defined, f"{module.name} defines {name}, as {defined[name]} does: rename one"
            defined[name] = module.name
        parts.append(f"# {module.name}\n\n{_without_imports(module)}\n")
    return "\n\n".join(parts)


def _in_import_order(name: str, found: dict[str, _Module]) -> list[_Module]:
    """A module and those it imports from this library, each after what it needs itself."""
    module = _read(name)
    for node in ast.walk(module.tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            needed = _target(module, node)
            if needed not in found:
                _in_import_order(needed, found)
    found[name] = module
    return list(found.values())


def _read(name: str) -> _Module:
    path = _SOURCES.joinpath(*name.split(".")[1:])
    is_package = path.is_dir()
    source = (path / "__init__.py" if is_package else path.with_suffix(".py")).read_text(encoding="utf-8")
    return _Module(name, name if is_package else name.rpartition(".")[0], source, ast.parse(source))


def _target(module: _Module, node: ast.ImportFrom) -> str:
    """The module that a relative import at the top of a file names."""
    assert node in module.tree.body, f"{module.name}:{node.lineno}: relative imports stand at the top"
    assert node.module is not None, f"{module.name}:{node.lineno}: import names, not modules"
    assert all(alias.asname is None for alias in node.names), f"{module.name}:{node.lineno}: names stay what they are"
    return importlib.util.resolve_name("." * node.level + node.module, module.package)


def _outer_imports(modules: list[_Module]) -> dict[str, tuple[str, str]]:
    """What the modules import from other libraries: by the name it gets, the module and the name there ("": itself)."""
    found: dict[str, tuple[str, str]] = {}
    for module in modules:
        for node in module.tree.body:
            if isinstance(node, ast.Import):
                entries = {alias.asname or alias.name: (alias.name, "") for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                entries = {alias.asname or alias.name: (node.module or "", alias.name) for alias in node.names}
            else:
                continue
            for bound, entry in entries.items():
                assert not entry[0].startswith("retlab"), f"{module.name}: modelling code imports its like relatively"
                assert found.setdefault(bound, entry) == entry, f"{module.name}: {bound} has two meanings"
    return found


def _import_block(imports: dict[str, tuple[str, str]]) -> str:
    """Import statements: the standard library, then the rest, each in alphabetical order."""
    plain, names = [], dict[str, list[str]]()
    for bound, (module, name) in sorted(imports.items()):
        alias = bound if bound == (name or module) else f"{name or module} as {bound}"
        if name:
            names.setdefault(module, []).append(alias)
        else:
            plain.append(f"import {alias}")
    lines = sorted(plain) + [f"from {module} import {', '.join(names[module])}" for module in sorted(names)]
    ours = [line for line in lines if line.split()[1].split(".")[0] in sys.stdlib_module_names]
    return "\n".join([*ours, "", *(line for line in lines if line not in ours)])


def _defined_names(tree: ast.Module) -> list[str]:
    """Functions, classes and variables that a module defines at its top level."""
    names: list[str] = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names += [target.id for target in targets if isinstance(target, ast.Name)]
    return names


def _without_imports(module: _Module) -> str:
    """A module's text, comments included, without its imports."""
    lines = module.source.splitlines()
    for node in module.tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            assert node.end_lineno is not None
            lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
    kept: list[str] = []
    for line in lines:
        # Two empty lines at most.
        if line or kept[-2:] != ["", ""]:
            kept.append(line)
    return "\n".join(kept).strip()
