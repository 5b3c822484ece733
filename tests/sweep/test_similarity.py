"""How alike two models predict: against float64 by hand, kept, and on windows that no seed decides."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.evaluation.trained import VOCAB, write_data, write_model
from tests.sweep.made_trials import fail, finish, make_grid, trial_at

from retlab.data.loader import SequentialLoader
from retlab.data.settings import DataSection
from retlab.evaluation.settings import EvaluateSection
from retlab.evaluation.trained_model import TrainedModel, load_trained_model
from retlab.sweep import predictions
from retlab.sweep.grid import Grid
from retlab.sweep.outcomes import read_outcomes
from retlab.sweep.predictions import compare_predictions, fixed_windows
from retlab.sweep.similarity import Pair, Similarity, compare_models

EOS, PAD = 2, 0
ARCHITECTURES = ("retnet", "transformer", "longnet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("similarity")


@pytest.fixture(scope="module")
def models(folder: Path) -> dict[str, TrainedModel]:
    section = EvaluateSection(device="cpu")
    return {name: load_trained_model(section, write_model(folder / name, name)) for name in ARCHITECTURES}


@pytest.fixture(scope="module")
def data(folder: Path, models: dict[str, TrainedModel]) -> DataSection:
    return write_data(folder / "data", folder / "retnet")


def by_hand(one: Path, other: Path, data: DataSection, count: int) -> Similarity:
    """A window at a time, in float64, with the two divergences apart."""
    pair = [load_trained_model(EvaluateSection(device="cpu"), folder).model.double() for folder in (one, other)]
    batches = list(SequentialLoader(data, data.shards_folder("test"), batch_size=1, eos_id=EOS, pad_id=PAD))
    same = tokens = 0
    divergence = 0.0
    for place in [number * len(batches) // count for number in range(count)]:
        batch = batches[place]
        mask = batch["loss_mask"][0]
        with torch.no_grad():
            p, q = (
                model(batch["input_ids"], segment_ids=batch["segment_ids"], use_cache=False).logits[0][mask].softmax(-1)
                for model in pair
            )
        divergence += float((p * (p / q).log()).sum() + (q * (q / p).log()).sum())
        same += int((p.argmax(-1) == q.argmax(-1)).sum())
        tokens += int(mask.sum())
    return Similarity(same / tokens, divergence / tokens, tokens)


@pytest.mark.parametrize("packing", ["packed", "padded"])
@pytest.mark.parametrize("pair", [("retnet", "transformer"), ("retnet", "longnet")])
def test_similarity_is_that_by_hand(
    folder: Path, models: dict[str, TrainedModel], data: DataSection, pair: Pair, packing: str
) -> None:
    data = data.model_copy(update={"packing": packing})
    found = compare_predictions(models, [pair], fixed_windows(data, 6, EOS, PAD), batch_size=4)[pair]
    expected = by_hand(folder / pair[0], folder / pair[1], data, 6)
    assert found.tokens == expected.tokens
    assert found.same_next_token == expected.same_next_token
    assert 0 < found.same_next_token < 1
    assert found.symmetric_kl == pytest.approx(expected.symmetric_kl, rel=1e-4)


def test_several_pairs_batches_and_pieces_change_nothing(
    models: dict[str, TrainedModel], data: DataSection, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = fixed_windows(data, 100, EOS, PAD)
    pairs = [("retnet", "transformer"), ("retnet", "longnet"), ("transformer", "longnet")]
    expected = {pair: compare_predictions(models, [pair], batch, 100)[pair] for pair in pairs}
    monkeypatch.setattr(predictions, "LOGITS_AT_ONCE", 7 * VOCAB)
    found = compare_predictions(models, pairs, batch, 3)
    for pair in pairs:
        assert found[pair].same_next_token == expected[pair].same_next_token
        assert found[pair].symmetric_kl == pytest.approx(expected[pair].symmetric_kl, rel=1e-6)


def test_a_model_is_itself_and_the_order_does_not_matter(models: dict[str, TrainedModel], data: DataSection) -> None:
    batch = fixed_windows(data, 5, EOS, PAD)
    pairs = [("retnet", "retnet"), ("retnet", "transformer"), ("transformer", "retnet")]
    same, there, back = compare_predictions(models, pairs, batch, 2).values()
    assert (same.same_next_token, same.symmetric_kl) == (1.0, 0.0)
    assert there.same_next_token == back.same_next_token
    assert there.symmetric_kl == pytest.approx(back.symmetric_kl, rel=1e-12)


@pytest.mark.parametrize("packing", ["packed", "padded"])
def test_windows_are_spread_over_the_split(data: DataSection, packing: str) -> None:
    data = data.model_copy(update={"packing": packing})
    loader = SequentialLoader(data, data.shards_folder("test"), batch_size=1000, eos_id=EOS, pad_id=PAD)
    whole = next(iter(loader))
    windows = len(whole["input_ids"])
    for count in (1, 3, windows - 1, windows, 1000):
        found = fixed_windows(data, count, EOS, PAD)
        places = np.arange(min(count, windows)) * windows // min(count, windows)
        assert len(set(places)) == len(found["input_ids"])
        for key, values in found.items():
            assert torch.equal(values, whole[key][places]), key


def a_sweep(folder: Path, data: DataSection, **settings: int) -> Grid:
    """Two points of three architectures with models; the second's longnet failed."""
    grid = make_grid(folder, architectures=ARCHITECTURES, data=data, **{"similarity_windows": 4, **settings})
    for trial in grid.trials:
        if trial.id == "p2-longnet-0":
            fail(trial)
        elif not trial.folder.exists():
            finish(trial)
            write_model(trial.folder / "model", trial.architecture, seed=len(trial.id))
    return grid


