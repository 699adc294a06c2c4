# SPDX-License-Identifier: GPL-2.0-only
"""Feed the service manager's watchdog as long as every monitored component makes progress."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from soak.process.notify import Notifier

# Fractions of the watchdog timeout. sd_watchdog_enabled(3) recommends to feed at half of it. A source
# without progress is reported later, because some advance in steps (a sample every ten seconds).
_FEED: Final = 0.5
_COMPLAIN: Final = 0.75
_LOG: Final[structlog.typing.FilteringBoundLogger] = structlog.get_logger()


class Watchdog:
    """Feeds the watchdog when every source has advanced since the last feed.

    A source is a name and a function that returns a growing progress counter. Each `beat` calls it, so
    it must not block, and may also drive the work that it counts.
    """

    def __init__(
        self,
        notifier: Notifier,
        seconds: float | None,
        sources: Mapping[str, Callable[[], int]],
        *,
        status: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start with the current counters.

        The service manager shows `status` again when sources that rested go on.
        `seconds` is the watchdog timeout, None without a watchdog. Every source must advance at least
        once in half of it.
        """
        self._notifier = notifier
        self._seconds = seconds
        self._sources = sources
        self._clock = clock
        self._fed = clock()
        self._marks = {name: read() for name, read in sources.items()}
        self._resting: tuple[str, ...] = ()
        self._status = status

    @property
    def resting(self) -> tuple[str, ...]:
        """The sources without progress that hold back an overdue feed."""
        return self._resting

    def beat(self) -> None:
        """Read every source; feed the watchdog when it is time and all have advanced."""
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
            text = f"no progress of {' and '.join(resting)} for {since:.0f} s: not feeding the watchdog"
            _LOG.error(text, resting=resting)
            self._notifier.status(text)

    def _feed(self, values: Mapping[str, int]) -> None:
        if not self._notifier.feed():
            return  # the next beat tries again
        self._fed = self._clock()
        self._marks = dict(values)
        if self._resting:
            _LOG.info("feeding the watchdog again", rested=self._resting)
            self._resting = ()
            self._notifier.status(self._status)
