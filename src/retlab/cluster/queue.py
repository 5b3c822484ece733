"""The queue, as squeue shows it: waiting and running jobs, and for some minutes those that ended."""

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from retlab.cluster.client import call, reason_given
from retlab.errors import UserError

# No character of a job's name or of a reason in words.
_SEPARATOR = "\x1f"
_FIELDS = ("%F", "%K", "%T", "%r", "%N", "%S", "%j", "%k")
_LOOKS, _LOOK_SECONDS = 20, 0.25
_OVER = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One job, or one task of a job array."""

    id: int
    "Number that sbatch gave; all tasks of an array have the same."
    index: int | None
    "Index of the array's task."
    state: str
    "Slurm's word, such as PENDING or RUNNING."
    reason: str
    "Why it waits, or why it ended."
    nodes: str
    "Where it runs."
    since: str
    "Its start, for a waiting job the expected one, as Slurm writes it."
    name: str
    "Its name."
    comment: str = ""
    "What sbatch was told to note."

    @property
    def is_over(self) -> bool:
        """Whether it ended, in whichever way."""
        return self.state in _OVER


def jobs(ids: Sequence[int]) -> list[Job]:
    """What squeue knows of these jobs, the tasks of arrays one by one; those that it has forgotten are left out.

    Raises:
        UserError: squeue is not here or has no answer.
    """
    return _asked("-r", f"--jobs={','.join(map(str, sorted(set(ids))))}") if ids else []


def jobs_looked_at(ids: Sequence[int]) -> list[Job]:
    """What squeue knows of jobs just submitted, when the scheduler has looked at each: then it says why it waits.

    After some seconds without a look it is what there is.

    Raises:
        UserError: squeue is not here or has no answer.
    """
    for _ in range(_LOOKS):
        found = jobs(ids)
        if {job.id for job in found if job.state != "PENDING" or job.reason != "None"} >= set(ids):
            return found
        time.sleep(_LOOK_SECONDS)
    return jobs(ids)


def own_jobs() -> list[Job]:
    """All of this user's jobs that squeue knows; of an array's waiting tasks all in one.

    Raises:
        UserError: squeue is not here or has no answer.
    """
    return _asked(f"--user={os.geteuid()}")


def _asked(*which: str) -> list[Job]:
    answer = call(["squeue", "-h", "--states=all", *which, "-o", _SEPARATOR.join(_FIELDS)])
    if answer.returncode != 0:
        # Of a single job that Slurm has forgotten squeue says this; of several it leaves it out.
        if "Invalid job id" in answer.stderr:
            return []
        raise UserError(f"squeue cannot tell what is in the queue: {reason_given(answer)}")
    found = []
    for line in answer.stdout.splitlines():
        number, index, *texts = line.split(_SEPARATOR)
        found.append(Job(int(number), int(index) if index.isdigit() else None, *texts))
    return found


_RESOURCES = r"PartitionNodeLimit|PartitionConfig|BadConstraints"
_NEVER = {
    r"PartitionNodeLimit|PartitionConfig": "it asks for more than the partition has or allows; ask for less"
    " (cluster.time, nodes, cpus, memory, gpus) or for another cluster.partition",
    r"PartitionTimeLimit": "cluster.time is longer than the partition allows",
    r"PartitionDown|PartitionInactive": "the partition takes no jobs; choose another cluster.partition",
    r"BadConstraints": "no node has all that it asks for; ask for less (cluster.cpus, memory, gpus) or other features",
    r"ReqNodeNotAvail.*|NodeDown|Nodes required for job are DOWN.*": "the nodes it needs are down, drained or"
    " reserved; it starts when they are back, or on others if it asks for others",
    r"Assoc\w*|.*[aA]ccount.*": "the limits of cluster.account, or its right to the partition, do not admit it",
    r"Max\w+PerAccount|Grp\w+": "a limit of cluster.account keeps it waiting",
    r"QOS\w*|.*\bqos\b.*": "a limit of cluster.qos keeps it waiting",
    r"InvalidQOS": "cluster.qos names no quality of service that may be used here",
    r"Reservation\w*": "the reservation that it asks for is not there",
    r"DependencyNeverSatisfied": "a job before it failed; it never starts: cancel it, mend the failed stage and submit"
    " again",
    r"JobHeldUser": "you hold it; scontrol release lets it start",
    r"JobHeldAdmin|JobHoldMaxRequeue|launch failed requeued held": "it is held; ask the administrators",
    r"Licenses": "licences that it asks for are used up",
}  # fmt: skip


def trouble(reason: str) -> str | None:
    """What to do about the reason of a waiting job, where waiting alone may not help; None for a usual reason."""
    return next((advice for pattern, advice in _NEVER.items() if re.fullmatch(pattern, reason)), None)


def is_about_resources(reason: str) -> bool:
    """Whether a job waits since it asks for more than there is, of which the reason does not say what."""
    return re.fullmatch(_RESOURCES, reason) is not None


def way_out(ids: Sequence[int]) -> str:
    """A line that says how to take jobs out of the queue."""
    what = "it" if len(ids) == 1 else "all of them"
    return f"take {what} out of the queue with: scancel {' '.join(map(str, ids))}"
