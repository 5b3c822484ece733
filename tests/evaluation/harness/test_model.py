"""What the harness gets of a model, against float64 passes by hand: forms, windows, a carried state, other models."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from tests.evaluation.harness.task_folder import section
from tests.evaluation.trained import write_model, write_other_model
from transformers import AutoTokenizer

from retlab.evaluation.harness.model import HarnessModel
from retlab.evaluation.harness.quiet import Quiet
from retlab.evaluation.trained_model import load_trained_model

WINDOW = 16
PAIRS = [
    ("the cat", " sat on the mat"),
    ("the cat", " did not move"),
    ("a", "b"),
    ("def f(x):", "\n  return x + 1"),
    ("", "été 日本"),
    ("the dog sat on a cat and did not move " * 2 + "the dog", " at all"),
]
TEXTS = ["the dog sat on a cat and did not move " * 4, "été 日本 🙂", "x", "the cat sat on the mat"]


def harness_model(folder: Path, **settings: Any) -> HarnessModel:
    chosen = section(None, "x", **settings)
    return HarnessModel(load_trained_model(chosen, folder), chosen, Quiet())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models by name, with short windows."""
    folder = tmp_path_factory.mktemp("models")
    for name in ("retnet", "transformer"):
        write_model(folder / name, name)
        config = json.loads((folder / name / "config.json").read_text())
        (folder / name / "config.json").write_text(json.dumps(config | {"max_position_embeddings": WINDOW}))
    for name in ("llama", "gpt_neox"):
        write_other_model(folder / name, name, window=WINDOW)
    return folder


def asked(kind: str, *requests: tuple[str, ...]) -> list[Any]:
    return [Instance(kind, {}, arguments, number) for number, arguments in enumerate(requests)]  # type: ignore[arg-type]


def scores(model: HarnessModel) -> list[float]:
    return [score for score, _ in model.loglikelihood(asked("loglikelihood", *PAIRS))]


def rolling(model: HarnessModel) -> list[float]:
    return model.loglikelihood_rolling(asked("loglikelihood_rolling", *((text,) for text in TEXTS)))


def log_probabilities(folder: Path, ids: list[int]) -> torch.Tensor:
    """Of every token but the first, given those before it, in one pass in float64."""
    model = load_trained_model(section(None, "x"), folder).model.double()
    with torch.no_grad():
        logits = model(torch.tensor([ids[:-1]]), use_cache=False).logits[0]
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


@pytest.mark.parametrize("name", ["retnet", "transformer", "llama", "gpt_neox"])
def test_continuations_and_texts_are_scored_as_by_hand(folder: Path, name: str) -> None:
    model, tokenizer = harness_model(folder / name), AutoTokenizer.from_pretrained(folder / name)
    assert model.max_length == WINDOW
    expected = []
    for context, continuation in PAIRS:
        begun = tokenizer.encode(context) or [tokenizer.bos_token_id]
        whole = begun + tokenizer.encode(context + continuation)[len(tokenizer.encode(context)) :]
        counted = len(whole) - len(begun)
        expected.append(float(log_probabilities(folder / name, whole[-WINDOW - 1 :])[-counted:].sum()))
    assert scores(model) == pytest.approx(expected, rel=1e-4)
    totals = []
    for text in TEXTS:
        ids = [tokenizer.bos_token_id, *tokenizer.encode(text)]
        starts = range(0, len(ids) - 1, WINDOW)
        # The last window is moved to the left until it is full, and scores what is left.
        parts = [ids[max(0, min(start, len(ids) - 1 - WINDOW)) :][: WINDOW + 1] for start in starts]
        left = [min(WINDOW, len(ids) - 1 - start) for start in starts]
        scored = [
            log_probabilities(folder / name, part)[-count:].sum() for part, count in zip(parts, left, strict=True)
        ]
        totals.append(float(sum(scored)))
    assert rolling(model) == pytest.approx(totals, rel=1e-4)


@pytest.mark.parametrize("form", ["parallel", "chunkwise", "recurrent"])
@pytest.mark.parametrize("carry_state", [False, True])
def test_all_forms_of_a_recurrent_model_give_the_same(folder: Path, form: str, carry_state: bool) -> None:
    usual = harness_model(folder / "retnet", carry_state=carry_state)
    model = harness_model(folder / "retnet", form=form, carry_state=carry_state)
    assert scores(model) == pytest.approx(scores(usual), rel=1e-4)
    assert rolling(model) == pytest.approx(rolling(usual), rel=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3, "auto"])
def test_a_carried_state_reads_a_text_in_one_pass(folder: Path, batch_size: int | str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder / "retnet")
    whole = [
        float(log_probabilities(folder / "retnet", [tokenizer.bos_token_id, *tokenizer.encode(text)]).sum())
        for text in TEXTS
    ]
    carried = rolling(harness_model(folder / "retnet", carry_state=True, tasks={"batch_size": batch_size}))
    assert carried == pytest.approx(whole, rel=1e-5)
    # The first text is ten windows long: what lies before a window matters.
    cut = rolling(harness_model(folder / "retnet"))
    assert abs(cut[0] / carried[0] - 1) > 1e-3


def test_batches_change_no_score(folder: Path) -> None:
    expected = scores(harness_model(folder / "retnet"))
    for batch_size in (1, "auto"):
        assert scores(harness_model(folder / "retnet", tasks={"batch_size": batch_size})) == pytest.approx(expected)


def test_an_answer_longer_than_the_window_is_a_sentence(folder: Path) -> None:
    with pytest.raises(ValueError, match="an answer of 17 tokens is longer than the model's window of 16 tokens"):
        harness_model(folder / "retnet").loglikelihood(asked("loglikelihood", ("x", "y" * 17)))


@pytest.mark.parametrize("name", ["retnet", "transformer", "gpt_neox"])
def test_text_is_written_after_contexts_of_different_lengths(folder: Path, name: str) -> None:
    request = {"until": ["\n"], "max_gen_toks": 5, "do_sample": False}
    contexts = ["the cat", "a dog sat"]
    together = harness_model(folder / name).generate_until(
        asked("generate_until", *((one, request) for one in contexts))
    )
    alone = [
        text
        for one in contexts
        for text in harness_model(folder / name).generate_until(asked("generate_until", (one, request)))  # type: ignore[arg-type]
    ]
    assert together == alone
