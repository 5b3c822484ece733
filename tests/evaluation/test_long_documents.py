"""State carried across windows, loss by position, and models of transformers: against float64 passes by hand."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.evaluation.trained import DOCUMENTS, EOS, byte_tokenizer, write_data, write_model, write_other_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from retlab.data.settings import DataSection
from retlab.errors import UserError
from retlab.evaluation.perplexity import score_documents, windows_for
from retlab.evaluation.positions import PositionLosses
from retlab.evaluation.scoring import measure_perplexity
from retlab.evaluation.settings import EvaluateSection
from retlab.evaluation.trained_model import TrainedModel, load_trained_model


def load(folder: Path, **settings: Any) -> TrainedModel:
    return load_trained_model(EvaluateSection(device="cpu", **settings), folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("long")


@pytest.fixture(scope="module")
def retnet(folder: Path) -> Path:
    return write_model(folder / "retnet")


@pytest.fixture(scope="module")
def data(folder: Path, retnet: Path) -> DataSection:
    return write_data(folder / "data", retnet, sequence_length=8)


def token_losses(model: Any, ids: list[int], opening: int, closing: int, piece: int | None = None) -> list[float]:
    """-log p of every token of a document and its end in one pass, or in passes over pieces, in float64."""
    inputs, targets = [opening, *ids], [*ids, closing]
    losses = []
    for start in range(0, len(inputs), piece or len(inputs)):
        stop = start + (piece or len(inputs))
        with torch.no_grad():
            logits = model.double()(torch.tensor([inputs[start:stop]]), use_cache=False).logits[0]
        wanted = torch.tensor(targets[start:stop])
        losses += torch.nn.functional.cross_entropy(logits, wanted, reduction="none").tolist()
    return losses


@pytest.mark.parametrize("form", ["auto", "parallel", "chunkwise", "recurrent"])
def test_a_carried_state_is_one_pass_over_the_document(retnet: Path, data: DataSection, form: str) -> None:
    shards = data.shards_folder("test")
    scored = score_documents(load(retnet, form=form), data, shards, 4, carry_state=True)
    model = load(retnet).model.double()
    whole = [
        token_losses(model, byte_tokenizer()(text, add_special_tokens=False)["input_ids"], EOS, EOS)
        for text in DOCUMENTS["test"]
    ]
    assert scored.nats == pytest.approx([sum(losses) for losses in whole], rel=1e-5)
    assert scored.targets.tolist() == [len(losses) for losses in whole]
    # The longest is twenty windows long: what lies before a window matters.
    cut = score_documents(load(retnet), data, shards, 4).nats
    assert np.abs(cut / scored.nats - 1).max() > 1e-3
    again = score_documents(load(retnet, form=form), data, shards, 1, carry_state=True)
    assert again.nats == pytest.approx(scored.nats, rel=1e-5)


def test_what_keeps_no_state_is_refused(folder: Path, data: DataSection) -> None:
    trained = load(write_model(folder / "transformer", "transformer"))
    with pytest.raises(UserError, match=r"evaluate.carry_state is true, but a transformer model keeps no state"):
        score_documents(trained, data, data.shards_folder("test"), 4, carry_state=True)


@pytest.mark.parametrize("carry_state", [False, True])
@pytest.mark.parametrize("packing", ["packed", "padded"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_positions_are_those_of_the_targets_in_their_documents(
    retnet: Path, data: DataSection, packing: str, batch_size: int, carry_state: bool
) -> None:
    section = data.model_copy(update={"packing": packing})
    scored = score_documents(load(retnet), section, section.shards_folder("test"), batch_size, carry_state)
    rows = scored.positions.rows()
    lengths = [len(text.encode()) + 1 for text in DOCUMENTS["test"]]
    for row in rows:
        places = range(row["first_position"], row["last_position"] + 1)
        assert row["tokens"] == sum(place <= length for length in lengths for place in places)
    assert sum(row["tokens"] for row in rows) == sum(lengths)
    assert sum(row["tokens"] * row["loss"] for row in rows) == pytest.approx(scored.nats.sum())
    if carry_state:
        model = load(retnet).model.double()
        firsts = [
            token_losses(model, byte_tokenizer()(text, add_special_tokens=False)["input_ids"], EOS, EOS)[0]
            for text in DOCUMENTS["test"]
        ]
        assert rows[0]["loss"] == pytest.approx(np.mean(firsts), rel=1e-5)
        assert rows[0]["standard_error"] == pytest.approx(np.std(firsts, ddof=1) / math.sqrt(len(firsts)), rel=1e-4)


def test_ranges_of_positions_follow_each_other_and_end_at_powers_of_two() -> None:
    losses = PositionLosses()
    losses.add(torch.arange(1, 5000), torch.ones(4999, dtype=torch.float64))
    rows = losses.rows()
    assert all(first["last_position"] + 1 == second["first_position"] for first, second in pairwise(rows))
    assert rows[0]["first_position"] == 1
    assert {2**power for power in range(13)} <= {row["last_position"] for row in rows}
    assert all(row["standard_error"] in (0.0, None) for row in rows)


@pytest.mark.parametrize("kind", ["llama", "gpt_neox"])
def test_a_model_of_transformers_is_scored_in_its_own_tokens(
    folder: Path, data: DataSection, tmp_path: Path, kind: str
) -> None:
    trained = load(write_other_model(folder / kind, kind, window=32))
    section = EvaluateSection(device="cpu", model=str(folder / kind), batch_size=2)
    wide = data.model_copy(update={"sequence_length": 64})
    test = measure_perplexity(trained, section, wide, tmp_path)
    assert windows_for(trained, wide).sequence_length == 32, "its own window is shorter"
    tokenizer = AutoTokenizer.from_pretrained(folder / kind)
    model = AutoModelForCausalLM.from_pretrained(folder / kind, dtype=torch.float64)
    losses = [
        token_losses(model, tokenizer(text, add_special_tokens=False)["input_ids"], 0, 1, piece=32)
        for text in DOCUMENTS["test"]
    ]
    nats = sum(map(sum, losses))
    assert test["tokens"] == sum(map(len, losses))
    assert test["loss"] == pytest.approx(nats / test["tokens"], rel=1e-6)
    size = sum(len(text.encode()) for text in DOCUMENTS["test"])
    assert test["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-6)
