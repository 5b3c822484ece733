"""Exported folders: what is in them, and that they work wherever torch and transformers are."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.models.bare_environment import make_bare_environment, run_python
from tests.models.small import padded, small_ids, small_model
from tests.stand_ins.hub import Hub
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from retlab import HybridModelHF, LongNetModelHF, RetNetModelHF, TransformerModelHF
from retlab.models.bundle import modelling_code
from retlab.models.export import export_model
from retlab.section import PROJECT_ROOT

ARCHITECTURES = {
    "retnet": RetNetModelHF,
    "transformer": TransformerModelHF,
    "longnet": LongNetModelHF,
    "hybrid": HybridModelHF,
}
SPECIAL = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}


def byte_tokenizer(folder: Path) -> Path:
    """A tokenizer of the 256 bytes and four special tokens."""
    words = [*SPECIAL.values(), *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(tokenizer_models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=core, **SPECIAL).save_pretrained(folder)
    return folder


def model_of(architecture: str):
    """A small model with the tokenizer's special ids; the Transformer's embeddings are tied."""
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return small_model(architecture, vocab_size=264, tie_word_embeddings=architecture == "transformer", **special)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exported folders of all architectures; `<name>.safetensors` holds inputs, logits and generated ids of each."""
    root = tmp_path_factory.mktemp("exported")
    tokenizer = byte_tokenizer(root / "tokenizer")
    for architecture in ARCHITECTURES:
        model = model_of(architecture)
        export_model(model, root / architecture, tokenizer_folder=tokenizer)
        ids, mask = padded(small_ids(tokens=30), [0, 7], "left")
        with torch.no_grad():
            logits = model(ids, attention_mask=mask).logits
            tokens = model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False, eos_token_id=-1)
        tensors = {"ids": ids, "mask": mask, "logits": logits, "tokens": tokens}
        save_file(tensors, root / f"{architecture}.safetensors")
    return root


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with torch and transformers and no RetLab."""
    return make_bare_environment(tmp_path_factory.mktemp("bare"))


CHECK = """
import importlib.util, sys
import torch
from pathlib import Path
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

torch.set_num_threads({threads})

def check(name, expected, **options):
    "Load a folder or a name on the Hub, compare it with what the exporting process computed, and return the model."
    config = AutoConfig.from_pretrained(name, **options)
    model, loading = AutoModelForCausalLM.from_pretrained(name, output_loading_info=True, **options)
    assert not any(loading.values()), loading
    assert type(config) is type(model.config) and config.to_dict() == model.config.to_dict()
    known = load_file(expected)
    batch = dict(input_ids=known["ids"], attention_mask=known["mask"])
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, known["logits"])
    for use_cache in (True, False):
        tokens = model.generate(**batch, max_new_tokens=12, do_sample=False, eos_token_id=-1, use_cache=use_cache)
        assert torch.equal(tokens, known["tokens"]), use_cache
    generates_itself = all(block.mixer.can_advance for block in model.body.blocks)
    engines = type(model)._sample.__globals__["decode"].__globals__["engine_of"].__globals__["_engines"]
    assert (model in engines) == generates_itself
    assert model.generation_config.eos_token_id == 2 and model.generation_config.pad_token_id == 0
    tokenizer = AutoTokenizer.from_pretrained(name, **options)
    assert tokenizer.decode(tokenizer("a ä")["input_ids"]) == "a ä"
    return model
