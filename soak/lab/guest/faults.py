# SPDX-License-Identifier: GPL-2.0-only
"""Faults that a lab can plant, so that what watches is seen to notice.

Each is real: the kernel panics, a process is killed, a page is held, a limit is lowered. The guest's
first process plants them, some time after the workers have started.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from soak.abi.libc import LIBC, checked
from soak.abi.mmap import MAP_SHARED, PROT_READ, PROT_WRITE, Mapping
from soak.abi.splice import HeldPages
from soak.errors import UsageError
from soak.lab.guest.disks import resume_disk, suspend_disk
from soak.process.child import fork
from soak.regions.fs_dax import FILE_SIZE
from soak.regions.pages import PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from soak.lab.guest.context import GuestContext

_MS_BIND: Final = 0x1000
_DEFAULT_SECONDS: Final = 15.0
# As long as a run may be: what comes later never comes.
_MOST_SECONDS: Final = 366 * 86400.0
_SEIZE_SECONDS: Final = 30.0
_SEIZE_POLL_SECONDS: Final = 0.002
# Not every trial has to wait for a page, and on a slow machine not every wait is caught.
_LATE_PAGES: Final = 8
_LATE_SECONDS: Final = 1.4
_LONG_SECONDS: Final = 3.0
_STUCK_SECONDS: Final = 60.0
_REALTIME_PRIORITY: Final = 99


@dataclass(frozen=True)
class Fault:
    """A fault by name; its argument is the number of seconds after which it is planted."""

    name: str
    does: str
    shows_as: str
    plant: Callable[[GuestContext], None]


def parse_fault(text: str) -> tuple[str, float]:
    """Return name and delay in seconds from NAME or NAME:SECONDS.

    Raises:
        UsageError: there is no such fault, or the argument is no number of seconds.
    """
    name, separator, argument = text.partition(":")
    check_fault(name)
    if not separator:
        return name, _DEFAULT_SECONDS
    try:
        seconds = float(argument)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= _MOST_SECONDS:
        raise UsageError(
            f"The fault {text!r} has the argument {argument!r}: expected seconds, as in {name}:20, of "
            f"at most a year."
        )
    return name, seconds


def check_fault(name: str) -> None:
    """Refuse a name that no fault has.

    Raises:
        UsageError: with the names there are.
    """
    if name not in FAULTS:
        raise UsageError(f"Unknown fault {name!r} (choose from {', '.join(sorted(FAULTS))}).")


def _panic(_context: GuestContext) -> None:
    Path("/proc/sysrq-trigger").write_text("c")


def _hang(_context: GuestContext) -> None:
    """Take every processor for good: nothing else in user space runs again.

    What the kernel sets aside for ordinary tasks is taken, too: the throttling of real-time tasks,
    and the deadline server (since 557a6bfc662c, Linux 6.12).
    """
    Path("/proc/sys/kernel/sched_rt_runtime_us").write_text("-1")
    for server in Path("/sys/kernel/debug/sched/fair_server").glob("cpu*/runtime"):
        server.write_text("0")
    for processor in os.sched_getaffinity(0):
        fork(partial(_take_for_good, processor))


def _take_for_good(processor: int) -> None:
    os.sched_setaffinity(0, {processor})
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(_REALTIME_PRIORITY))
    while True:
        pass


def _kill_worker(context: GuestContext) -> None:
    os.kill(context.worker_pid("mapper-0"), signal.SIGKILL)


def _kill_supervisor(context: GuestContext) -> None:
    os.kill(context.supervisor_pid, signal.SIGKILL)


def _stop_supervisor(context: GuestContext) -> None:
    os.kill(context.supervisor_pid, signal.SIGSTOP)


def _leak(context: GuestContext) -> None:
    """Hold one page of the device-dax, which nobody knows of, until the machine ends."""
    descriptor = os.open(context.device_dax, os.O_RDWR | os.O_CLOEXEC)
    mapping = Mapping(context.alignment, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor)
    mapping.bytes[0] = 1
    context.keep(HeldPages(mapping.address, PAGE_SIZE))


def _leak_file(context: GuestContext) -> None:
    """Hold one page of an fs-dax file that no worker uses."""
    path = context.fs_dax / "held-by-a-fault"
    path.write_bytes(b"\xa5" * PAGE_SIZE)
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    mapping = Mapping(PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor)
    mapping.bytes[0] = 1
    context.keep(HeldPages(mapping.address, PAGE_SIZE))


def _refuse_map(context: GuestContext) -> None:
    """Let a container hold one mapping only: further ones are refused with ENOSPC.

    The limit is read when a container is opened, so a mapper is replaced.
    """
    limit = Path("/sys/module/vfio_iommu_type1/parameters/dma_entry_limit")
    limit.write_text("1")
    _kill_worker(context)


def _page_cache(context: GuestContext) -> None:
    """Put files without DAX where the fs-dax files are: the kernel pins those.

    A mapper opens files when it starts, so one is replaced.
    """
    copy = Path("/run/page-cache")
    # Those of trials and canaries come and go while they are copied.
    passing = shutil.ignore_patterns("trial-*", "canary-*")
    shutil.copytree(context.fs_dax_files, copy, ignore=passing)
    checked(LIBC.mount(bytes(copy), bytes(context.fs_dax_files), None, _MS_BIND, None), "bind mount")
    _kill_worker(context)
    # Beyond its end nothing of a file is pinned: invalidators open the new ones with O_TRUNC, and make
    # the old ones long again.
    deadline = time.monotonic() + _LONG_SECONDS
    while time.monotonic() < deadline:
        for file in copy.glob("file-*"):
            os.truncate(file, FILE_SIZE)
        time.sleep(0.01)


def _stuck_page(context: GuestContext) -> None:
    """Pin a page of a trial's file for good, which nobody knows of.

    Where a file that nobody maps is not waited for, a trial may go on all the same: then another.
    """
    deadline = time.monotonic() + _SEIZE_SECONDS
    while True:
        path, page = _seize_trial_page(context)
        if _stands_still(path) or time.monotonic() > deadline:
            context.keep(page)
            return
        page.close()


def _late_page(context: GuestContext) -> None:
    """Pin pages of trials, and let each go a second later: their waits end late."""
    for _ in range(_LATE_PAGES):
        _, page = _seize_trial_page(context)
        time.sleep(_LATE_SECONDS)
        page.close()


def _stuck_transfer(_context: GuestContext) -> None:
    """Have a slow disk keep every request for longer than a kernel lets a device take.

    Another process does it: the guest's first one goes on showing that it is alive.
    """
    fork(_suspend_disk_for_long)


def _suspend_disk_for_long() -> None:
    try:
        suspend_disk()
        time.sleep(_STUCK_SECONDS)
    finally:
        resume_disk()


def _stands_still(path: Path) -> bool:
    """Say whether nothing becomes of a file that every trial changes several times a second."""
    seen = []
    for _ in range(2):
        time.sleep(_LATE_SECONDS / 2)
        try:
            status = path.stat()
        except FileNotFoundError:
            return False
        seen.append((status.st_ino, status.st_size, status.st_ctime_ns))
    return seen[0] == seen[1]


def _seize_trial_page(context: GuestContext) -> tuple[Path, HeldPages]:
    """Pin a page of a trial that is under way; the file has pages only then."""
    deadline = time.monotonic() + _SEIZE_SECONDS
    while time.monotonic() < deadline:
        for path in context.fs_dax_files.glob("trial-*"):
            # It may be unlinked, emptied or cut short at any moment.
            with contextlib.suppress(OSError):
                return path, _hold_first_page(path)
        time.sleep(_SEIZE_POLL_SECONDS)
    raise TimeoutError("no trial had a page to pin")


def _hold_first_page(path: Path) -> HeldPages:
    """Pin the first page of a file that has one.

    Raises:
        OSError: it has none, or none any more.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        first = os.lseek(descriptor, 0, os.SEEK_DATA)
        with Mapping(first + PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor) as mapping:
            return HeldPages(mapping.address + first, PAGE_SIZE)
    finally:
        os.close(descriptor)


