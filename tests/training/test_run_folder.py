"""What a run folder holds is compared with the model to train before any stage, in the words of the training."""

import importlib.util
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.training.conftest import make_request

from retlab.command import StageCommand
from retlab.config import ExperimentConfig, load_config
from retlab.errors import UserError
from retlab.models import build_model, config_from_section
from retlab.section import PROJECT_ROOT
from retlab.training.checkpoints import CheckpointStore
from retlab.training.run_folder import prepare_run_folder, refuse_other_training

MODEL = {"architecture": "retnet", "vocab_size": 300, "hidden_size": 16, "num_attention_heads": 2, "value_size": 32,
         "intermediate_size": 32}  # fmt: skip


def check() -> Callable[[ExperimentConfig, StageCommand], None]:
    spec = importlib.util.spec_from_file_location("check_config", PROJECT_ROOT / "src" / "check_config.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def command(force: bool = False) -> StageCommand:
    return StageCommand(force=force, options=Namespace(quiet=True))


def config_of(folder: Path, *overrides: str) -> ExperimentConfig:
    file = folder / "run.yaml"
    sizes = "hidden_size: 16, num_attention_heads: 2, num_hidden_layers: 1"
    file.write_text(
        f"name: run\noutput_dir: {folder}\ndata: {{source: {file}}}\ntokenizer: {{vocab_size: 300}}\n"
        f"model: {{architecture: retnet, {sizes}}}\n"
    )
    return load_config(file, overrides)


def leave_checkpoint(folder: Path) -> None:
    CheckpointStore(folder / "run" / "checkpoints").save(
        {"step": 3, "best": [], "model_config": MODEL, "model": {"weight": torch.zeros(4)}, "identity": {}}
    )


def leave_model(folder: Path) -> None:
    config = config_from_section(config_of(folder).model, 300, pad_token_id=0, eos_token_id=2)
    build_model(config).save_pretrained(folder / "run" / "model")


@pytest.mark.parametrize("leave", [leave_checkpoint, leave_model])
def test_another_model_is_said_before_any_stage_in_the_words_of_the_training(
    tmp_path: Path, leave: Callable[[Path], None]
) -> None:
    leave(tmp_path)
    check()(config_of(tmp_path), command())
    # What a training may change is no other model.
    check()(config_of(tmp_path, "model.dropout=0.1", "model.chunk_size=8", "seed=4"), command())
    for overrides, model, difference in (
        (
            ["model.hidden_size=24"],
            {"hidden_size": 24, "intermediate_size": 48, "value_size": 48},
            "hidden_size: 16 -> 24; intermediate_size: 32 -> 48; value_size: 32 -> 48",
        ),
        (["tokenizer.vocab_size=400"], {"vocab_size": 400}, "vocab_size: 300 -> 400"),
    ):
        with pytest.raises(UserError) as said_first:
            check()(config_of(tmp_path, *overrides), command())
        request = make_request(tmp_path, "run", {"vocab_size": 300, **model})
        with pytest.raises(UserError) as said_by_training:
            prepare_run_folder(request, print)
        assert f"holds a training of another model ({difference}); choose another name" in str(said_first.value)
        assert str(said_first.value) == str(said_by_training.value)
    with pytest.raises(UserError, match="architecture: 'retnet' -> 'transformer'"):
        check()(config_of(tmp_path, "model.architecture=transformer"), command())
    check()(config_of(tmp_path, "model.architecture=transformer"), command(force=True))


def test_beside_what_the_machine_has_not(tmp_path: Path) -> None:
    leave_checkpoint(tmp_path)
    with pytest.raises(UserError) as caught:
        check()(config_of(tmp_path, "model.hidden_size=24", "data.source=/no/where.txt"), command())
    first, second = str(caught.value).splitlines()
    assert first.startswith("data.source")
    assert "of another model" in second


def test_sizes_that_are_not_known_yet_are_not_compared(tmp_path: Path) -> None:
    leave_checkpoint(tmp_path)
    overrides = ["tokenizer.from_pretrained=somebody/tokenizer", f"data.folder={tmp_path}"]
    check()(config_of(tmp_path, *overrides), command())
    matched = [*overrides, f"model.match_parameters_of={tmp_path}/nothing.yaml", "model.intermediate_size=40"]
    check()(config_of(tmp_path, *matched), command())


def test_a_training_that_is_being_set_aside_is_none(tmp_path: Path) -> None:
    leave_model(tmp_path)
    with pytest.raises(UserError):
        refuse_other_training(tmp_path / "run", {"hidden_size": 24})
    (tmp_path / ".run.partial").mkdir()
    refuse_other_training(tmp_path / "run", {"hidden_size": 24})


def test_a_finished_model_is_known_without_torch(tmp_path: Path) -> None:
    leave_model(tmp_path)
    code = (
        "import sys; from pathlib import Path; from retlab.errors import UserError\n"
        "from retlab.training.run_folder import refuse_other_training\n"
        "try: refuse_other_training(Path(sys.argv[1]), {'hidden_size': 24})\n"
        "except UserError: print({'torch', 'transformers'} & set(sys.modules))"
    )
    environment = {"PYTHONPATH": str(PROJECT_ROOT / "src"), "PATH": "/usr/bin:/bin"}
    words = [sys.executable, "-c", code, str(tmp_path / "run")]
    answer = subprocess.run(words, capture_output=True, text=True, env=environment, check=True)
    assert answer.stdout.strip() == "set()"
