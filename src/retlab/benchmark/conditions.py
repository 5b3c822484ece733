"""What a reader of a measurement must know of it: the machine, versions, the command, and other work beside it."""

import os
import platform
from collections.abc import Iterable
from datetime import UTC, datetime

from retlab import provenance

BUSY_SHARE = 0.5
"""Load per processor from which the machine is called busy."""


def conditions(hardware: str, peers: Iterable[str], command: str) -> list[str]:
    """Lines for the head of a report; `peers` are further libraries with their versions."""
    versions = provenance.versions()
    libraries = [f"{name} {versions[name]}" for name in ("python", "torch", "transformers") if name in versions]
    return [
        hardware,
        ", ".join(dict.fromkeys([*libraries, *peers])),
        f"RetLab {provenance.commit() or 'of unknown commit'}, {platform.platform()}",
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {command}",
    ]


def busy() -> list[str]:
    """A line where other work takes the processors, and so the time that is measured."""
    load, processors = os.getloadavg()[0], os.cpu_count() or 1
    if load < BUSY_SHARE * processors:
        return []
    return [f"THE MACHINE WAS BUSY before this began (load {load:.1f} on {processors} processors): measure again alone"]
