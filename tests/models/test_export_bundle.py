"""The generated file of modelling code: deterministic, complete, and refused where joining would change a meaning."""

import ast

import pytest

from retlab.mixers import MIXERS
from retlab.models import bundle
from retlab.models.causal_lm import MODELS


def test_every_model_and_mixer_is_in_the_code() -> None:
    defined = {node.name for node in ast.parse(bundle.modelling_code()).body if isinstance(node, ast.ClassDef)}
    classes = [*MIXERS.values(), *MODELS.values(), *(model.config_class for model in MODELS.values())]
    assert {one.__name__ for one in classes} <= defined


def test_comments_survive_and_imports_are_gone() -> None:
    code = bundle.modelling_code()
    assert "# An exponent that stands for" in code
    assert not any(isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(ast.parse(code)))
    assert code.count("import torch\n") == 1


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A library of two modules, whose texts a test gives; returns a function that bundles them."""
    monkeypatch.setattr(bundle, "_SOURCES", tmp_path)
    (tmp_path / "models").mkdir()

    def make(fields: str, causal_lm: str) -> str:
        (tmp_path / "models" / "fields.py").write_text(fields)
        (tmp_path / "models" / "causal_lm.py").write_text(causal_lm)
        return bundle.modelling_code.__wrapped__()

    return make


def test_a_module_stands_behind_what_it_needs(sources) -> None:
    code = sources("import math\nONE = math.tau\n", "import math\nfrom .fields import ONE\n\n# Why.\nTWO = ONE * 2\n")
    names = {}
    exec(code, names)
    assert names["TWO"] == 2 * names["ONE"]
    assert code.count("import math") == 1
    assert "# Why." in code


@pytest.mark.parametrize(
    ("fields", "causal_lm", "words"),
    [
        ("ONE = 1\n", "from .fields import ONE\nONE = 2\n", "ONE, as retlab.models.fields does"),
        ("def f(): ...\n", "from math import tau as f\nfrom .fields import g\n", "f, as an import does"),
        ("from math import tau as x\n", "from math import pi as x\nfrom .fields import y\n", "x has two meanings"),
        ("ONE = 1\n", "def f():\n    from .fields import ONE\n", "relative imports stand at the top"),
        ("ONE = 1\n", "from .fields import ONE as TWO\n", "names stay what they are"),
        ("ONE = 1\n", "from . import fields\n", "import names, not modules"),
        ("import retlab.errors\n", "from .fields import ONE\n", "imports its like relatively"),
    ],
)
def test_code_that_cannot_be_joined_is_refused(sources, fields: str, causal_lm: str, words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        sources(fields, causal_lm)
