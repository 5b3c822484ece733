"""Why a trial came to no result."""

import signal
from pathlib import Path

import pytest

from retlab.errors import OutOfMemory, UserError
from retlab.sweep import failures


def test_errors_have_their_kind_and_one_line() -> None:
    assert failures.of_error(OutOfMemory("out of memory: it")) == ("out of memory", "out of memory: it")
    assert failures.of_error(UserError("wrong")) == ("error", "wrong")
    assert failures.of_error(ValueError("first\nsecond")) == ("error", "ValueError: first")
    assert failures.of_error(AssertionError()) == ("error", "AssertionError")


def test_a_kill_by_the_system_is_told_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "memory_kills", lambda: 4)
    kind, message = failures.of_death(-signal.SIGKILL, Path("log.txt"), 3)
    assert (kind, "lower train.micro_batch_size" in message) == ("out of memory", True)
    assert failures.of_death(-signal.SIGKILL, None, 4) == ("killed", "the process of the trial ended by SIGKILL")
    kind, message = failures.of_death(-signal.SIGSEGV, Path("log.txt"), 3)
    assert (kind, "SIGSEGV" in message, "log.txt may say more" in message) == ("killed", True, True)
    assert failures.of_death(3, None, 3) == ("killed", "the process of the trial ended with exit code 3")
