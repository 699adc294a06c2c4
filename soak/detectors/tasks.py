# SPDX-License-Identifier: GPL-2.0-only
"""What the kernel shows of tasks that are stuck, or that wait behind one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from soak.abi.procfs import task_stack, task_state, task_wchan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_ASKED: Final[tuple[tuple[str, Callable[[int], Any]], ...]] = (
    ("state", task_state),
    ("wchan", task_wchan),
    ("stack", task_stack),
)
ASLEEP: Final = frozenset("SD")
# Where a wait for pinned DAX pages is found on the stack: ext4_break_layouts() and
# xfs_break_dax_layouts() up to 6.14, dax_break_layout() since.
_WAITS_FOR_PAGES: Final = ("break_layout", "break_dax_layouts", "wait_dax_page")

# What /proc/PID/wchan shows of one that called nanosleep (kernel/time/hrtimer.c), or that does not sleep.
_CHOSEN_SLEEP: Final = frozenset({"hrtimer_nanosleep", "do_nanosleep", "0", ""})


def look_at(pid: int) -> dict[str, Any]:
    """Return state, wchan and stack of a task, or what kept each of them from being read."""
    seen: dict[str, Any] = {"pid": pid}
    for name, ask in _ASKED:
        try:
            seen[name] = ask(pid)
        except OSError as error:
            seen[name] = f"cannot be read: {error.strerror}"
    return seen


def waits_for_pages(stack: Iterable[str]) -> bool:
    """Say whether a stack is that of a task which waits until DAX pages are not pinned any more."""
    return any(symbol in line for line in stack for symbol in _WAITS_FOR_PAGES)


def hangs_in_kernel(pid: int) -> bool:
    """Say whether a task sleeps in the kernel for something else than the time that it chose itself."""
    try:
        return task_state(pid) in ASLEEP and task_wchan(pid) not in _CHOSEN_SLEEP
    except (FileNotFoundError, ProcessLookupError):
        return False


def sleeps_for_pages(pid: int) -> bool:
    """Say whether a task is asleep and waits for pages: one that was woken may just lack a processor.

    Where the kernel shows no stacks, any sleep is taken for that.
    """
    try:
        if task_state(pid) not in ASLEEP:
            return False
        return waits_for_pages(task_stack(pid))
    except (FileNotFoundError, ProcessLookupError):
        return not Path(f"/proc/{pid}/stack").exists() and Path(f"/proc/{pid}").exists()
