# SPDX-License-Identifier: GPL-2.0-only
"""The soak's own time, which stands still when the machine does.

It is counted in heartbeats of the supervisor: a beat that comes late adds no more than one that comes in
time does, give or take. So a wait is never taken for long because a virtual machine was paused.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from typing import Final

# Beats come ten times a second; a supervisor that has much to do may take a little longer.
MOST_NS_PER_BEAT: Final = 250_000_000
_REMEMBERED_BEATS: Final = 16_384


class SoakClock:
    """Maps monotonic time to soak time. Before the first beat both run alike."""

    def __init__(self) -> None:
        self._monotonic: deque[int] = deque(maxlen=_REMEMBERED_BEATS)
        self._soaked: deque[int] = deque(maxlen=_REMEMBERED_BEATS)

    def beat(self, now_ns: int) -> None:
        """Go on to `now_ns`, by no more than a beat is worth."""
        if not self._monotonic:
            self._monotonic.append(now_ns)
            self._soaked.append(0)
            return
        step = min(max(now_ns - self._monotonic[-1], 0), MOST_NS_PER_BEAT)
        self._monotonic.append(now_ns)
        self._soaked.append(self._soaked[-1] + step)

    def between(self, start_ns: int, end_ns: int) -> int:
        """Return how much soak time has passed between two moments; 0 where the first is later."""
        return max(self._at(end_ns) - self._at(start_ns), 0)

    def _at(self, moment_ns: int) -> int:
        """Return the soak time of a moment. Within a beat that was cut short it runs slower."""
        if not self._monotonic:
            return moment_ns
        after = bisect_right(self._monotonic, moment_ns)
        if after == 0:
            return self._soaked[0] - (self._monotonic[0] - moment_ns)
        since, soaked = self._monotonic[after - 1], self._soaked[after - 1]
        if after == len(self._monotonic):
            return soaked + min(moment_ns - since, MOST_NS_PER_BEAT)
        span = self._monotonic[after] - since
        worth = self._soaked[after] - soaked
        return soaked + (moment_ns - since) * worth // span