"""
CHECK = CHECK.replace("{threads}", str(torch.get_num_threads()))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_same_model_gives_the_same_bytes(architecture: str, exported: Path, tmp_path: Path) -> None:
    export_model(model_of(architecture), tmp_path / "again", tokenizer_folder=exported / "tokenizer")
    names = {"config.json", "generation_config.json", "model.safetensors", "modeling_retlab.py", "README.md"}
    assert {file.name for file in (tmp_path / "again").iterdir()} == names | {"tokenizer.json", "tokenizer_config.json"}
    for file in (tmp_path / "again").iterdir():
        assert file.read_bytes() == (exported / architecture / file.name).read_bytes(), file.name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_our_own_classes_load_the_folder(architecture: str, exported: Path) -> None:
    model, ids = model_of(architecture), small_ids()
    for loaded in (
        ARCHITECTURES[architecture].from_pretrained(exported / architecture),
        AutoModelForCausalLM.from_pretrained(exported / architecture),
        AutoModelForCausalLM.from_pretrained(exported / architecture, trust_remote_code=True),
    ):
        assert type(loaded) is ARCHITECTURES[architecture]
        assert torch.equal(loaded.eval()(ids).logits, model(ids).logits)
    assert AutoTokenizer.from_pretrained(exported / architecture)("<eos>")["input_ids"]


def test_a_folder_of_another_architecture_is_refused(exported: Path) -> None:
    with pytest.raises(ValueError, match="retlab_transformer"):
        RetNetModelHF.from_pretrained(exported / "transformer")


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="260 tokens, but the model a vocabulary of 100"):
        export_model(small_model("retnet", vocab_size=100), tmp_path / "x", tokenizer_folder=exported / "tokenizer")


def test_everyone_who_may_read_the_folder_may_read_the_weights(exported: Path) -> None:
    folder = exported / "retnet"
    assert (folder / "model.safetensors").stat().st_mode == (folder / "config.json").stat().st_mode


def test_generation_settings_name_the_special_tokens(exported: Path) -> None:
    settings = json.loads((exported / "retnet" / "generation_config.json").read_text())
    assert settings["eos_token_id"] == 2
    assert settings["pad_token_id"] == 0
    # A text from nothing begins where a document does.
    assert settings["bos_token_id"] == 2
    # So it does for who scores a text from its first token on; the experiment's own tokenizer stays as it was.
    opening = [
        json.loads((exported / name / "tokenizer_config.json").read_text())["bos_token"]
        for name in ("retnet", "tokenizer")
    ]
    assert opening == ["<eos>", "<bos>"]
    assert (exported / "retnet" / "tokenizer.json").read_bytes() == (
        exported / "tokenizer" / "tokenizer.json"
    ).read_bytes()


def test_saving_alone_makes_a_folder_that_names_its_code(tmp_path: Path) -> None:
    model_of("hybrid").save_pretrained(tmp_path)
    assert (tmp_path / "modeling_retlab.py").read_text(encoding="utf-8") == modelling_code()
    assert json.loads((tmp_path / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "modeling_retlab.HybridConfig",
        "AutoModelForCausalLM": "modeling_retlab.HybridModelHF",
    }


def test_the_modelling_code_needs_torch_and_transformers_only() -> None:
    modules, tree = set(), ast.parse(modelling_code())
    # What it can do without stands in a `try`.
    tried = {id(inner) for node in tree.body if isinstance(node, ast.Try) for inner in node.body}
    for node in ast.walk(tree):
        if id(node) in tried:
            continue
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            modules.add(node.module.split(".")[0])
    # PyYAML is a requirement of transformers.
    assert modules - sys.stdlib_module_names <= {"torch", "transformers", "yaml"}


@pytest.mark.component
def test_exported_folders_and_the_snippets_of_their_cards_work_without_retlab(
    exported: Path, bare_python: Path, tmp_path: Path
) -> None:
    script = f"""{CHECK}
assert importlib.util.find_spec("retlab") is None
root, again = Path(sys.argv[1]), Path(sys.argv[2])
for name in {list(ARCHITECTURES)}:
    model = check(root / name, root / f"{{name}}.safetensors", trust_remote_code=True)
    # Saved again from there, and that once more, it is as good.
    for generation in ("second", "third"):
        model.save_pretrained(again / generation / name)
        AutoTokenizer.from_pretrained(root / name, trust_remote_code=True).save_pretrained(again / generation / name)
        model = check(again / generation / name, root / f"{{name}}.safetensors", trust_remote_code=True)
