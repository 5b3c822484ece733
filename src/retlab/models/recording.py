"""Work on a GPU recorded as a CUDA graph, which the host starts with one call."""

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import Any

import torch


class Recorder:
    """Launches work on a stream of its own, and records it there.

    What libraries prepare at their first call is prepared on that stream, so work is launched before it is recorded.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)

    def launch(self, work: Callable[[], object]) -> None:
        """Do the work kernel by kernel, after what was asked for before and before what is asked for later."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            work()
        current.wait_stream(self._stream)

    def record(self, work: Callable[[], object], pool: Any = None) -> torch.cuda.CUDAGraph:
        """The work as a graph, which is not run; what it makes lies in the graph's memory, or in that of `pool`.

        Raises:
            RuntimeError: the work does what cannot be recorded, such as waiting for the device. Earlier recordings
                that draw random numbers draw others from then on.
        """
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._stream.device)
        generator = torch.cuda.default_generators[self._stream.device.index]
        random = generator.get_state()
        try:
            # Other threads, which load data meanwhile, may do what they want.
            with (
                _without_collecting_garbage(),
                torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"),
            ):
                work()
        except RuntimeError:
            # One that breaks off leaves its random numbers as if it went on, and none could be drawn any more.
            generator.graphsafe_set_state(torch.Generator(self._stream.device).graphsafe_get_state())
            generator.set_state(random)
            raise
        finally:
            # A recording that fails does not always leave its stream.
            torch.cuda.set_stream(current)
        return graph


@contextlib.contextmanager
def _without_collecting_garbage() -> Iterator[None]:
    """What is collected may be another model's kernels or graphs, and giving those up ends a recording."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
