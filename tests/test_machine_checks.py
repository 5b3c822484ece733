"""What a configuration asks of the machine is checked at once, before work begins."""

from pathlib import Path

import pytest

from retlab.config import load_config
from retlab.errors import UserError
from retlab.machine_checks import check_machine
from retlab.section import SCRIPTS

MISTAKES = {
    "data.source=/no/where/*.txt": "data.source: no file matches",
    "tokenizer.from_pretrained=/no/tokenizer": "tokenizer.from_pretrained: there is no folder /no/tokenizer",
    "train.init_from=EMPTY": "train.init_from: EMPTY holds no config.json",
    "train.wandb=mine": "train.wandb needs the package wandb: install it",
    "train.device=cuda": "train.device is cuda, but torch sees no GPU",
    "evaluate.device=cuda": "evaluate.device is cuda, but torch sees no GPU",
}


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "wandb" else name)


def config_file(folder: Path) -> Path:
    (folder / "c.yaml").write_text("emissions: {enabled: false}\n")
    return folder / "c.yaml"


def test_everything_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    empty = str(tmp_path / "empty")
    config = load_config(config_file(tmp_path), [override.replace("EMPTY", empty) for override in MISTAKES])
    with pytest.raises(UserError) as caught:
        check_machine(config, list(SCRIPTS))
    lines = str(caught.value).splitlines()
    assert len(lines) == len(MISTAKES), lines
    for line, start in zip(lines, MISTAKES.values(), strict=True):
        assert line.startswith(start.replace("EMPTY", empty)), line


def test_a_stage_asks_for_its_own_needs_alone_and_the_defaults_for_nothing(tmp_path: Path) -> None:
    check_machine(load_config(config_file(tmp_path)), list(SCRIPTS))
    config = load_config(config_file(tmp_path), ["data.source=/no/where", "tokenizer.from_pretrained=gpt2"])
    check_machine(config, ["split_data", "train_tokenizer", "tokenize_data", "train_model", "evaluate_model"])


@pytest.mark.parametrize(
    ("words", "start"),
    [
        (["model.retention_kernel=fla"], "model.retention_kernel is fla, but flash-linear-attention needs a GPU"),
        (
            ["model.architecture=transformer", "model.attention_kernel=flash_attn"],
            "model.attention_kernel is flash_attn, but flash-attn needs a GPU",
        ),
        (
            ["model.architecture=hybrid", "model.attention_kernel=flash_attn"],
            "model.attention_kernel is flash_attn, but flash-attn needs a GPU",
        ),
    ],
)
def test_a_kernel_by_name_is_checked_for_training_alone(tmp_path: Path, words: list[str], start: str) -> None:
    config = load_config(config_file(tmp_path), words)
    check_machine(config, [stage for stage in SCRIPTS if stage != "train_model"])
    with pytest.raises(UserError) as caught:
        check_machine(config, ["train_model"])
    assert str(caught.value).startswith(start)
    assert "\n" not in str(caught.value)


def test_a_model_that_no_memory_holds_is_said_before_the_training(tmp_path: Path) -> None:
    config = load_config(config_file(tmp_path), ["model.hidden_size=1000000"])
    with pytest.raises(UserError, match="^out of memory: this machine's .* cannot hold the .* GiB that a model of"):
        check_machine(config, list(SCRIPTS))
