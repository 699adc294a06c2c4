# SPDX-License-Identifier: GPL-2.0-only
"""The state of stuck tasks, and of tasks blocked behind them, from procfs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from soak.abi.procfs import task_stack, task_state, task_wchan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_READERS: Final[tuple[tuple[str, Callable[[int], Any]], ...]] = (
    ("state", task_state),
    ("wchan", task_wchan),
    ("stack", task_stack),
)
ASLEEP: Final = frozenset("SD")
# Symbols on the stack of a task that waits for pinned DAX pages: ext4_break_layouts() and
# xfs_break_dax_layouts() up to 6.14, dax_break_layout() since.
_WAITS_FOR_PAGES: Final = ("break_layout", "break_dax_layouts", "wait_dax_page")

# /proc/PID/wchan of a task in nanosleep (kernel/time/hrtimer.c), or of one that does not sleep.
_OWN_SLEEP: Final = frozenset({"hrtimer_nanosleep", "do_nanosleep", "0", ""})


def look_at(pid: int) -> dict[str, Any]:
    """Return state, wchan and stack of a task; an unreadable one is replaced by its error."""
    seen: dict[str, Any] = {"pid": pid}
    for name, read in _READERS:
        try:
            seen[name] = read(pid)
        except OSError as error:
            seen[name] = f"cannot be read: {error.strerror}"
    return seen


def waits_for_pages(stack: Iterable[str]) -> bool:
    """Return whether the stack belongs to a task that waits for DAX pages to be unpinned."""
    return any(symbol in line for line in stack for symbol in _WAITS_FOR_PAGES)


def hangs_in_kernel(pid: int) -> bool:
    """Return whether a task is blocked in the kernel, nanosleep excluded."""
    try:
        return task_state(pid) in ASLEEP and task_wchan(pid) not in _OWN_SLEEP
    except (FileNotFoundError, ProcessLookupError):
        return False


def sleeps_for_pages(pid: int) -> bool:
    """Return whether a task sleeps until pages are unpinned; a woken task that lacks a CPU does not.

    On a kernel without /proc/PID/stack any sleep counts.
    """
    try:
        if task_state(pid) not in ASLEEP:
            return False
        return waits_for_pages(task_stack(pid))
    except (FileNotFoundError, ProcessLookupError):
        return not Path(f"/proc/{pid}/stack").exists() and Path(f"/proc/{pid}").exists()
