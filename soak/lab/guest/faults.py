# SPDX-License-Identifier: GPL-2.0-only
"""Faults that a lab plants to show that the detectors find them.

Each is real: the kernel panics, a process is killed, a page is held, a limit is lowered. The guest's
first process plants them, after the workers have started.
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
# The longest possible run.
_MOST_SECONDS: Final = 366 * 86400.0
_SEIZE_SECONDS: Final = 30.0
_SEIZE_POLL_SECONDS: Final = 0.002
# Several, because not every trial waits for a page, and a slow machine may miss a wait.
_LATE_PAGES: Final = 8
_LATE_SECONDS: Final = 1.4
_LONG_SECONDS: Final = 3.0
_STUCK_SECONDS: Final = 60.0
_REALTIME_PRIORITY: Final = 99


@dataclass(frozen=True)
class Fault:
    """A fault. `does` and `shows_as` are for `dax-soak faults`."""

    name: str
    does: str
    shows_as: str
    plant: Callable[[GuestContext], None]


def parse_fault(text: str) -> tuple[str, float]:
    """Return name and delay in seconds from NAME or NAME:SECONDS.

    Raises:
        UsageError: the fault is unknown, or the argument is not a number of seconds.
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
            f"--fault {text}: the argument is {argument!r}, expected at most a year in seconds, as in "
            f"{name}:20."
        )
    return name, seconds


def check_fault(name: str) -> None:
    """Refuse an unknown fault.

    Raises:
        UsageError: with the known names.
    """
    if name not in FAULTS:
        raise UsageError(f"Unknown fault {name!r} (choose from {', '.join(sorted(FAULTS))}).")


def _panic(_context: GuestContext) -> None:
    Path("/proc/sysrq-trigger").write_text("c")


def _hang(_context: GuestContext) -> None:
    """Occupy every processor for ever: no other user space runs again.

    Disables what reserves time for ordinary tasks: real-time throttling, and the fair server (since
    557a6bfc662c, Linux 6.12).
    """
    Path("/proc/sys/kernel/sched_rt_runtime_us").write_text("-1")
    for server in Path("/sys/kernel/debug/sched/fair_server").glob("cpu*/runtime"):
        server.write_text("0")
    for processor in os.sched_getaffinity(0):
        fork(partial(_occupy, processor))


def _occupy(processor: int) -> None:
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
    """Hold one page of the device-dax, outside all accounts, until the machine ends."""
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
    """Limit a container to one mapping: the kernel refuses further ones with ENOSPC.

    The kernel reads the limit when a container is opened, so kill a mapper.
    """
    limit = Path("/sys/module/vfio_iommu_type1/parameters/dma_entry_limit")
    limit.write_text("1")
    _kill_worker(context)


def _page_cache(context: GuestContext) -> None:
    """Mount files without DAX, which the kernel pins, over the fs-dax files.

    A mapper opens files when it starts, so kill one.
    """
    copy = Path("/run/page-cache")
    # Files of trials and canaries appear and vanish during the copy.
    transient = shutil.ignore_patterns("trial-*", "canary-*")
    shutil.copytree(context.fs_dax_files, copy, ignore=transient)
    checked(LIBC.mount(bytes(copy), bytes(context.fs_dax_files), None, _MS_BIND, None), "bind mount")
    _kill_worker(context)
    # An empty file cannot be pinned: invalidators open the new files with O_TRUNC, and lengthen only the
    # old ones. So lengthen the new ones here.
    deadline = time.monotonic() + _LONG_SECONDS
    while time.monotonic() < deadline:
        for file in copy.glob("file-*"):
            os.truncate(file, FILE_SIZE)
        time.sleep(0.01)


def _stuck_page(context: GuestContext) -> None:
    """Pin a page of a trial's file for ever, outside all accounts.

    On kernels that do not wait for unmapped files a trial may go on: then pin another page.
    """
    deadline = time.monotonic() + _SEIZE_SECONDS
    while True:
        path, page = _seize_trial_page(context)
        if _stands_still(path) or time.monotonic() > deadline:
            context.keep(page)
            return
        page.close()


def _late_page(context: GuestContext) -> None:
    """Pin pages of trials and release each after `_LATE_SECONDS`, so that their waits end late."""
    for _ in range(_LATE_PAGES):
        _, page = _seize_trial_page(context)
        time.sleep(_LATE_SECONDS)
        page.close()


def _stuck_transfer(_context: GuestContext) -> None:
    """Suspend a slow disk for longer than the kernel's request timeout.

    In another process, because the guest's first process must keep sending ALIVE.
    """
    fork(_suspend_disk_for_long)


def _suspend_disk_for_long() -> None:
    try:
        suspend_disk()
        time.sleep(_STUCK_SECONDS)
    finally:
        resume_disk()


def _stands_still(path: Path) -> bool:
    """Return whether a file of a trial, which changes several times a second, has stopped changing."""
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
    """Pin a page of a running trial; its file has pages only then."""
    deadline = time.monotonic() + _SEIZE_SECONDS
    while time.monotonic() < deadline:
        for path in context.fs_dax_files.glob("trial-*"):
            # The trial may unlink or truncate it at any moment.
            with contextlib.suppress(OSError):
                return path, _hold_first_page(path)
        time.sleep(_SEIZE_POLL_SECONDS)
    raise TimeoutError("no trial had a page to pin")


def _hold_first_page(path: Path) -> HeldPages:
    """Pin the first page of a file.

    Raises:
        OSError: it has no page.
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
        Fault("hang", "occupies every processor of the guest for ever", "lost-machine", _hang),
        Fault("kill-worker", "kills a mapper", "a restart, no violation", _kill_worker),
        Fault("kill-supervisor", "kills the supervisor", "verdict unknown", _kill_supervisor),
        Fault("stop-supervisor", "stops the supervisor", "verdict unknown", _stop_supervisor),
        Fault("leak", "holds a page of the device-dax", "leak of one reference", _leak),
        Fault("leak-file", "holds a page of an fs-dax file", "leak of one reference", _leak_file),
        Fault(
            "refuse-map",
            "limits a vfio container to one mapping",
            "unexpected-refusal, wrong-errno",
            _refuse_map,
        ),
        Fault(
            "page-cache",
            "mounts files without DAX over the fs-dax files",
            "unexpected-pin, early-truncate",
            _page_cache,
        ),
        Fault("stuck-page", "pins a page of a trial's file for ever", "stall, leak", _stuck_page),
        Fault(
            "stuck-transfer",
            "suspends a slow disk for a minute",
            "stall of a hold, and of operations that wait for it",
            _stuck_transfer,
        ),
        Fault("late-page", "pins pages of trials a second too long", "late-wakeup", _late_page),
    )
}
