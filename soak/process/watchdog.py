# SPDX-License-Identifier: GPL-2.0-only
"""Feeds the service manager's watchdog, and only while everything that must move does."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from soak.process.notify import Notifier

# Shares of the time after which the service manager ends a service that was not fed. It is fed
# at half of that, as sd_watchdog_enabled(3) recommends; who has not moved by then is named a little
# later, because what moves in steps (samples come every ten seconds) may be about to.
_FEED: Final = 0.5
_COMPLAIN: Final = 0.75
_LOG: Final[structlog.typing.FilteringBoundLogger] = structlog.get_logger()


class Watchdog:
    """Asked at each beat; feeds when, since it last did, every one of its sources has moved.

    A source is a name and a call that returns a number which grows while it moves. The call must
    not block. It is made at every beat, so it may also drive what it counts.
    """

    def __init__(
        self,
        notifier: Notifier,
        seconds: float | None,
        sources: Mapping[str, Callable[[], int]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the seconds after which the service manager loses its patience; None: nobody watches.

        No source may rest for longer than half of them.
        """
        self._notifier = notifier
        self._seconds = seconds
        self._sources = sources
        self._clock = clock
        self._fed = clock()
        self._marks = {name: read() for name, read in sources.items()}
        self._resting: tuple[str, ...] = ()
        self._status = ""

    @property
    def resting(self) -> tuple[str, ...]:
        """The sources for which a feed is overdue; empty while all is well."""
        return self._resting

    def say(self, status: str) -> None:
        """Tell the service manager how the service is; while something rests, that is told."""
        self._status = status
        if not self._resting:
            self._notifier.status(status)

    def beat(self) -> None:
        """Look at every source, and feed when it is time and all have moved."""
        if self._seconds is None:
            return
        values = {name: read() for name, read in self._sources.items()}
        since = self._clock() - self._fed
        if since < self._seconds * _FEED:
            return
        resting = tuple(name for name, value in values.items() if value <= self._marks[name])
        if not resting:
            self._feed(values)
        elif since >= self._seconds * _COMPLAIN and resting != self._resting:
            self._resting = resting
            text = f"{' and '.join(resting)} did not move for {since:.0f} s: not feeding the watchdog"
            _LOG.error(text, resting=resting)
            self._notifier.status(text)

    def _feed(self, values: Mapping[str, int]) -> None:
        if not self._notifier.feed():
            return  # the next beat tries again
        self._fed = self._clock()
        self._marks = dict(values)
        if self._resting:
            _LOG.info("the watchdog is fed again", rested=self._resting)
            self._resting = ()
            self._notifier.status(self._status)