def test_every_pair_is_computed_once_and_kept(
    tmp_path: Path, data: DataSection, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, notes, loaded = a_sweep(tmp_path, data), [], []
    load = predictions.load_trained_model
    monkeypatch.setattr(predictions, "load_trained_model", lambda *given: loaded.append(given[1]) or load(*given))
    found = compare_models(grid, read_outcomes(grid), notes.append)
    assert sorted(found) == [
        ("p1-retnet-0", "p1-longnet-0"),
        ("p1-retnet-0", "p1-transformer-0"),
        ("p1-transformer-0", "p1-longnet-0"),
        ("p2-retnet-0", "p2-transformer-0"),
    ]
    assert len(loaded) == len(set(loaded)) == 5
    kept = {file.name: file.stat().st_mtime_ns for file in (grid.folder / "similarity").iterdir()}
    assert set(kept) == {f"{one}-{other}.json" for one, other in found}

    (grid.folder / "similarity" / "p2-retnet-0-p2-transformer-0.json").unlink()
    assert compare_models(grid, read_outcomes(grid), notes.append) == found
    # The one file that is missing, from its two models.
    assert len(loaded) == 7
    times = {file.name: file.stat().st_mtime_ns for file in (grid.folder / "similarity").iterdir()}
    assert [name for name in kept if times[name] != kept[name]] == ["p2-retnet-0-p2-transformer-0.json"]
    assert not notes


def test_another_number_of_windows_is_another_comparison(tmp_path: Path, data: DataSection) -> None:
    grid = a_sweep(tmp_path, data)
    few = compare_models(grid, read_outcomes(grid), print)
    grid = a_sweep(tmp_path, data, similarity_windows=7)
    more = compare_models(grid, read_outcomes(grid), print)
    assert all(more[pair].tokens > few[pair].tokens for pair in few)


@pytest.mark.parametrize("content", ["", "{}", '{"windows": 4}', "[1]"])
def test_a_damaged_file_is_made_anew(tmp_path: Path, data: DataSection, content: str) -> None:
    grid = a_sweep(tmp_path, data)
    expected = compare_models(grid, read_outcomes(grid), print)
    for file in (grid.folder / "similarity").iterdir():
        file.write_text(content)
    assert compare_models(grid, read_outcomes(grid), print) == expected


def test_what_cannot_be_compared_is_named_and_the_rest_is(tmp_path: Path, data: DataSection) -> None:
    grid, notes = a_sweep(tmp_path, data), []
    (trial_at(grid, 2, "transformer").folder / "model" / "model.safetensors").write_bytes(b"no weights")
    found = compare_models(grid, read_outcomes(grid), notes.append)
    assert len(found) == 3
    assert len(notes) == 1
    assert "p2-transformer-0" in notes[0]
    assert "train the model anew" in notes[0]


def test_predictions_that_are_not_finite_leave_no_file(tmp_path: Path, data: DataSection) -> None:
    grid, notes = make_grid(tmp_path, axes={}, data=data), []
    for trial in grid.trials:
        finish(trial)
        write_model(trial.folder / "model", trial.architecture)
    folder = trial_at(grid, 1, "retnet").folder / "model"
    model = load_trained_model(EvaluateSection(device="cpu"), folder).model
    with torch.no_grad():
        model.lm_head.weight.fill_(math.nan)
    model.save_pretrained(folder)
    assert compare_models(grid, read_outcomes(grid), notes.append) == {}
    assert "not finite" in notes[0]
    assert not list((grid.folder / "similarity").iterdir())


def test_the_file_says_what_it_holds(tmp_path: Path, data: DataSection) -> None:
    grid = a_sweep(tmp_path, data)
    found = compare_models(grid, read_outcomes(grid), print)["p1-retnet-0", "p1-transformer-0"]
    content = json.loads((grid.folder / "similarity" / "p1-retnet-0-p1-transformer-0.json").read_text())
    assert content == {
        "trials": ["p1-retnet-0", "p1-transformer-0"],
        "windows": 4,
        "tokens": found.tokens,
        "same_next_token": found.same_next_token,
        "symmetric_kl_nats_per_token": found.symmetric_kl,
    }
