"""The experiment that tests of the evaluation share."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.evaluation.lab import Lab

from retlab.command import SIGNALS


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield Lab(tmp_path)
    for number, handler in handlers.items():
        signal.signal(number, handler)
