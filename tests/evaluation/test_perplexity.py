"""Every token once: against a float64 oracle that scores each document by hand."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.evaluation.trained import DOCUMENTS, EOS, byte_tokenizer, write_data, write_model

from retlab.data.settings import DataSection
from retlab.errors import UserError
from retlab.evaluation.perplexity import rates, score_documents
from retlab.evaluation.settings import EvaluateSection
from retlab.evaluation.trained_model import TrainedModel, load_trained_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluation")


@pytest.fixture(scope="module")
def models(folder: Path) -> dict[str, Path]:
    return {name: write_model(folder / name, name) for name in ("retnet", "transformer")}


@pytest.fixture(scope="module")
def data(folder: Path, models: dict[str, Path]) -> DataSection:
    return write_data(folder / "data", models["retnet"])


def load(folder: Path, **settings: Any) -> TrainedModel:
    return load_trained_model(EvaluateSection(device="cpu", **settings), folder)


def score(trained: TrainedModel, data: DataSection, batch_size: int = 4) -> np.ndarray:
    return score_documents(trained, data, data.shards_folder("test"), batch_size).nats


def by_hand(trained: TrainedModel, data: DataSection) -> tuple[list[float], list[int]]:
    """-log p of every document in float64: one piece of one document at a time, without padding or segments."""
    model = load_trained_model(EvaluateSection(device="cpu"), Path(trained.config.name_or_path)).model.double()
    length, position = data.sequence_length, 0
    nats, counts = [], []
    for text in DOCUMENTS["test"]:
        ids = byte_tokenizer()(text, add_special_tokens=False)["input_ids"]
        inputs, targets = [EOS, *ids], [*ids, EOS]
        total = 0.0
        start = 0
        while start < len(inputs):
            # Packed windows go on where the document before left off.
            room = length - (position + start) % length if data.packing == "packed" else length
            piece = slice(start, min(start + room, len(inputs)))
            with torch.no_grad():
                logits = model(torch.tensor([inputs[piece]]), use_cache=False).logits[0]
            logp = torch.log_softmax(logits, dim=-1)
            total -= sum(float(logp[t, target]) for t, target in enumerate(targets[piece]))
            start = piece.stop
        nats.append(total)
        counts.append(len(targets))
        position += len(inputs)
    return nats, counts


@pytest.mark.parametrize("architecture", ["retnet", "transformer"])
@pytest.mark.parametrize("packing", ["packed", "padded"])
def test_documents_cost_what_they_cost_by_hand(
    models: dict[str, Path], data: DataSection, architecture: str, packing: str
) -> None:
    data = data.model_copy(update={"packing": packing})
    trained = load(models[architecture])
    losses = score_documents(trained, data, data.shards_folder("test"), batch_size=3)
    nats, counts = by_hand(trained, data)
    np.testing.assert_allclose(losses.nats, nats, rtol=1e-6)
    assert losses.targets.tolist() == counts
    assert losses.bytes.tolist() == [len(text.encode()) for text in DOCUMENTS["test"]]


@pytest.mark.parametrize("packing", ["packed", "padded"])
def test_every_batch_size_gives_the_same_numbers(models: dict[str, Path], data: DataSection, packing: str) -> None:
    data = data.model_copy(update={"packing": packing})
    trained = load(models["retnet"])
    one = score(trained, data, 1)
    for batch_size in (2, 3, 7, 1000):
        np.testing.assert_allclose(score(trained, data, batch_size), one, rtol=1e-6)


def test_every_form_gives_the_same_numbers(models: dict[str, Path], data: DataSection) -> None:
    # Longer than the chunk of 64, so that chunks meet.
    data = data.model_copy(update={"sequence_length": 150})
    expected = score(load(models["retnet"]), data)
    for form in ("parallel", "chunkwise", "recurrent"):
        np.testing.assert_allclose(score(load(models["retnet"], form=form), data), expected, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["retnet", "transformer"])
def test_bf16_is_near(models: dict[str, Path], data: DataSection, architecture: str) -> None:
    full = score(load(models[architecture]), data).sum()
    half = score(load(models[architecture], precision="bf16"), data).sum()
    assert half != full
    assert half == pytest.approx(full, rel=1e-2)


def test_documents_see_their_neighbours_only_without_reset(models: dict[str, Path], data: DataSection) -> None:
    trained = load(models["retnet"])
    whole = data.model_copy(update={"sequence_length": 10_000})
    joined = score(trained, whole.model_copy(update={"reset_at_documents": False}))
    apart = score(trained, whole)
    assert joined[0] == pytest.approx(apart[0], rel=1e-6)
    assert np.abs(joined[1:] / apart[1:] - 1).min() > 1e-4


def test_logits_in_pieces_change_nothing(
    models: dict[str, Path], data: DataSection, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = load(models["retnet"])
    expected = score(trained, data)
    monkeypatch.setattr("retlab.evaluation.perplexity.LOGITS_AT_ONCE", 3 * 260)
    np.testing.assert_allclose(score(trained, data), expected, rtol=1e-6)


def test_rates() -> None:
    # Two targets of probability 1/4 each, over 8 bytes: 4 bits.
    assert rates(2 * math.log(4), 2, 8) == pytest.approx({"loss": math.log(4), "perplexity": 4, "bits_per_byte": 0.5})
    assert rates(1e4, 1, 1)["perplexity"] == math.inf


def test_tokens_beyond_the_vocabulary(folder: Path, data: DataSection, models: dict[str, Path]) -> None:
    from tests.data.shard_files import write_shards

    write_shards(folder / "beyond", [[[[5, 300]]]])
    with pytest.raises(UserError, match="vocabulary"):
        score_documents(load(models["retnet"]), data, folder / "beyond", 1)


def test_a_loss_that_is_not_finite_is_named(folder: Path, data: DataSection) -> None:
    trained = load(write_model(folder / "broken"))
    with torch.no_grad():
        trained.model.lm_head.weight.fill_(math.nan)
    with pytest.raises(UserError, match=r"document 0 .* not finite"):
        score(trained, data)
