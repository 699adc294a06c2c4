# SPDX-License-Identifier: GPL-2.0-only
"""The collector: reads the ledger at each scrape, and goes on when part of it cannot be read."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Final

import structlog
from prometheus_client.registry import Collector

from exporter.families import info, single
from exporter.groups import GROUPS
from soak import __version__
from soak.ledger.layout import UNREADABLE
from soak.ledger.view import LedgerView

if TYPE_CHECKING:
    from collections.abc import Callable

    from prometheus_client import Metric

    from soak.ledger.reader import LedgerReader

_OPENING: Final = "the ledger"
_LOG: Final[structlog.typing.FilteringBoundLogger] = structlog.get_logger()


class LedgerCollector(Collector):
    """Turns a ledger into metric families. May be used by several threads."""

    def __init__(
        self, open_reader: Callable[[], LedgerReader], clock_ns: Callable[[], int] = time.time_ns
    ) -> None:
        """Take `open_reader`, which is asked at each scrape and may raise an error of `UNREADABLE`.

        `clock_ns` is the wall clock, in nanoseconds since the epoch.
        """
        self._open_reader = open_reader
        self._clock_ns = clock_ns
        # One scrape at a time, so that no reader is closed while another scrape uses it.
        self._lock = threading.Lock()
        self._complaints: dict[str, str] = {}

    def collect(self) -> list[Metric]:
        """Return all families that can be read; `up` says whether those are all there are."""
        with self._lock:
            families, complaints = self._read()
            self._log_changes(complaints)
        if not any(family.name == "dax_soak_run_active" for family in families):
            # A run about which nothing is known must not look like one that goes on.
            families.append(single("run_active", 0))
        return [info("build_info", [(__version__, None)]), single("up", int(not complaints)), *families]

    def _read(self) -> tuple[list[Metric], dict[str, str]]:
        try:
            view = LedgerView(self._open_reader(), self._clock_ns())
        except UNREADABLE as error:
            return [], {_OPENING: _describe(error)}
        families: list[Metric] = []
        complaints: dict[str, str] = {}
        for subject, group in GROUPS.items():
            try:
                families += list(group(view))
            except UNREADABLE as error:
                complaints[subject] = _describe(error)
        return families, complaints

    def _log_changes(self, complaints: dict[str, str]) -> None:
        """Log what is new, so that a broken ledger does not fill the log at every scrape."""
        for subject, complaint in complaints.items():
            if self._complaints.get(subject) != complaint:
                _LOG.warning("cannot read", subject=subject, complaint=complaint)
        if self._complaints and not complaints:
            _LOG.info("the ledger can be read now")
        self._complaints = complaints


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
