"""Latency and memory: the lengths that a model really sees, counted states, limits, and what is told of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.models.small import small_model
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from retlab.evaluation.latency import generation, limits, measure
from retlab.evaluation.latency.rows import NO_CACHE, LatencyRow, read_rows
from retlab.evaluation.settings import LatencySection
from retlab.evaluation.trained_model import TrainedModel

SIZES = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 20,
    "max_position_embeddings": 64,
}  # fmt: skip
CPU = torch.device("cpu")


def a_model(name: str) -> Any:
    torch.manual_seed(0)
    if name == "llama":
        return LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=1)).eval()
    if name == "gpt_neox":
        return GPTNeoXForCausalLM(GPTNeoXConfig(**SIZES)).eval()
    if name == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=64)).eval()
    return small_model(name, max_position_embeddings=64)


def trained(model: Any, bf16: bool = False) -> TrainedModel:
    return TrainedModel(model, PreTrainedTokenizerFast.__new__(PreTrainedTokenizerFast), CPU, bf16, Path())


def rows_of(folder: Path, model: Any, **settings: Any) -> list[LatencyRow]:
    section = LatencySection(**{"trials": 1, "warmup": 0, "new_tokens": 3, **settings})
    measure.measure_latency(trained(model), section, folder, name="mine")
    return read_rows(folder / "latency.csv")


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take a second each; test_latency_views.py draws them."""
    monkeypatch.setattr(measure, "write_plots", lambda *_: None)


