# SPDX-License-Identifier: GPL-2.0-only
"""Comparing the guest's clock with its host's, for as long as the soak's heart beats.

A guest's kernel that calibrates its clock while the host is loaded may find a wrong rate (seen once in 28
boots: 2.7 times too fast), and then all durations that it measures are wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

_NANOSECONDS: Final = 1_000_000_000
# Seconds of the host to compare over, and by which factor the guest's may differ: a short span shows
# what is far off, before a soak that runs too fast is over.
SPANS: Final = ((4.0, 1.5), (30.0, 1.1))
# One span may have a pause of the virtual machine in it, during which its clock stands still.
_IN_A_ROW: Final = 3


class _Beat(NamedTuple):
    """A heartbeat: `offset` is the guest's clock less the host's, too small by at most `late`."""

    host: float
    offset: float
    late: float


@dataclass
class _Span:
    """Spans of one length, one behind the other."""

    seconds: float
    factor: float
    first: _Beat | None = None
    # Since when, and how many, spans have been wrong.
    row: _Beat | None = None
    wrong: int = 0

    def see(self, beat: _Beat) -> bool:
        """Say whether the last spans were all wrong, whatever the beats' times are uncertain by."""
        if self.first is None:
            self.first = self.row = beat
        passed = beat.host - self.first.host
        if passed < self.seconds:
            return False
        first, self.first = self.first, beat
        least = 1 + (beat.offset - first.offset - first.late) / passed
        most = 1 + (beat.offset + beat.late - first.offset) / passed
        is_wrong = least > self.factor or most < 1 / self.factor
        if not is_wrong:
            self.row, self.wrong = beat, 0
            return False
        self.wrong += 1
        return self.wrong >= _IN_A_ROW

    @property
    def ratio(self) -> float:
        """The guest's seconds in one of the host's, over all spans of this row."""
        if self.row is None or self.first is None:
            return 1.0
        middle = (self.first.late - self.row.late) / 2
        passed = self.first.host - self.row.host
        return 1 + (self.first.offset - self.row.offset + middle) / passed


class GuestClock:
    """Sees the heartbeats of one boot, each of which has the guest's time."""

    def __init__(self, spans: Iterable[tuple[float, float]] = SPANS) -> None:
        self._spans = [_Span(seconds, factor) for seconds, factor in spans]
        self._looked: float | None = None
        self._beats = 0

    def look(self, beats: int, guest_ns: int, host_seconds: float) -> float | None:
        """Take in how often the heart has beaten, and the guest's time at the last beat.

        Returns how many times as fast as the host's the guest's clock runs, where that is wrong.
        """
        since, self._looked = self._looked, host_seconds
        moved, self._beats = beats != self._beats, beats
        if since is None or not moved or not beats:
            return None
        beat = _Beat(host_seconds, guest_ns / _NANOSECONDS - host_seconds, host_seconds - since)
        # Each length has its turn, whatever the other says.
        wrong = [span for span in self._spans if span.see(beat)]
        return wrong[0].ratio if wrong else None
