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
    made = Recorder(torch.device("cpu"))
    made._stream = type("Stream", (), {"device": torch.device("cpu")})()
    return made


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


def test_garbage_is_collected_again_after_a_recording_that_failed(recorder) -> None:
    def fail() -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="capturing"):
        recorder.record(fail)
    assert gc.isenabled()
