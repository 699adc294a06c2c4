# SPDX-License-Identifier: GPL-2.0-only
"""Waiting on a condition for as long as the machine under test moves, however slow it is.

Hosts and guests use it, so it imports the standard library alone.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

# A machine of which nothing moves for so long hangs. The lab itself gives up on a silent guest sooner.
STILL_SECONDS: Final = 400.0
# Heartbeats are ten a second where nothing else runs and fewer on a slow machine, which so has longer.
MOST_BEATS: Final = 3000
_LOOK_SECONDS: Final = 1.0
_NEWS_SECONDS: Final = 20.0


class LateError(AssertionError):
    """Something was not seen in time; the text says what, and what was seen last."""


@dataclass(frozen=True)
class Signs:
    """What moves on a machine at work: the supervisor's heartbeats, and anything else that changes."""

    beats: int = 0
    others: tuple[object, ...] = ()


@dataclass(frozen=True)
class Patience:
    """How long to wait for a machine that moves, and what to do meanwhile.

    `trouble` says why there is no use in waiting any longer, or None. `news` is called now and then
    with what is waited for and for how many seconds it has been.
    """

    signs: Callable[[], Signs]
    trouble: Callable[[], str | None] = lambda: None
    news: Callable[[str, float], None] = lambda _what, _seconds: None
    poll_seconds: float = 0.1
    still_seconds: float = STILL_SECONDS
    most_beats: int = MOST_BEATS

    def wait_until(self, what: str, condition: Callable[[], bool]) -> None:
        """Return when the condition holds.

        Raises:
            LateError: it cannot hold any more, nothing has moved for `still_seconds`, or the
                supervisor has beaten `most_beats` times meanwhile.
        """
        began = moved = looked = told = time.monotonic()
        seen = self.signs()
        first_beat = seen.beats
        while not condition():
            trouble = self.trouble()
            if trouble is not None:
                if condition():
                    return
                raise LateError(f"not seen: {what}: {trouble}")
            now = time.monotonic()
            if now - told >= _NEWS_SECONDS:
                told = now
                self.news(what, now - began)
            if now - looked >= _LOOK_SECONDS:
                looked, found = now, self.signs()
                if found != seen:
                    moved, seen = now, found
                # Another run starts to count anew.
                first_beat = min(first_beat, found.beats)
                if now - moved > self.still_seconds:
                    raise LateError(f"not seen: {what}: nothing has moved for {self.still_seconds:g} s")
                if found.beats - first_beat > self.most_beats:
                    raise LateError(
                        f"not seen: {what}: the supervisor has beaten {self.most_beats} times since"
                    )
            time.sleep(self.poll_seconds)
