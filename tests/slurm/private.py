"""A Slurm of the test's own: munged, slurmctld and two simulated nodes on this host, all in one temporary folder.

Nothing of the machine's own Slurm or munge is read or touched. The daemons run in the foreground as children of the
test process and are told to end when it ends, however it ends.
"""

import os
import random
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "setpriv")
NODES = ("n1", "n2")
CPUS = 2
"""Cores of each simulated node: few, so that jobs wait for each other as on a busy cluster."""
MAX_ARRAY_SIZE = 11
"""The largest array index is one less: small, so that it is easily exceeded."""

# Requeued jobs start again after cred_expire seconds, by default 120. `paid` admits one account, `short` jobs of ten
# minutes on one node; the configured cores, memory and GPUs are pretended, whatever the machine has.
CONFIGURATION = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={base}/munge.socket,cred_expire=5
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool.%n
SlurmctldPidFile={base}/slurmctld.pid
SlurmdPidFile={base}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
GresTypes=gpu
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1,defer_batch
ReturnToService=2
JobRequeue=1
MinJobAge=3600
KillWait=10
SlurmctldTimeout=60
SlurmdTimeout=60
MaxArraySize={max_array_size}
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cpus} RealMemory=4000 Gres=gpu:2
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cpus} RealMemory=4000 Gres=gpu:2
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE
PartitionName=short Nodes=n1 MaxTime=10 MaxNodes=1
PartitionName=paid Nodes=n2 AllowAccounts=research
"""


def missing() -> str | None:
    """Why no private Slurm can be started here, in a sentence; None where one can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=_search_path()) is None]
    if absent:
        return f"THE SLURM TESTS DID NOT RUN: {', '.join(absent)} not found; apt-get install slurm-wlm munge"
    if os.geteuid() != 0:
        return "THE SLURM TESTS DID NOT RUN: the private Slurm's daemons need root"
    return None


