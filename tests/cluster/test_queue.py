"""What squeue says of jobs."""

import subprocess

import pytest

from retlab.cluster import queue


def line(job: int, index: str, state: str, reason: str) -> str:
    return "\x1f".join([str(job), index, state, reason, "", "N/A", "name", "(null)"])


def test_a_job_is_waited_for_until_the_scheduler_has_looked_at_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a job just submitted squeue gives no reason, and a sweep that can never start would seem to wait as usual."""
    answers = [
        [line(1, "0", "PENDING", "None"), line(2, "N/A", "PENDING", "Dependency")],
        [line(1, "0", "PENDING", "PartitionTimeLimit"), line(2, "N/A", "PENDING", "Dependency")],
    ]
    asked = []

    def call(command: list[str]) -> "subprocess.CompletedProcess[str]":
        asked.append(command)
        return subprocess.CompletedProcess(command, 0, "\n".join(answers[min(len(asked), 2) - 1]), "")

    monkeypatch.setattr(queue, "call", call)
    monkeypatch.setattr(queue, "_LOOK_SECONDS", 0.0)
    assert [job.reason for job in queue.jobs_looked_at([1, 2])] == ["PartitionTimeLimit", "Dependency"]
    assert len(asked) == 2
    # A scheduler that does not come to it holds nobody up for ever.
    answers[1] = answers[0]
    assert [job.reason for job in queue.jobs_looked_at([1, 2])] == ["None", "Dependency"]
