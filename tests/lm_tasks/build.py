"""A task folder for lm-eval, whose data are docstrings of Python's own library.

    python tests/lm_tasks/build.py FOLDER

Three kinds of tasks: multiple choice (local_mc), two-way cloze (local_wino), rolling perplexity (local_ppl); and a
group of the first two (local_choices). The same Python gives the same files.
"""

import ast
import json
import random
import re
import shutil
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_HERE = Path(__file__).parent
_LONGEST_HALF = 50
_MODULES = ("argparse", "ast", "bisect", "calendar", "cmd", "codecs", "configparser", "copy", "csv", "datetime",
            "decimal", "difflib", "fractions", "functools", "heapq", "inspect", "optparse", "pathlib", "pickle",
            "pprint", "random", "shutil", "statistics", "string", "tarfile", "textwrap", "threading", "typing",
            "unittest", "zipfile")  # fmt: skip


def build(folder: Path, questions: int = 40, documents: int = 8) -> Path:
    """Write the task files and their data into a folder and return it."""
    shutil.copytree(
        _HERE, folder, ignore=shutil.ignore_patterns("*build.py", "__init__.py", "__pycache__"), dirs_exist_ok=True
    )
    for file in folder.glob("local_*.yaml"):
        file.write_text(re.sub(r"(: )data/", rf"\1{folder.absolute()}/data/", file.read_text()))
    data = folder / "data"
    data.mkdir(exist_ok=True)
    texts = _docstrings()
    sentences = [sentence for text in texts for sentence in _sentences(text)]
    draw = random.Random(0)
    endings = [_endings(draw, sentences) for _ in range(2 * questions)]
    for split, part in (("train", endings[:questions]), ("validation", endings[questions:])):
        lines = "".join(json.dumps(question) + "\n" for question in part)
        (data / f"endings.{split}.jsonl").write_text(lines)
    pq.write_table(pa.Table.from_pylist([_gap(draw, sentences) for _ in range(questions)]), data / "gaps.parquet")
    longest = sorted(texts, key=len, reverse=True)[:documents]
    pq.write_table(pa.table({"text": longest}), data / "documents.parquet")
    return folder


def _docstrings() -> list[str]:
    """All docstrings of some modules, in the order of the modules."""
    texts = []
    for name in _MODULES:
        place = Path(sysconfig.get_paths()["stdlib"]) / name
        file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        tree = ast.parse(file.read_text(encoding="utf-8"))
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
        texts += [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)]
    return [text for text in dict.fromkeys(texts) if text]


def _sentences(text: str) -> list[str]:
    """Sentences of 8 to 25 words without underscores, whose halves are short enough for tiny windows."""
    parts = re.split(r"(?<=[.!?])\s+", " ".join(text.split()))
    fitting = [part for part in parts if 8 <= len(part.split()) <= 25 and "_" not in part]
    return [part for part in fitting if all(len(half.encode()) <= _LONGEST_HALF for half in _halves(part))]


def _endings(draw: random.Random, sentences: list[str]) -> dict[str, Any]:
    """A sentence's beginning, its ending, and those of three others."""
    halves = [_halves(sentence) for sentence in draw.sample(sentences, 4)]
    label = draw.randrange(4)
    endings = [ending for _, ending in halves]
    endings[0], endings[label] = endings[label], endings[0]
    return {"beginning": halves[0][0], "endings": endings, "label": label}


def _halves(sentence: str) -> tuple[str, str]:
    words = sentence.split()
    middle = len(words) // 2
    return " ".join(words[:middle]), " ".join(words[middle:])


def _gap(draw: random.Random, sentences: list[str]) -> dict[str, str]:
    """A sentence without one of its words, that word, and one from another sentence."""
    sentence, other = (text.split() for text in draw.sample(sentences, 2))
    place = draw.randrange(1, len(sentence) - 2)
    right = sentence[place]
    wrong = draw.choice([word for word in other if word != right])
    answer = draw.choice("12")
    options = {"option1": right, "option2": wrong} if answer == "1" else {"option1": wrong, "option2": right}
    return {"sentence": " ".join([*sentence[:place], "_", *sentence[place + 1 :]]), **options, "answer": answer}


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))
