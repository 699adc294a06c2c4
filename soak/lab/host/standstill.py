# SPDX-License-Identifier: GPL-2.0-only
"""Noticing a guest that fell asleep for good while it booted.

Seen once, under QEMU 7.2's emulation on a loaded machine: both processors of a guest halted after the
first lines of its console, and nothing woke them any more.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Final

# Looks in a row without a word on the console, and in how many of them QEMU may want a processor: the
# one in which this was seen went on running timers, a twentieth of the time.
_LOOKS: Final = 60
_MOST_AWAKE: Final = 12


class Standstill:
    """Looks at the threads of QEMU from outside, for as long as the guest boots.

    A guest that waits for a processor of the host does not stand still: a thread of it is runnable.
    """

    def __init__(self, pid: int, console: Path) -> None:
        """Take QEMU's process and the file with the guest's console."""
        self._tasks = Path(f"/proc/{pid}/task")
        self._console = console
        self._size = -1
        self._awake: deque[bool] = deque(maxlen=_LOOKS)

    def look(self) -> bool:
        """Look once more, and say whether the guest has stood still for the last 60 looks."""
        size = self._console.stat().st_size
        if size != self._size:
            self._size = size
            self._awake.clear()
        self._awake.append(self._is_awake())
        return len(self._awake) == _LOOKS and sum(self._awake) <= _MOST_AWAKE

    def _is_awake(self) -> bool:
        """Say whether a thread runs or wants to; a QEMU that has ended is not one that sleeps."""
        states: list[str] = []
        # A thread may end meanwhile.
        with suppress(OSError):
            states.extend(
                (task / "stat").read_text().rpartition(")")[2].split()[0]
                for task in self._tasks.iterdir()
            )
        return not states or any(state not in {"S", "D"} for state in states)
