"""Models of the hub as `evaluate.model`, by the real client from a stand-in, in processes of its own."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.evaluation.trained import write_other_model
from tests.stand_ins.hub import COMMIT, Hub

from retlab.section import PROJECT_ROOT

pytestmark = pytest.mark.component

FIND = """
import json, sys
sys.path.insert(0, sys.argv[1])
from retlab.errors import UserError
from retlab.evaluation.other_model import find_other_model
answers = []
for source in sys.argv[2:]:
    try:
        found = find_other_model(source)
        answers.append([found.name, str(found.folder), found.identity])
    except UserError as error:
        answers.append(str(error))
print(json.dumps(answers))
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    models = tmp_path / "hub" / "models" / "owner"
    write_other_model(models / "tiny-llama")
    (models / "tiny-llama" / "pytorch_model.bin").write_bytes(b"a pickle that nobody asked for")
    (models / "tiny-llama" / "modeling_evil.py").write_text("raise SystemExit('code of the hub was run')\n")
    (models / "pickled").mkdir()
    (models / "pickled" / "config.json").write_text("{}")
    (models / "pickled" / "tokenizer.json").write_text("{}")
    with Hub(tmp_path / "hub") as hub:
        yield hub


def find(hub: Hub, home: Path, *sources: str, **environment: str) -> list[object]:
    command = [sys.executable, "-c", FIND, str(PROJECT_ROOT / "src"), *sources]
    answer = subprocess.run(command, capture_output=True, text=True, env=hub.environment(home, **environment))
    assert answer.returncode == 0, answer.stderr
    return list(json.loads(answer.stdout.splitlines()[-1]))


def test_a_model_of_the_hub_is_fetched_once_without_code_and_pickles(hub: Hub, tmp_path: Path) -> None:
    ((name, folder, identity),) = find(hub, tmp_path / "home", "owner/tiny-llama")  # type: ignore[misc]
    assert (name, identity) == ("tiny-llama", {"hub": "owner/tiny-llama", "commit": COMMIT})
    files = {file.name for file in Path(folder).iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= files
    assert not {"pytorch_model.bin", "modeling_evil.py"} & files
    # What lies in the cache needs no hub.
    (again,) = find(hub, tmp_path / "home", "owner/tiny-llama", HF_HUB_OFFLINE="1")
    assert again == [name, folder, identity]


def test_what_cannot_be_had_is_a_sentence(hub: Hub, tmp_path: Path) -> None:
    hub.gated.add("owner/pickled")
    missing, gated, wrong = find(hub, tmp_path / "home", "owner/nothing", "owner/pickled", "a/b/c")
    assert "evaluate.model: owner/nothing: the Hub has no model owner/nothing, or it is private" in str(missing)
    assert f"owner/pickled is gated: accept its conditions on {hub.url}/owner/pickled" in str(gated)
    assert "evaluate.model: there is no folder" in str(wrong)
    hub.gated.clear()
    (pickled,) = find(hub, tmp_path / "other", "owner/pickled")
    assert "evaluate.model: owner/pickled holds no weights (*.safetensors)" in str(pickled)
    (offline,) = find(hub, tmp_path / "third", "owner/tiny-llama", HF_HUB_OFFLINE="1")
    assert "evaluate.model: owner/tiny-llama" in str(offline)
    assert "not in the local cache" in str(offline)
    (unreachable,) = find(hub, tmp_path / "fourth", "owner/tiny-llama", HF_ENDPOINT="http://127.0.0.1:9")
    assert "cannot be reached" in str(unreachable)
