"""A contestant that fails, dies or hangs is a line of the table, and the others go on."""

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
from tests.benchmark.sizes import tiny_plan

from retlab.benchmark import processes
from retlab.benchmark.entries import Entry, make_entries
from retlab.benchmark.processes import Failed, answers, entry_rows, reason_of
from retlab.benchmark.row import Row
from retlab.errors import UserError

Send = Callable[[Any], None]


def _sends_and_raises(send: Send) -> None:
    send("first")
    raise ValueError("two\nlines")


def _sends_and_dies(send: Send) -> None:
    send("first")
    os.kill(os.getpid(), signal.SIGKILL)


def _hangs(_send: Send) -> None:
    time.sleep(600)


@pytest.mark.component
def test_what_a_process_sent_before_it_failed_is_kept() -> None:
    assert list(answers(_sends_and_raises)) == ["first", Failed("ValueError: two")]
    assert list(answers(_sends_and_dies)) == ["first", Failed("its process was ended by SIGKILL (out of memory?)")]


@pytest.mark.component
def test_a_process_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PATIENCE_SECONDS", 0.1)
    assert [type(answer) for answer in answers(_hangs)] == [Failed]


def test_reasons_are_short_sentences() -> None:
    assert reason_of(UserError("no text; get some")) == "no text; get some"
    assert reason_of(RuntimeError("CUDA out of memory. Tried to allocate 3 GiB")) == "out of memory"
    assert len(reason_of(ValueError("x" * 500))) == processes.LONGEST_REASON


@pytest.mark.component
@pytest.mark.parametrize(("ready", "attempts"), [(True, 3), (False, 1)])
def test_the_other_cases_go_on_in_a_new_process(ready: bool, attempts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three cases the second fails; a contestant that never gets ready fails in all of them at once."""
    entry = next(iter(make_entries(tiny_plan("retnet"), [], compiled=False)))
    started: list[int] = []

    def stand_in(_work: Any, _plan: Any, part: Entry, _folder: Any) -> Any:
        started.append(len(part.cases))
        if ready:
            yield None
            for case in part.cases:
                if case == entry.cases[1]:
                    break
                yield [Row(case.kind, entry.model, "RetLab", *case.shape)]
            else:
                return
        yield Failed("out of memory")

    monkeypatch.setattr(processes, "answers", stand_in)
    rows = [row for part in entry_rows(tiny_plan("retnet"), entry, None) for row in part]
    assert [row.remark for row in rows] == (["", "out of memory", ""] if ready else ["out of memory"] * 3)
    assert started == ([3, 1] if ready else [3])
    assert len(started) <= attempts
