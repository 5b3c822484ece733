"""What a recording keeps away from its stream; the graphs themselves are tested on GPUs, in `test_gpu_training.py`."""

import contextlib
import gc

import pytest
import torch

from retlab.models import recording
from retlab.models.recording import Recorder


@pytest.fixture
def recorder(monkeypatch) -> Recorder:
    """A recorder whose stream and graphs are stand-ins that do nothing: there is no GPU here."""
    for name in ("Stream", "CUDAGraph", "current_stream"):
        monkeypatch.setattr(recording.torch.cuda, name, lambda *_: torch.device("cpu"))
    monkeypatch.setattr(recording.torch.cuda, "set_stream", lambda _stream: None)
    monkeypatch.setattr(recording.torch.cuda, "graph", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(recording.torch.cuda, "default_generators", [Generator()])
    monkeypatch.setattr(recording.torch, "Generator", Generator)
    made = Recorder(torch.device("cpu"))
    made._stream = type("Stream", (), {"device": torch.device("cuda", 0)})()
    return made


class Generator:
    """Random numbers of a GPU: `state` is what recordings share, `drawn` how many were drawn."""

    def __init__(self, _device: object = None) -> None:
        self.state, self.drawn = object(), 0

    def get_state(self) -> int:
        return self.drawn

    def set_state(self, drawn: int) -> None:
        self.drawn = drawn

    def graphsafe_get_state(self) -> object:
        return self.state

    def graphsafe_set_state(self, state: object) -> None:
        self.state = state


@pytest.fixture(autouse=True)
def _collecting():
    yield
    gc.enable()


@pytest.mark.parametrize("collects", [True, False])
def test_no_garbage_is_collected_while_work_is_recorded(recorder, collects) -> None:
    seen: list[bool] = []
    (gc.enable if collects else gc.disable)()
    recorder.record(lambda: seen.append(gc.isenabled()))
    assert seen == [False]
    assert gc.isenabled() == collects


def test_a_recording_that_failed_leaves_garbage_and_random_numbers_as_they_were(recorder) -> None:
    (generator,) = torch.cuda.default_generators
    state, generator.drawn = generator.state, 3

    def fail() -> None:
        generator.drawn = 7
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="capturing"):
        recorder.record(fail)
    assert gc.isenabled()
    assert generator.drawn == 3
    assert generator.state is not state
