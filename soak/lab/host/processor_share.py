# SPDX-License-Identifier: GPL-2.0-only
"""How much of the host's processors a virtual machine gets: one that waits for them is only slow."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path


class ProcessorShare:
    """Looks at the threads of QEMU from outside.

    What a thread spends on a run queue is in /proc/PID/task/TID/schedstat: nanoseconds that it ran, and
    that it waited for a processor (Documentation/scheduler/sched-stats.rst).
    """

    def __init__(self, pid: int) -> None:
        self._tasks = Path(f"/proc/{pid}/task")
        self._waited: dict[str, int] = {}
        self._looked = time.monotonic_ns()

    def look(self) -> float:
        """Return the share of the time since the last look for which no thread had to wait.

        It is that of the thread that waited longest, for a guest does not go on without any of them; and
        1 where the kernel does not tell, or the process has ended.
        """
        now, waited = time.monotonic_ns(), self._read()
        passed, self._looked = now - self._looked, now
        longest = max(
            (value - self._waited.get(task, value) for task, value in waited.items()), default=0
        )
        self._waited = waited
        return 1.0 - min(longest / passed, 1.0) if passed > 0 else 1.0

    def _read(self) -> dict[str, int]:
        """Return for how long each thread has waited in its life; one may end meanwhile."""
        waited = {}
        with contextlib.suppress(OSError):
            for task in self._tasks.iterdir():
                _, wait, _ = (task / "schedstat").read_text().split()
                waited[task.name] = int(wait)
        return waited
