# SPDX-License-Identifier: GPL-2.0-only
"""Resource limits of the soak's own processes. They end with the process and need no restoring."""

from __future__ import annotations

import os
import re
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from soak.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

_OOM_SCORE_ADJ: Final = Path("/proc/self/oom_score_adj")
_KIB: Final = 1024


@dataclass(frozen=True)
class Limit:
    """A limit to raise. `most` returns the highest value that root may set."""

    name: str
    number: int
    most: Callable[[], int]
    reason: str


LIMITS: Final = (
    Limit(
        "RLIMIT_MEMLOCK",
        resource.RLIMIT_MEMLOCK,
        lambda: resource.RLIM_INFINITY,
        "vfio charges pinned anonymous memory to it; beyond it MAP_DMA fails with ENOMEM, which is not "
        "a refused pin (vfio_pin_pages_remote(), drivers/vfio/vfio_iommu_type1.c)",
    ),
    Limit(
        "RLIMIT_NOFILE",
        resource.RLIMIT_NOFILE,
        lambda: int(Path("/proc/sys/fs/nr_open").read_text()),
        "an invalidator keeps every file of its region open; even root cannot exceed fs.nr_open",
    ),
)


@dataclass(frozen=True)
class OomScore:
    """A value of oom_score_adj: from -1000 (never killed) to 1000 (killed first)."""

    adjustment: int
    reason: str


OOM_SCORES: Final = {
    "worker": OomScore(
        1000,
        "the supervisor replaces a worker within a second, at the cost of one operation: the kernel "
        "kills workers before anything else on the machine",
    ),
    "supervisor": OomScore(
        -250,
        "the supervisor writes the journal and restores the machine, so others are killed first; it "
        "stays killable in case it is the process that leaks (systemd-journald uses the same value)",
    ),
}


def raise_limits() -> dict[str, int]:
    """Raise this process's limits: as root to the maximum, else to the hard limit.

    Return the new soft limits by name; -1 means unlimited.
    """
    return {limit.name: _raised(limit) for limit in LIMITS}


def limit_worker(memory_bytes: int | None = None) -> None:
    """Make this worker the first victim of the OOM killer, and limit its memory to `memory_bytes`.

    The limit covers all private writable memory, including the interpreter and anonymous regions
    (RLIMIT_DATA counts private mappings since Linux 4.7, 84638335900f). Allocations beyond it fail with
    ENOMEM. None sets no limit.

    Raises:
        UsageError: the process uses more already.
        OSError: the kernel rejects the values.
    """
    if memory_bytes is not None:
        used = private_bytes()
        if memory_bytes <= used:
            raise UsageError(
                f"The memory limit of a worker is {memory_bytes} bytes, but it uses {used} at its start: "
                f"raise limits.memory."
            )
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    _OOM_SCORE_ADJ.write_text(str(OOM_SCORES["worker"].adjustment))


def protect_supervisor() -> bool:
    """Make the OOM killer prefer other processes; return False if this process may not do that.

    Forked children inherit the score: workers must call `limit_worker`.
    """
    try:
        _OOM_SCORE_ADJ.write_text(str(OOM_SCORES["supervisor"].adjustment))
    except PermissionError:
        # Lowering the score below its initial value needs CAP_SYS_RESOURCE.
        return False
    return True


def private_bytes() -> int:
    """Return the private writable memory of this process in bytes, as RLIMIT_DATA counts it."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"^VmData:\s+(\d+) kB$", status, re.MULTILINE)
    if found is None:
        raise RuntimeError("/proc/self/status has no VmData")
    return int(found[1]) * _KIB


def _raised(limit: Limit) -> int:
    soft, hard = resource.getrlimit(limit.number)
    target = limit.most() if os.geteuid() == 0 else hard
    if soft != target:
        try:
            resource.setrlimit(limit.number, (target, target))
        except (PermissionError, ValueError):
            # Root without CAP_SYS_RESOURCE, as in a container, is bound by the hard limit.
            resource.setrlimit(limit.number, (hard, hard))
    return resource.getrlimit(limit.number)[0]
