# SPDX-License-Identifier: GPL-2.0-only
"""Deciding from the signs that a guest gives whether it still lives."""

from __future__ import annotations

from enum import StrEnum

from soak.lab.host.timing import DEFAULT_TIMING, Timing


class Life(StrEnum):
    """What the signs say."""

    MOVES = "it moves"
    SILENT = "nothing comes from it"
    STUCK = "its supervisor has stopped"


class SignsOfLife:
    """Compares the signs of one beat with those of the beat before.

    A beat counts for as much as the machine had a processor for: a guest on a host with much else to do
    is slow, and not silent. A host that stood still makes no guest silent either, for it counted nothing.
    """

    def __init__(self, timing: Timing = DEFAULT_TIMING) -> None:
        self._timing = timing
        self._signs = (0, 0)
        self._silent = 0.0
        self._stuck = 0.0

    def look(self, alive: int, heartbeats: int, beat: float, *, ready: bool) -> Life:
        """Take how often the guest's first process and its supervisor have shown that they run."""
        before, self._signs = self._signs, (alive, heartbeats)
        self._silent = 0.0 if self._signs != before else self._silent + beat
        self._stuck = 0.0 if heartbeats != before[1] else self._stuck + beat
        if self._silent >= (self._timing.silent_beats if ready else self._timing.prepare_beats):
            self._silent = 0.0
            return Life.SILENT
        return Life.STUCK if self._stuck >= self._timing.stuck_beats else Life.MOVES
