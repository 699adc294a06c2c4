# SPDX-License-Identifier: GPL-2.0-only
"""Limits of the soak's own processes. They die with the process, so there is nothing to put back."""

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
    """A limit that is in the way. `most` is what root may raise it to."""

    name: str
    number: int
    most: Callable[[], int]
    reason: str


LIMITS: Final = (
    Limit(
        "RLIMIT_MEMLOCK",
        resource.RLIMIT_MEMLOCK,
        lambda: resource.RLIM_INFINITY,
        "vfio charges pinned anonymous memory to it and MAP_DMA fails with ENOMEM beyond, which is "
        "no refusal of the memory (vfio_pin_pages_remote(), drivers/vfio/vfio_iommu_type1.c)",
    ),
    Limit(
        "RLIMIT_NOFILE",
        resource.RLIMIT_NOFILE,
        lambda: int(Path("/proc/sys/fs/nr_open").read_text()),
        "an invalidator keeps every file of its region open; beyond fs.nr_open even root is refused",
    ),
)


@dataclass(frozen=True)
class OomScore:
    """How willing the kernel's OOM killer is to take a process: -1000 never to 1000 first."""

    adjustment: int
    reason: str


OOM_SCORES: Final = {
    "worker": OomScore(
        1000,
        "a worker is replaced within a second and loses nothing but its operation: it goes before "
        "anything that the machine is there for",
    ),
    "supervisor": OomScore(
        -250,
        "it keeps the journal and puts back what was changed, so others go before it; yet it goes "
        "before the machine does, should it be the one that leaks (systemd-journald has the same)",
    ),
}


def raise_limits() -> dict[str, int]:
    """Raise this process's limits: as root to the most there is, else to the hard limit.

    Return the limits by name, as getrlimit(2) has them now; -1 is none.
    """
    return {limit.name: _raised(limit) for limit in LIMITS}


def be_expendable(memory_bytes: int | None = None) -> None:
    """Be a worker: the first to go when memory is short, and refused more than `memory_bytes`.

    The limit is on all private writable memory of the process, the interpreter and mapped anonymous
    regions included (RLIMIT_DATA counts private mappings since Linux 4.7, 84638335900f). What goes
    beyond fails with ENOMEM. None sets no limit.

    Raises:
        UsageError: the process has more than that already.
        OSError: the kernel does not take the values.
    """
    if memory_bytes is not None:
        used = private_bytes()
        if memory_bytes <= used:
            raise UsageError(
                f"A worker may have {memory_bytes} bytes of memory and has {used} before it has done "
                f"anything: give it more."
            )
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    _OOM_SCORE_ADJ.write_text(str(OOM_SCORES["worker"].adjustment))


def be_spared() -> bool:
    """Be the supervisor: have others go first when memory is short. False where that is not allowed.

    What is forked later inherits it: a worker is to call `be_expendable`.
    """
    try:
        _OOM_SCORE_ADJ.write_text(str(OOM_SCORES["supervisor"].adjustment))
    except PermissionError:
        # Only CAP_SYS_RESOURCE may go below what the process was started with.
        return False
    return True


def private_bytes() -> int:
    """Return how much private writable memory this process has mapped: what RLIMIT_DATA counts."""
    status = Path("/proc/self/status").read_text()
    found = re.search(r"^VmData:\s+(\d+) kB$", status, re.MULTILINE)
    if found is None:
        raise RuntimeError("/proc/self/status shows no VmData")
    return int(found[1]) * _KIB


def _raised(limit: Limit) -> int:
    soft, hard = resource.getrlimit(limit.number)
    wanted = limit.most() if os.geteuid() == 0 else hard
    if soft != wanted:
        try:
            resource.setrlimit(limit.number, (wanted, wanted))
        except (PermissionError, ValueError):
            # Root without CAP_SYS_RESOURCE, as in a container: as far as it goes.
            resource.setrlimit(limit.number, (hard, hard))
    return resource.getrlimit(limit.number)[0]
