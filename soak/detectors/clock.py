# SPDX-License-Identifier: GPL-2.0-only
"""Soak time: a clock that stops while the machine is stopped.

Soak time advances with the supervisor's heartbeats, and a late heartbeat advances it by a bounded step.
A paused virtual machine therefore never makes a wait look long.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from typing import Final

# The supervisor beats ten times a second, less often under load.
MOST_NS_PER_BEAT: Final = 250_000_000
_REMEMBERED_BEATS: Final = 16_384


class SoakClock:
    """Maps monotonic time to soak time; both advance alike before the first beat."""

    def __init__(self) -> None:
        self._monotonic: deque[int] = deque(maxlen=_REMEMBERED_BEATS)
        self._soaked: deque[int] = deque(maxlen=_REMEMBERED_BEATS)

    def beat(self, now_ns: int) -> None:
        """Advance to `now_ns`, by at most `MOST_NS_PER_BEAT`."""
        if not self._monotonic:
            self._monotonic.append(now_ns)
            self._soaked.append(0)
            return
        step = min(max(now_ns - self._monotonic[-1], 0), MOST_NS_PER_BEAT)
        self._monotonic.append(now_ns)
        self._soaked.append(self._soaked[-1] + step)

    def between(self, start_ns: int, end_ns: int) -> int:
        """Return the soak time between two moments; 0 if the first is later."""
        return max(self._at(end_ns) - self._at(start_ns), 0)

    def _at(self, moment_ns: int) -> int:
        """Return the soak time of a moment; within a shortened beat, interpolate."""
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
