"""The files of perplexity and samples, and what must not be evaluated."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.evaluation.trained import DOCUMENTS, write_data, write_model
from tests.stand_ins.kernel_packages import hide_packages

from retlab.data.settings import DataSection
from retlab.errors import Interrupted, UserError
from retlab.evaluation.reference_points import read_text
from retlab.evaluation.results import UNITS, results_table
from retlab.evaluation.samples import measure_samples
from retlab.evaluation.scoring import measure_perplexity
from retlab.evaluation.settings import EvaluateSection, GenerateSection
from retlab.evaluation.trained_model import load_trained_model

FILES = ["document_losses.parquet", "loss_by_position.csv", "loss_by_position.png", "results.json", "samples.json"]
GENERATE = GenerateSection(prompts=["def ", "<eos>é", ""], max_new_tokens=12)


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


@pytest.fixture
def data(tmp_path: Path, model_folder: Path) -> DataSection:
    return write_data(tmp_path / "data", model_folder)


def run(data: DataSection, model_folder: Path, folder: Path, **settings: Any) -> dict[str, Any]:
    folder.mkdir()
    section = EvaluateSection(device="cpu", **settings)
    trained = load_trained_model(section, model_folder)
    measure_perplexity(trained, section, data, folder)
    measure_samples(trained, GENERATE, folder)
    return {"model": trained.describe(), **json.loads((folder / "results.json").read_text())}


def test_the_files_agree(
    tmp_path: Path, data: DataSection, model_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    results = run(data, model_folder, tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == FILES
    assert capfd.readouterr().err == ""

    table = pq.read_table(tmp_path / "out" / "document_losses.parquet").to_pydict()
    test = results["test"]
    assert test["loss"] == pytest.approx(sum(table["nats"]) / sum(table["tokens"]), rel=1e-12)
    assert test["documents"] == len(DOCUMENTS["test"]) == len(table["document"])
    assert test["tokens"] == sum(table["tokens"]) == sum(len(text.encode()) + 1 for text in DOCUMENTS["test"])
    assert test["bytes"] == sum(table["bytes"]) == sum(len(text.encode()) for text in DOCUMENTS["test"])
    assert table["sha256"] == read_text(data.splits_folder / "test").sha256

    points = results["reference_points"]
    assert list(points) == ["uniform", "unigram", "bigram", "gzip", "xz"]
    assert all(0 < point["bits_per_byte"] < 1e3 for point in points.values())

    rows = list(csv.DictReader(results_table(results).splitlines()))
    long = {(row["subject"], row["metric"]): float(row["value"]) for row in rows}
    assert long["model", "bits_per_byte"] == test["bits_per_byte"]
    assert long["bigram", "loss"] == points["bigram"]["loss"]
    assert long["model", "parameters"] == sum(
        weight.numel() for weight in load_file(model_folder / "model.safetensors").values()
    )
    assert len(long) == len(rows)
    assert {row["unit"] for row in rows} <= set(UNITS.values())


def test_samples_continue_their_prompts_and_repeat(tmp_path: Path, data: DataSection, model_folder: Path) -> None:
    before = torch.random.get_rng_state()
    run(data, model_folder, tmp_path / "first", reference_points=False)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(1234)
    run(data, model_folder, tmp_path / "second", reference_points=False)
    samples = json.loads((tmp_path / "first" / "samples.json").read_text())
    assert [sample["prompt"] for sample in samples] == GENERATE.prompts
    assert all(sample["continuation"] for sample in samples)
    for name in FILES:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_greedy_sample_is_the_most_likely_token_each_time(model_folder: Path) -> None:
    from retlab.evaluation.samples import continue_prompt

    trained = load_trained_model(EvaluateSection(device="cpu"), model_folder)
    ids = [trained.eos_id, *trained.tokenizer("x <pad> y")["input_ids"]]
    written: list[int] = []
    # The characters <pad> in a prompt are five bytes of text.
    prompt_ids = [trained.eos_id, *(token for part in ("x ", "<", "pad", ">", " y")
                                    for token in trained.tokenizer(part)["input_ids"])]  # fmt: skip
    assert len(ids) < len(prompt_ids)
    for _ in range(8):
        with torch.no_grad():
            token = int(trained.model(torch.tensor([[*prompt_ids, *written]])).logits[0, -1].argmax())
        if token == trained.eos_id:
            break
        written.append(token)
    section = GenerateSection(temperature=0, max_new_tokens=8)
    expected = trained.tokenizer.decode(written, skip_special_tokens=True)
    assert continue_prompt(trained, section, "x <pad> y").continuation == expected


def test_without_reference_points_the_train_shards_are_not_needed(
    tmp_path: Path, data: DataSection, model_folder: Path
) -> None:
    shutil.rmtree(data.shards_folder("train"))
    assert "reference_points" not in run(data, model_folder, tmp_path / "out", reference_points=False)
    with pytest.raises(UserError, match=r"train holds no finished token shards.*reference_points=false"):
        run(data, model_folder, tmp_path / "again")


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def test_model_folders_that_cannot_be_used_are_named(tmp_path: Path, model_folder: Path) -> None:
    def refused(folder: Path, match: str, **settings: Any) -> None:
        with pytest.raises(UserError, match=match):
            load_trained_model(EvaluateSection(**{"device": "cpu", **settings}), folder)

    refused(tmp_path / "nowhere", r"nowhere holds no trained model \(config.json\); run bash .*train_model.sh first")

    other = shutil.copytree(model_folder, tmp_path / "t5")
    change_config(other, model_type="t5", architectures=["T5ForConditionalGeneration"])
    refused(other, "t5 model, which is no causal language model")

    strange = shutil.copytree(model_folder, tmp_path / "strange")
    change_config(strange, model_type="no_such_model")
    refused(strange, "describes no model")

    wider = shutil.copytree(model_folder, tmp_path / "wider")
    change_config(wider, hidden_size=32)
    refused(wider, "weights in .*wider")

    partial = shutil.copytree(model_folder, tmp_path / "partial")
    weights = load_file(partial / "model.safetensors")
    save_file({key: value for key, value in weights.items() if "lm_head" not in key}, partial / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip
    refused(partial, r"do not fit its config.json \(lm_head")

    truncated = shutil.copytree(model_folder, tmp_path / "truncated")
    (truncated / "model.safetensors").write_bytes((model_folder / "model.safetensors").read_bytes()[:2000])
    refused(truncated, "weights in .*truncated cannot be loaded")

    mute = shutil.copytree(model_folder, tmp_path / "mute")
    for file in mute.glob("tokenizer*"):
        file.unlink()
    refused(mute, "holds no tokenizer")

    if not torch.cuda.is_available():
        refused(model_folder, "evaluate.device is cuda, but torch sees no GPU", device="cuda")
    refused(write_model(tmp_path / "transformer", "transformer"), "evaluate.form is recurrent", form="recurrent")


def test_a_signal_while_the_weights_are_read_is_no_damage(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise Interrupted("SIGTERM received")

    monkeypatch.setattr("retlab.models.causal_lm.CausalLM.from_pretrained", interrupted)
    with pytest.raises(Interrupted):
        load_trained_model(EvaluateSection(device="cpu"), model_folder)


def test_shards_of_another_tokenizer_are_refused(tmp_path: Path, data: DataSection, model_folder: Path) -> None:
    tokenizer = model_folder / "tokenizer.json"
    tokenizer.write_text(tokenizer.read_text().replace("<unk>", "<oov>"))
    with pytest.raises(UserError, match="another tokenizer"):
        run(data, model_folder, tmp_path / "out")


def test_text_that_is_not_that_of_the_shards_is_refused(tmp_path: Path, data: DataSection, model_folder: Path) -> None:
    shutil.rmtree(data.splits_folder / "test")
    shutil.copytree(data.splits_folder / "train", data.splits_folder / "test")
    with pytest.raises(UserError, match="other documents"):
        run(data, model_folder, tmp_path / "out")


def test_what_mixers_run_on_is_said_and_a_missing_kernel_by_name_is_no_error(
    tmp_path: Path, data: DataSection, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hide_packages(monkeypatch)
    config = json.loads((model_folder / "config.json").read_text())
    (model_folder / "config.json").write_text(json.dumps(config | {"retention_kernel": "fla"}))
    (tmp_path / "out").mkdir()
    said: list[str] = []
    section = EvaluateSection(device="cpu")
    measure_perplexity(load_trained_model(section, model_folder), section, data, tmp_path / "out", said.append)
    assert said == [
        "retention: parallel form, PyTorch (fla is configured, but flash-linear-attention needs a GPU, and it is not"
        " installed)",
        "glu: matrix products, PyTorch (the only kernel that it has)",
    ]


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (
            "scoring.score_documents",
            "16 windows of 2,048 tokens at once does not fit the GPU; lower evaluate.batch",
        ),
        (
            "samples._sampling",
            "a sample of 12 tokens after a prompt of 4 characters does not fit the GPU",
        ),
    ],
)
def test_out_of_memory_is_a_sentence(
    tmp_path: Path,
    data: DataSection,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    sentence: str,
) -> None:
    """The error that PyTorch raises for a GPU, raised in its place."""

    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(f"retlab.evaluation.{function}", full)
    long = data.model_copy(update={"sequence_length": 2048})
    with pytest.raises(UserError) as caught:
        run(long, model_folder, tmp_path / "out")
    assert sentence in str(caught.value)
