"""How often a step has run decides how it runs on a GPU; here with a recorder that repeats the work."""

import pytest
import torch
from tests.models.small import small_ids, small_model

from retlab.models import engines, static_steps
from retlab.models.body import Block
from retlab.models.static_steps import Lane, Parts, Step


class Recorder:
    """Does as `recording.Recorder` does, on a CPU."""

    def __init__(self, fails: bool = False) -> None:
        self.fails, self.seen = fails, []

    def launch(self, work) -> None:
        self.seen.append("launch")
        work()

    def record(self, work):
        if self.fails:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        self.seen.append("record")
        recorder = self

        class Graph:
            def replay(self) -> None:
                recorder.seen.append("replay")
                work()

        return Graph()


@pytest.fixture
def compiled(monkeypatch) -> list[int]:
    """Tokens of every call of a block that would be compiled."""
    calls: list[int] = []

    def advance(block, hidden, *inputs):
        calls.append(hidden.shape[1])
        return Block.advance(block, hidden, *inputs)

    monkeypatch.setattr(static_steps, "advance_compiled", advance)
    monkeypatch.setattr(static_steps, "COMPILE_AFTER", 10)
    monkeypatch.setattr(static_steps, "COMPILE_PIECES_AFTER", 5)
    monkeypatch.setattr(static_steps, "COMPILED_PIECE", 16)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 0)
    return calls


def a_step(tokens: int, recorder: Recorder, batch: int = 2) -> tuple[Step, Lane]:
    """A step of a small RetNet, and its lane, which somebody has to hold."""
    model = small_model("retnet")
    lane = Lane(Parts(model.embed_tokens, model.body, model.lm_head), batch, 0)
    step = lane.step(tokens)
    step._recorder = recorder
    return step, lane


def run(step: Step, calls: int, asked: int = 0) -> list[str]:
    found = []
    with torch.no_grad():
        for _ in range(calls):
            step.run(asked)
            found.append(step.tier)
    return found


def test_a_token_is_launched_twice_recorded_and_then_compiled(compiled) -> None:
    recorder = Recorder()
    step, _lane = a_step(1, recorder)
    assert run(step, 10) == ["launched"] * 2 + ["recorded"] * 8
    assert not compiled
    assert not step.is_settled
    run(step, 5)
    assert recorder.seen == ["launch"] * 2 + ["record"] + ["replay"] * 8 + ["launch"] * 2 + ["record"] + ["replay"] * 3
    assert step.tier == "compiled"
    assert step.is_settled
    assert set(compiled) == {1}


def test_a_long_generation_is_compiled_at_once(compiled) -> None:
    step, _lane = a_step(1, Recorder())
    assert run(step, 3, asked=11) == ["launched", "launched", "compiled"]
    assert compiled


def test_what_our_kernels_do_is_never_compiled(compiled, monkeypatch) -> None:
    step, lane = a_step(1, Recorder())
    assert not lane.fuses
    for block in lane.parts.body.blocks:
        monkeypatch.setattr(block.mixer, "fuses", lambda *_: True)
        mixer = block.mixer

        def fused(hidden, norm, *inputs, mixer=mixer):
            return hidden + mixer.advance(norm(hidden), *inputs)

        monkeypatch.setattr(mixer, "advance_fused", fused)
    lane = Lane(lane.parts, 2, 0)
    assert lane.fuses
    step = lane.step(1)
    step._recorder = Recorder()
    assert run(step, 30, asked=100) == ["launched"] * 2 + ["recorded"] * 28
    assert step.is_settled
    assert not compiled


@pytest.mark.parametrize(("tokens", "expected"), [(7, "recorded"), (8, "compiled")])
def test_short_pieces_are_never_compiled(compiled, tokens: int, expected: str) -> None:
    """Two rows of 8 are as many tokens as are compiled."""
    step, _lane = a_step(tokens, Recorder())
    assert run(step, 5)[-1] == "recorded"
    assert run(step, 4)[-1] == expected
    assert bool(compiled) == (expected == "compiled")
    assert step.is_settled


def test_what_cannot_be_recorded_is_launched_on(compiled, monkeypatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(static_steps.logging.get_logger(static_steps.__name__), "warning", told.append)
    step, lane = a_step(1, Recorder(fails=True))
    assert run(step, 6) == ["launched"] * 6
    assert int(lane.slot) == 6
    assert told == ["Generation goes on without CUDA graphs, slower: operation not permitted when stream is capturing"]
    assert step.is_settled
    assert not compiled


@pytest.mark.usefixtures("compiled")
def test_every_tier_writes_the_same(monkeypatch) -> None:
    model, ids = small_model("hybrid", pad_token_id=0), small_ids(2, 9)
    expected = model.generate(ids, max_new_tokens=30, do_sample=False)
    engines.forget(model)
    recorder = Recorder()
    make = Step.__init__

    def with_recorder(step, *arguments) -> None:
        make(step, *arguments)
        step._recorder = recorder

    monkeypatch.setattr(Step, "__init__", with_recorder)
    for _ in range(3):
        assert torch.equal(model.generate(ids, max_new_tokens=30, do_sample=False), expected)
    assert {"launch", "record", "replay"} == set(recorder.seen)