FAULTS: Final = {
    fault.name: fault
    for fault in (
        Fault("panic", "crashes the guest's kernel", "lost-machine", _panic),
        Fault("hang", "takes every processor of the guest for good", "lost-machine", _hang),
        Fault("kill-worker", "kills a mapper", "a restart, no violation", _kill_worker),
        Fault("kill-supervisor", "kills the supervisor", "verdict unknown", _kill_supervisor),
        Fault("stop-supervisor", "stops the supervisor", "verdict unknown", _stop_supervisor),
        Fault("leak", "holds a page of the device-dax", "leak of one reference", _leak),
        Fault("leak-file", "holds a page of an fs-dax file", "leak of one reference", _leak_file),
        Fault(
            "refuse-map",
            "lets a vfio container hold one mapping only",
            "unexpected-refusal, wrong-errno",
            _refuse_map,
        ),
        Fault(
            "page-cache",
            "puts files without DAX in the place of the fs-dax files",
            "unexpected-pin, early-truncate",
            _page_cache,
        ),
        Fault("stuck-page", "pins a page of a trial's file for good", "stall, leak", _stuck_page),
        Fault(
            "stuck-transfer",
            "has a slow disk keep what is sent to it for a minute",
            "stall of a hold, and of what waits for it",
            _stuck_transfer,
        ),
        Fault(
            "late-page", "pins pages of trials a second longer than they do", "late-wakeup", _late_page
        ),
    )
}