class PrivateSlurm:
    """The running cluster."""

    def __init__(self) -> None:
        # Short, since the path of a socket has at most 108 characters.
        self.base = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        self.base.chmod(0o755)
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def environment(self) -> dict[str, str]:
        """This process's environment with this cluster, and no other, nor a job around the tests, showing through."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM", "SBATCH", "SQUEUE"))}
        return kept | {"SLURM_CONF": str(self.base / "slurm.conf"), "PATH": _search_path()}

    def start(self) -> None:
        """Start the daemons and wait until the nodes take jobs; another process may have been faster at a port."""
        key = self.base / "munge.key"
        key.touch(0o600)
        key.write_bytes(secrets.token_bytes(128))
        munge = [f"--{name}={self.base}/munge.{name}" for name in ("socket", "pid-file", "log-file", "seed-file")]
        self._start("munged", "munged", "--foreground", "--force", f"--key-file={key}", *munge)
        self.until((self.base / "munge.socket").exists, 120, "the private munged did not come up")
        for last in (False, False, True):
            if self._try_ports(_free_ports(1 + len(NODES)), must=last):
                return

    def _try_ports(self, ports: Sequence[int], must: bool) -> bool:
        values = {"host": socket.gethostname().split(".")[0], "base": self.base, "user": "root", "ports": ports}
        text = CONFIGURATION.format(**values, cpus=CPUS, max_array_size=MAX_ARRAY_SIZE)
        (self.base / "slurm.conf").write_text(text)
        for number in range(2):
            (self.base / f"gpu{number}").touch()
        (self.base / "gres.conf").write_text(f"Name=gpu File={self.base}/gpu[0-1]\n")
        (self.base / "state").mkdir(exist_ok=True)
        self._start("slurmctld", "slurmctld", "-D", "-i", "-c", "-f", str(self.base / "slurm.conf"))
        for node in NODES:
            self.start_node(node)
        try:
            self.until(lambda: self.up_nodes() == set(NODES), 60, "the private Slurm did not come up")
        except AssertionError:
            if must:
                raise
            for name in ("slurmctld", *NODES):
                self._end(name)
            return False
        return True

    def up_nodes(self) -> set[str]:
        """Names of the nodes that take jobs."""
        answer = self.run("sinfo", "-h", "-N", "-t", "idle,mix,alloc", "-o", "%N", check=False)
        return set(answer.stdout.split())

    def start_node(self, node: str) -> None:
        """Start a node's daemon."""
        (self.base / f"spool.{node}").mkdir(exist_ok=True)
        self._start(node, "slurmd", "-D", "-N", node, "-f", str(self.base / "slurm.conf"))

    @contextmanager
    def refusing(self) -> Iterator[None]:
        """Within this what the limits of a partition do not admit is refused; otherwise it waits for ever."""
        file = self.base / "slurm.conf"
        usual = file.read_text()
        try:
            file.write_text(usual + "EnforcePartLimits=ALL\n")
            self.run("scontrol", "reconfigure")
            yield
        finally:
            file.write_text(usual)
            self.run("scontrol", "reconfigure")

    def take_down(self, node: str) -> None:
        """The administrator takes a node down: its jobs are killed, and those that may are put into the queue."""
        self.run("scontrol", "update", f"nodename={node}", "state=down", "reason=test")

    def bring_up(self, node: str) -> None:
        """Put a node that was taken down, or whose daemon ended, back into service."""
        if self._daemons[node].poll() is not None:
            self.start_node(node)
        self.run("scontrol", "update", f"nodename={node}", "state=resume", check=False)
        self.until(lambda: node in self.up_nodes(), 120, f"{node} did not come up")

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a client program on this cluster."""
        answer = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=300)
        assert not check or answer.returncode == 0, f"{command}: {answer.stdout}{answer.stderr}"
        return answer

    def submit(self, script: str, *options: str) -> int:
        """Submit a batch script by its text; returns the job's id."""
        command = ["sbatch", "--parsable", "--output=/dev/null", *options]
        answer = subprocess.run(
            command, env=self.environment, input=script, capture_output=True, text=True, timeout=300
        )
        assert answer.returncode == 0, answer.stderr
        return int(answer.stdout.split(";")[0])

    def jobs(self, *ids: int) -> list[dict[str, str]]:
        """What `scontrol show job` says of jobs, ended ones too, each task of an array by itself; none for all jobs."""
        found = []
        for words in [[str(number)] for number in ids] or [[]]:
            answer = self.run("scontrol", "show", "job", "-o", *words, check=False)
            for line in answer.stdout.splitlines():
                pairs = [word.split("=", 1) for word in line.split() if "=" in word]
                if pairs:
                    found.append(dict(pairs))
        return found

    def state(self, number: int) -> str:
        """State of a job that is no array, such as RUNNING."""
        return self.jobs(number)[0]["JobState"]

    def wait_for(self, number: int, state: str, timeout: float = 300) -> None:
        """Wait until a job is in this state."""
        self.until(lambda: self.state(number) == state, timeout, f"job {number} did not come to {state}")

    def wait(self, *ids: int, timeout: float = 300) -> list[dict[str, str]]:
        """Wait until the jobs (none: all jobs) have ended and return them; after the time-out their logs are shown."""
        over = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE"}
        self.until(
            lambda: all(job["JobState"] in over for job in self.jobs(*ids)), timeout, f"jobs {ids} did not end", ids
        )
        return self.jobs(*ids)

    def report(self, *ids: int) -> str:
        """The jobs and the ends of their logs and of the daemons', for a failing test's message."""
        lines = []
        for job in self.jobs(*ids):
            keys = ("JobId", "JobName", "JobState", "Reason", "ExitCode", "Restarts", "Dependency", "NodeList")
            lines.append(" ".join(f"{key}={job[key]}" for key in keys if key in job))
            with suppress(OSError, KeyError):
                text = Path(job["StdOut"]).read_text(errors="replace")
                lines += [f"    {line}" for line in text.splitlines()[-30:]]
        for file in sorted(self.base.glob("*.log")):
            lines += [f"--- {file.name}", *file.read_text(errors="replace").splitlines()[-15:]]
        return "\n".join(lines)

    def clear(self) -> None:
        """Kill every job and bring every node up, so that the next test finds the cluster as new."""
        for job in self.jobs():
            if job["JobState"] in ("PENDING", "RUNNING", "SUSPENDED", "REQUEUED", "COMPLETING", "CONFIGURING"):
                # A batch shell that traps TERM and children that save would take their time.
                self.run("scancel", "--signal=KILL", "--full", job["JobId"], check=False)
                self.run("scancel", job["JobId"], check=False)
        self.until(lambda: not self.run("squeue", "-h", check=False).stdout.strip(), 200, "jobs could not be killed")
        for node in set(NODES) - self.up_nodes():
            self.bring_up(node)

    def stop(self) -> None:
        """End the jobs and the daemons and remove the folder."""
        try:
            if "slurmctld" in self._daemons and self._daemons["slurmctld"].poll() is None:
                with suppress(AssertionError, subprocess.TimeoutExpired):
                    self.clear()
        finally:
            for name in (*NODES, "slurmctld", "munged"):
                self._end(name)
            shutil.rmtree(self.base, ignore_errors=True)

    def _start(self, name: str, *command: str) -> None:
        with open(self.base / f"{name}.log", "ab") as log:
            self._daemons[name] = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *command], env=self.environment, cwd=self.base,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                # Ctrl-C is for the tests, which then end the daemons in their order.
                start_new_session=True,
            )  # fmt: skip

    def _end(self, name: str) -> None:
        daemon = self._daemons.pop(name, None)
        if daemon is None:
            return
        daemon.terminate()
        try:
            daemon.wait(10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def until(self, true: Callable[[], bool], timeout: float, otherwise: str, ids: Sequence[int] = ()) -> None:
        end = time.monotonic() + timeout
        while not true():
            assert time.monotonic() < end, f"{otherwise} within {timeout:g} s\n{self.report(*ids)}"
            time.sleep(0.1)


def _search_path() -> str:
    return os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/bin:/bin"


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, below those that the kernel hands out to clients."""
    found: list[int] = []
    while len(found) < count:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in found:
                found.append(port)
    return found
