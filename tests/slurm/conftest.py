"""The private Slurm of a test process: started by the first test that wants it, for all of them."""

from collections.abc import Iterator

import pytest
from tests.slurm.private import PrivateSlurm, missing


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[PrivateSlurm]:
    """One cluster for all tests of this process; tests use `slurm`, which leaves it as it was."""
    reason = missing()
    if reason:
        pytest.skip(reason)
    cluster = PrivateSlurm()
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def slurm(slurm_cluster: PrivateSlurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[PrivateSlurm]:
    """The private cluster, idle, and used by every process that the test starts."""
    for name in ("SLURM_CONF", "PATH"):
        monkeypatch.setenv(name, slurm_cluster.environment[name])
    yield slurm_cluster
    slurm_cluster.clear()
