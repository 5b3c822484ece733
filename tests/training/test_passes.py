"""Which passes are recorded, and what becomes of gradients; `test_gpu_training.py` does it with real graphs."""

import pytest
import torch
from torch import nn

from retlab.training import passes
from retlab.training.passes import WARM_PASSES, RecordedPasses


class StandIn:
    """A recorder without a GPU: its graphs do the work again, and leave gradients where the recording has put them."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.parameters, self.launched, self.replayed, self.refuses = parameters, 0, 0, False

    def launch(self, work) -> None:
        self.launched += 1
        work()

    def record(self, work, _pool):
        before = [None if p.grad is None else p.grad.clone() for p in self.parameters]
        work()
        if self.refuses:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        # Nothing is computed by a recording.
        for parameter, old in zip(self.parameters, before, strict=True):
            parameter.grad.copy_(torch.full_like(parameter.grad, torch.nan) if old is None else old)
        return Graph(self, work, [p.grad for p in self.parameters], is_first=before[0] is None)


class Graph:
    def __init__(self, recorder: StandIn, work, places: list[torch.Tensor], is_first: bool) -> None:
        self.recorder, self.work, self.places, self.is_first = recorder, work, places, is_first

    def pool(self) -> None:
        return None

    def replay(self) -> None:
        self.recorder.replayed += 1
        parameters = self.recorder.parameters
        assert all(p.grad is place for p, place in zip(parameters, self.places, strict=True))
        if self.is_first:
            for parameter in parameters:
                parameter.grad = None
        self.work()
        for parameter, place in zip(parameters, self.places, strict=True):
            place.copy_(parameter.grad)
            parameter.grad = place


@pytest.fixture
def parts(monkeypatch):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    recorder = StandIn(list(model.parameters()))
    monkeypatch.setattr(passes, "Recorder", lambda _device: recorder)
    monkeypatch.setattr(RecordedPasses, "_lacks_memory", lambda _self: "")

    def work(inputs, scale):
        loss = model(inputs["x"]).square().sum()
        (loss * scale).backward()
        return loss

    return model, recorder, RecordedPasses(work, list(model.parameters()), torch.device("cpu"))


def steps(model, run, count: int, rows=(4, 4, 2)) -> list[list[torch.Tensor]]:
    """Gradients of steps of three micro-batches, the last of them smaller."""
    generator, found = torch.Generator().manual_seed(1), []
    for _ in range(count):
        for size in rows:
            run({"x": torch.randn(size, 3, generator=generator)}, 0.25)
        found.append([parameter.grad.clone() for parameter in model.parameters()])
        model.zero_grad(set_to_none=True)
    return found


def plain(model):
    return lambda inputs, scale: (model(inputs["x"]).square().sum() * scale).backward()


def assert_equal(some, others) -> None:
    for step, (one, other) in enumerate(zip(some, others, strict=True)):
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a, b), step


def test_replayed_steps_have_the_gradients_of_launched_ones(parts) -> None:
    model, recorder, recorded = parts
    expected = steps(model, plain(model), 8)
    assert_equal(steps(model, recorded.run, 8), expected)
    # Three kinds: the first of a step, a further one, and the smaller further one.
    assert recorded.recorded == 3
    assert recorder.launched == 3 * WARM_PASSES
    assert recorder.replayed == 3 * (8 - WARM_PASSES)


def test_losses_are_those_of_the_micro_batch(parts) -> None:
    model, _, recorded = parts
    for value in range(6):
        x = torch.full((4, 3), float(value))
        loss = recorded.run({"x": x}, 1.0)
        assert loss.dtype == torch.float64
        assert loss.item() == model(x).square().sum().item()
        model.zero_grad(set_to_none=True)


def test_a_step_that_others_have_put_gradients_into_is_launched(parts) -> None:
    model, recorder, recorded = parts
    steps(model, recorded.run, 5)
    before = recorder.replayed
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    recorded.run({"x": torch.zeros(4, 3)}, 1.0)
    assert recorder.replayed == before
    assert torch.equal(model.weight.grad, torch.ones(2, 3))


def test_what_cannot_be_recorded_is_launched_on_and_said_once(parts, caplog) -> None:
    model, recorder, recorded = parts
    recorder.refuses = True
    expected = steps(model, plain(model), 6)
    assert_equal(steps(model, recorded.run, 6), expected)
    assert recorded.recorded == 0
    assert [record.getMessage() for record in caplog.records] == [
        "note: training goes on without CUDA graphs, perhaps slower: operation not permitted when stream is capturing"
    ]


def test_after_a_recording_that_failed_earlier_ones_are_not_replayed_either(parts, caplog) -> None:
    """A recording that breaks off takes the random numbers of the others with it."""
    model, recorder, recorded = parts
    expected = steps(model, plain(model), 4) + steps(model, plain(model), 4, rows=(3, 4, 2))
    found = steps(model, recorded.run, 4)
    assert recorded.recorded == 3
    recorder.refuses = True
    found += steps(model, recorded.run, 4, rows=(3, 4, 2))
    assert_equal(found, expected)
    assert recorded.recorded == 0
    assert len(caplog.records) == 1


def test_without_memory_to_spare_nothing_is_recorded(parts, monkeypatch, caplog) -> None:
    model, recorder, recorded = parts
    monkeypatch.setattr(RecordedPasses, "_lacks_memory", lambda _self: "they need 8.0 GiB of free memory")
    steps(model, recorded.run, 4)
    assert (recorded.recorded, recorder.replayed) == (0, 0)
    assert "they need 8.0 GiB" in caplog.text