@pytest.fixture
def fed(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """For each call of `generate()` the tokens of every look-up of input embeddings.

    The class is watched: a hook on the module would lead RetLab's models another way than their users go.
    """
    calls: list[list[int]] = []
    look_up, generate = nn.Embedding.forward, generation._generate

    def watched(module: nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
        if module.num_embeddings == 40:
            calls[-1].append(ids.numel())
        return look_up(module, ids)

    def counted(*inputs: Any, **options: Any) -> Any:
        calls.append([])
        return generate(*inputs, **options)

    monkeypatch.setattr(nn.Embedding, "forward", watched)
    monkeypatch.setattr(generation, "_generate", counted)
    return calls


@pytest.mark.parametrize("name", ["retnet", "transformer", "longnet", "llama", "gpt_neox"])
def test_the_model_sees_the_tokens_that_are_asked_for(name: str, fed: list[list[int]]) -> None:
    model = a_model(name)
    for batch, context in ((1, 1), (1, 63), (2, 200), (1, 1100)):
        for cached in (True, False):
            fed.clear()
            ids = generation.random_ids(model, batch, context)
            assert len(generation.token_seconds(model, ids, 3, cached)) == 1 + 3
            (seen,) = fed
            # A prompt may come in pieces; the tokens after it come one by one, or all that came before anew.
            following = [batch] * 3 if cached else [batch * (context + more) for more in (1, 2, 3)]
            assert seen[-3:] == following
            assert sum(seen[:-3]) == batch * context


@pytest.mark.parametrize("name", ["retnet", "llama"])
def test_every_call_of_a_measurement_has_a_length_of_the_list(tmp_path: Path, name: str, fed: list[list[int]]) -> None:
    rows = rows_of(tmp_path, a_model(name), contexts=[40, 7], batch_sizes=[2, 1], trials=2, warmup=1)
    shapes = [(row.batch_size, row.context) for row in rows]
    assert shapes == 2 * [(1, 7), (1, 40), (2, 7), (2, 40)]
    # After the one that loads libraries: for memory once, for the state once, and three trials.
    read = sorted(calls[0] for calls in fed[1:])
    naive = sorted(batch * context for batch, context in shapes[:4] for _ in range(1 + 3))
    assert read == sorted(naive + [batch * context for batch, context in shapes[:4] for _ in range(1 + 1 + 3)])
    assert [row.new_tokens for row in rows] == [3] * 4 + [2] * 4
    assert {row.method for row in rows} == {"recurrent" if name == "retnet" else "cache", NO_CACHE}
    numbers = [(row.prefill_median_s, row.decode_median_s, row.peak_memory_bytes, row.trials) for row in rows]
    assert all(min(number or 0 for number in line) > 0 for line in numbers)


def test_states_are_counted_in_their_tensors(tmp_path: Path) -> None:
    found = {
        name: [
            row.state_bytes_per_sequence for row in rows_of(tmp_path, a_model(name), contexts=[5, 50], batch_sizes=[2])
        ]
        for name in ("retnet", "transformer", "llama")
    }
    # Heads of width 8 with values of 16, two layers.
    assert found["retnet"] == [2 * 2 * 8 * 16 * 4] * 2 + [None] * 2
    # Keys and values of width 16 and a byte that says whether a slot is visible.
    assert found["transformer"] == [2 * (2 * 16 * 4 + 1) * tokens for tokens in (5, 50)] + [None] * 2
    assert found["llama"] == [2 * 2 * 8 * 4 * tokens for tokens in (5, 50)] + [None] * 2


def test_median_and_percentile_are_those_of_the_trials_after_warm_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = a_model("llama")
    taken: dict[bool, list[list[float]]] = {True: [], False: []}

    def seconds(_model: Any, _ids: torch.Tensor, new_tokens: int, cached: bool) -> list[float]:
        # The first of all only loads libraries.
        number = float(sum(map(len, taken.values())) ** 2 + 1)
        taken[cached].append([number, *(number * place for place in range(1, new_tokens + 1))])
        return taken[cached][-1]

    monkeypatch.setattr(measure, "token_seconds", seconds)
    rows = rows_of(tmp_path, model, contexts=[5], trials=6, warmup=2, longest_trial_seconds=1e9)
    # A round of the two methods, in an order of its own.
    for row, tries in zip(rows, (taken[True][1:], taken[False]), strict=True):
        counted = tries[1 + 2 :]
        assert (len(counted), row.trials) == (6, 6)
        firsts = [one[0] for one in counted]
        means = [np.mean(one[1:]) for one in counted]
        assert [row.prefill_median_s, row.prefill_p95_s] == pytest.approx(np.percentile(firsts, [50, 95]))
        assert [row.decode_median_s, row.decode_p95_s] == pytest.approx(np.percentile(means, [50, 95]))


def test_on_a_cpu_all_lengths_take_turns(tmp_path: Path, fed: list[list[int]]) -> None:
    rows_of(tmp_path, a_model("llama"), contexts=[5, 9, 12], trials=5, naive=False)
    begun, trials = fed[1 : 1 + 6], fed[1 + 6 :]
    assert [calls[0] for calls in begun] == [5, 5, 9, 9, 12, 12]
    rounds = [tuple(calls[0] for calls in trials[start : start + 3]) for start in range(0, 15, 3)]
    assert [sorted(lengths) for lengths in rounds] == [[5, 9, 12]] * 5
    assert len(set(rounds)) > 1


def test_bf16_has_weights_of_its_own_and_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = a_model("retnet")
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with generation.generating_model(trained(model, bf16=True)) as copied:
        assert {weight.dtype for weight in copied.parameters()} == {torch.bfloat16}
    measure.measure_latency(trained(model, bf16=True), LatencySection(contexts=[5], trials=1), tmp_path)
    assert {row.precision for row in read_rows(tmp_path / "latency.csv")} == {"bf16"}
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_a_context_beyond_learned_positions_is_told_and_the_others_stay(tmp_path: Path) -> None:
    assert limits.learned_positions(a_model("gpt2")) == 64
    rows = rows_of(tmp_path, a_model("gpt2"), contexts=[61, 62, 80])
    assert [row.is_measured for row in rows] == [True, False, False, True, True, False]
    assert rows[1].status == "not possible: 62 + 3 tokens need 65 positions, and the model has learned 64"
    assert rows[1].trials == 0
    assert rows[1].decode_median_s is rows[1].peak_memory_bytes is None


@pytest.mark.parametrize("name", ["transformer", "llama", "gpt_neox"])
def test_rotary_positions_go_beyond_the_window_with_a_note(tmp_path: Path, name: str) -> None:
    model, said = a_model(name), list[str]()
    assert limits.learned_positions(model) is None
    section = LatencySection(contexts=[80], trials=1, warmup=0, new_tokens=1, naive=False)
    measure.measure_latency(trained(model), section, tmp_path, said.append)
    assert "made for at most 64 tokens" in said[0]
    assert read_rows(tmp_path / "latency.csv")[0].is_measured


def test_a_context_that_does_not_fit_is_told_and_the_others_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The limit is real: what goes beyond it is refused by the system."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    monkeypatch.setattr(limits, "free_memory", lambda: 2**28)
    model = a_model("transformer")
    rows = rows_of(tmp_path, model, contexts=[8, 1_500_000, 2_000_000], batch_sizes=[1, 3], longest_trial_seconds=1e9)
    for row in rows:
        if row.context == 8:
            assert row.is_measured
        elif (row.batch_size, row.context) == (1, 1_500_000):
            assert row.status.startswith("does not fit the 0.2 GiB that are free of this machine's ")
        else:
            assert row.status == "not tried: 1 x 1,500,000 tokens did not fit in memory"
    assert resource.getrlimit(resource.RLIMIT_DATA) == before


def test_what_no_machine_has_room_for_is_not_tried(tmp_path: Path, fed: list[list[int]]) -> None:
    rows = rows_of(tmp_path, a_model("retnet"), contexts=[8, 2**31 - 1], batch_sizes=[1000], trials=1)
    assert [row.is_measured for row in rows] == [True, False, True, False]
    assert all("does not fit" in row.status and "at the least" in row.status for row in (rows[1], rows[3]))
    assert max(max(calls) for calls in fed) < 2 * 8 * 1000


def test_a_trial_that_would_take_too_long_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def seconds(_model: Any, ids: torch.Tensor, new_tokens: int, cached: bool) -> list[float]:
        # A square of the context for the prompt, its length for each token.
        assert ids.shape[1] <= 40
        return [ids.shape[1] ** 2, *[ids.shape[1] if cached else ids.shape[1] ** 2] * new_tokens]

    monkeypatch.setattr(measure, "token_seconds", seconds)
    rows = rows_of(tmp_path, a_model("llama"), contexts=[20, 40, 60], longest_trial_seconds=3600)
    # 60 tokens: an hour for the prompt and, as after the shorter context, 40 s for each of three tokens.
    assert [row.is_measured for row in rows] == [True, True, False] * 2
    assert rows[2].status == (
        "not tried: a trial would take 1 h 02 min or longer, and evaluate.latency.longest_trial_seconds is 3600"
    )


def test_a_length_at_which_a_model_fails_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = a_model("llama")
    forward = LlamaForCausalLM.forward

    def failing(self: Any, input_ids: torch.Tensor, *inputs: Any, **named: Any) -> Any:
        if input_ids.shape[1] >= 30:
            raise RuntimeError("index 30 is out of bounds\nand more")
        return forward(self, input_ids, *inputs, **named)

    monkeypatch.setattr(LlamaForCausalLM, "forward", failing)
    rows = rows_of(tmp_path, model, contexts=[10, 30])
    statuses = ["measured", "failed: index 30 is out of bounds"]
    assert [row.status for row in rows] == statuses * 2
    with pytest.raises(RuntimeError, match="out of bounds"):
        rows_of(tmp_path, model, contexts=[30, 40])


@pytest.mark.parametrize(
    "values",
    [
        {"contexts": [256, 256]}, {"contexts": []}, {"contexts": [0]}, {"contexts": [2**31]}, {"batch_sizes": [2, 2]},
        {"batch_sizes": [-1]}, {"new_tokens": 0}, {"trials": 0}, {"warmup": -1}, {"longest_trial_seconds": 0},
        {"contexts": [1.5]}, {"trials": 10**9},
    ],
)  # fmt: skip
def test_settings_that_cannot_be(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(values))):
        LatencySection(**values)
