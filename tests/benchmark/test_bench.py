"""Single measurements in this process, on tiny models."""

from pathlib import Path

import pytest
import torch
from tests.benchmark.sizes import tiny_plan

from retlab.benchmark.bench import Bench
from retlab.benchmark.entries import ROWS, choose_kinds, choose_peers, make_entries
from retlab.benchmark.ours import RetLab
from retlab.benchmark.plan import Shape
from retlab.benchmark.text_rates import tokeniser_row
from retlab.errors import UserError
from retlab.measuring import Marks, state_bytes
from retlab.models.engines import steps_of
from retlab.models.static_steps import Step
from retlab.training.hardware import choose_hardware


@pytest.mark.component
def test_every_contestant_gives_the_rows_of_its_cases(tmp_path: Path) -> None:
    plan = tiny_plan("transformer")
    peers, missing = choose_peers(plan, "cpu", None)
    assert (peers, missing) == (["llama"], [])
    tokeniser_row(plan, tmp_path)
    entries = list(make_entries(plan, peers, compiled=False))
    assert [entry.contestant for entry in entries] == ["RetLab", *peers]
    for entry in entries:
        bench = Bench(plan, entry, tmp_path)
        for case in entry.cases:
            rows = bench.measure(case)
            names = [row.measurement for row in rows]
            is_peer = entry.contestant != "RetLab"
            assert names == list(ROWS[case.kind][:-1] if is_peer else ROWS[case.kind])
            assert all(row.tokens_per_second for row in rows if not row.remark)


def test_generation_is_measured_in_steady_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """The contestant generates until no step that it uses will become faster, and can forget all of it."""
    monkeypatch.setattr(Step, "is_settled", property(lambda step: step.calls >= 20))
    entry = next(iter(make_entries(tiny_plan("transformer"), [], compiled=False)))
    contestant = RetLab(entry.subject, choose_hardware(entry.subject.train), entry.mode)
    model = contestant.generator()
    ids = contestant.random_ids(Shape(2, 16))

    def generate(batch: int = 2) -> None:
        model.generate(ids[:batch], max_new_tokens=9, do_sample=False)

    generate(1)
    contestant.settle(model, generate)
    assert sorted(step.calls for step in steps_of(model)) == [8, 24]
    contestant.start_afresh(model)
    assert steps_of(model) == []


def test_modes_and_cases_where_training_is_compiled() -> None:
    plan = tiny_plan("retnet", "transformer")
    entries = list(make_entries(plan, ["torchscale", "flash-linear-attention", "llama"], compiled=True))
    found = [(entry.contestant, entry.mode, [case.kind for case in entry.cases]) for entry in entries]
    assert found == [
        ("RetLab", "compiled", ["training", "generation", "loader"]),
        ("torchscale", "eager", ["training"]),
        ("torchscale", "compiled", ["training"]),
        ("flash-linear-attention", "autocast", ["training", "generation"]),
        ("RetLab", "compiled", ["training", "generation"]),
        ("llama", "compiled", ["training", "generation"]),
    ]


def test_what_is_asked_for_alone_is_measured() -> None:
    plan, peers = tiny_plan("retnet", "transformer"), ["torchscale", "flash-linear-attention", "llama"]
    found = {
        asked: [entry.contestant for entry in make_entries(plan, peers, True, choose_kinds(asked))]
        for asked in ("loader", "generation", "generation, loader", "training")
    }
    assert found == {
        "loader": ["RetLab"],
        "generation": ["RetLab", "flash-linear-attention", "RetLab", "llama"],
        "generation, loader": ["RetLab", "flash-linear-attention", "RetLab", "llama"],
        "training": ["RetLab", "torchscale", "torchscale", "flash-linear-attention", "RetLab", "llama"],
    }
    kinds = {case.kind for entry in make_entries(plan, peers, True, choose_kinds("training")) for case in entry.cases}
    assert kinds == {"training"}
    with pytest.raises(UserError, match="--measure: there is no measurement 'trainin'; name some of training, loader"):
        choose_kinds("trainin")


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ("torchscal", r"there is no peer 'torchscal' \(did you mean torchscale\?\)"),
        ("fla", r"there is no peer 'fla' \(did you mean flash-linear-attention\?\); name some of"),
        ("Transformers", r"did you mean llama\?"),
        ("xyz", "there is no peer 'xyz'; name some of"),
        ("llama", "llama has no retnet model"),
        ("flash-linear-attention", "flash-linear-attention cannot be measured here"),
    ],
)
def test_a_peer_that_cannot_be_had_by_name_is_said(asked: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        choose_peers(tiny_plan("retnet"), "cpu", asked)


def test_no_peers_where_none_are_wanted() -> None:
    assert choose_peers(tiny_plan("retnet"), "cpu", "none") == ([], [])


def test_state_bytes_count_each_storage_once() -> None:
    class Layer:
        def __init__(self) -> None:
            self.keys = torch.zeros(2, 3)
            self.view = self.keys[0]
            self.values = [torch.zeros(4, dtype=torch.bfloat16), {"more": (torch.zeros(5),)}]

    assert state_bytes([Layer(), None, "text"]) == 6 * 4 + 4 * 2 + 5 * 4
    assert state_bytes(None) is None


def test_marks_give_the_time_between_moments() -> None:
    marks = Marks(torch.device("cpu"))
    for _ in range(4):
        marks.mark()
    gaps = marks.gaps()
    assert len(gaps) == 3
    assert all(gap >= 0 for gap in gaps)