"""
    script += "import os\n"
    for name in ARCHITECTURES:
        card = (exported / name / "README.md").read_text(encoding="utf-8")
        snippet = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
        # With no name of its own from before, as in a new Python.
        script += f"os.chdir({str(exported / name)!r})\nnames = {{}}\nexec({snippet!r}, names)\n"
        script += "print(type(names['model']).__name__)\n"
    printed = run_python(bare_python, script, exported, tmp_path, cwd=tmp_path)
    assert printed.startswith("The")
    assert all(model.__name__ in printed for model in ARCHITECTURES.values())
    for name in ARCHITECTURES:
        code = (tmp_path / "third" / name / "modeling_retlab.py").read_text(encoding="utf-8")
        assert code == modelling_code()


@pytest.mark.component
@pytest.mark.parametrize("first", ["exported code", "RetLab"])
def test_exported_code_and_retlab_share_a_process(first: str, exported: Path, tmp_path: Path) -> None:
    script = f"""{CHECK}
root = Path(sys.argv[1])
name, expected = root / "retnet", root / "retnet.safetensors"
if {first == "RetLab"}:
    from retlab import RetNetModelHF
theirs = check(name, expected, trust_remote_code=True)
assert type(theirs).__module__.startswith("retlab." if {first == "RetLab"} else "transformers_modules.")
# The names load, and register, on first use.
from retlab import RetNetModelHF
for model in (check(name, expected), check(name, expected, trust_remote_code=True)):
    assert type(model) is RetNetModelHF
ours = RetNetModelHF.from_pretrained(name)
ours.load_state_dict(theirs.state_dict())
"""
    run_python(sys.executable, script, exported, cwd=tmp_path, PYTHONPATH=str(PROJECT_ROOT / "src"))


@pytest.mark.component
def test_push_to_hub(exported: Path, bare_python: Path, tmp_path: Path) -> None:
    """From RetLab's class, from the exported code, and as a folder: each loads again by its name."""
    from_retlab = """
import sys
from retlab import RetNetModelHF
from transformers import AutoTokenizer
model = RetNetModelHF.from_pretrained(sys.argv[1])
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
model.push_to_hub("owner/retlab")
tokenizer.push_to_hub("owner/retlab")
model.save_pretrained(sys.argv[2], push_to_hub=True, repo_id="owner/saved")
tokenizer.push_to_hub("owner/saved")
"""
    outside = f"""{CHECK}
for name in ("owner/retlab", "owner/saved", "owner/folder"):
    model = check(name, sys.argv[1], trust_remote_code=True)
model.push_to_hub("owner/outside")
AutoTokenizer.from_pretrained(name, trust_remote_code=True).push_to_hub("owner/outside")
check("owner/outside", sys.argv[1], trust_remote_code=True)
"""
    with Hub(tmp_path / "repositories") as hub:
        online = hub.environment(tmp_path / "home", HF_TOKEN=hub.token, HF_HUB_OFFLINE="0")
        online = {key: value for key, value in online.items() if key.startswith("HF_")}
        source = str(PROJECT_ROOT / "src")
        words = [exported / "retnet", tmp_path / "saved"]
        run_python(sys.executable, from_retlab, *words, cwd=tmp_path, PYTHONPATH=source, **online)
        card = (exported / "retnet" / "README.md").read_text(encoding="utf-8")
        command = re.search(r"```bash\n(.*?)\n```", card)[1].replace("USER/NAME", "owner/folder").split()
        command[0] = str(Path(sys.executable).with_name("hf"))
        subprocess.run(command, cwd=exported / "retnet", env={**os.environ, **online}, check=True, capture_output=True)
        run_python(bare_python, outside, exported / "retnet.safetensors", cwd=tmp_path, **online)
    models = tmp_path / "repositories" / "models" / "owner"
    for file in (exported / "retnet").iterdir():
        assert (models / "folder" / file.name).read_bytes() == file.read_bytes()
        assert (models / "outside" / file.name).is_file()


def test_the_bare_environment_has_no_retlab(bare_python: Path) -> None:
    answer = subprocess.run([bare_python, "-c", "import retlab"], capture_output=True, text=True, env={})
    assert "No module named 'retlab'" in answer.stderr
