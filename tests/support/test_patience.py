# SPDX-License-Identifier: GPL-2.0-only
"""Waiting on a condition: as long as the machine moves, and no longer."""

from __future__ import annotations

import time
from itertools import count

import pytest

from tests.support.patience import LateError, Patience, Signs

# Of a machine on which nothing moves, and long enough for one look at it.
SHORT = 2.5


def beating() -> Patience:
    beats = count()
    return Patience(lambda: Signs(next(beats)), poll_seconds=0.01, still_seconds=SHORT)


def test_wait_continues_while_the_machine_moves() -> None:
    began = time.monotonic()
    beating().wait_until("the end", lambda: time.monotonic() - began > 2 * SHORT)


def test_wait_fails_on_a_stopped_machine() -> None:
    patience = Patience(lambda: Signs(7, ("line",)), poll_seconds=0.01, still_seconds=SHORT)
    with pytest.raises(LateError, match=r"not seen: the end: nothing has moved for 2\.5 s"):
        patience.wait_until("the end", lambda: False)


def test_any_change_counts_as_movement() -> None:
    """While a machine boots, its supervisor has no heartbeat yet."""
    lines = count()
    patience = Patience(lambda: Signs(0, (next(lines),)), poll_seconds=0.01, still_seconds=SHORT)
    began = time.monotonic()
    patience.wait_until("the end", lambda: time.monotonic() - began > 2 * SHORT)


def test_heartbeats_bound_the_wait() -> None:
    """A slow machine has as many as a quick one before it is late."""
    beats = count(step=10)
    patience = Patience(lambda: Signs(next(beats)), poll_seconds=0.01, most_beats=15)
    with pytest.raises(LateError, match="the supervisor has beaten 15 times since"):
        patience.wait_until("the end", lambda: False)


def test_trouble_ends_an_unfinished_wait() -> None:
    seen: list[str] = []

    def trouble() -> str:
        seen.append("looked")
        return "the lab has ended"

    patience = Patience(Signs, trouble, poll_seconds=0.01)
    with pytest.raises(LateError, match="not seen: the end: the lab has ended"):
        patience.wait_until("the end", lambda: False)
    # What it was waited for may have come with its end.
    patience.wait_until("the end", lambda: len(seen) > 1)
