# SPDX-License-Identifier: GPL-2.0-only
"""The collector: reads the ledger at each scrape, and exports all readable parts of a damaged one."""

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
    """Turns a ledger into metric families. Threads may share it."""

    def __init__(
        self, open_reader: Callable[[], LedgerReader], clock_ns: Callable[[], int] = time.time_ns
    ) -> None:
        """`open_reader` is called at each scrape and may raise an error of `UNREADABLE`.

        `clock_ns` is the wall clock, in nanoseconds since the epoch.
        """
        self._open_reader = open_reader
        self._clock_ns = clock_ns
        # One scrape at a time, so that no reader is closed while another scrape uses it.
        self._lock = threading.Lock()
        self._errors: dict[str, str] = {}

    def collect(self) -> list[Metric]:
        """Return all readable families; `up` is 0 if a group is missing."""
        with self._lock:
            families, errors = self._read()
            self._log_changes(errors)
        if not any(family.name == "dax_soak_run_active" for family in families):
            # An unreadable run must not look active.
            families.append(single("run_active", 0))
        return [info("build_info", [(__version__, None)]), single("up", int(not errors)), *families]

    def _read(self) -> tuple[list[Metric], dict[str, str]]:
        try:
            view = LedgerView(self._open_reader(), self._clock_ns())
        except UNREADABLE as error:
            return [], {_OPENING: _describe(error)}
        families: list[Metric] = []
        errors: dict[str, str] = {}
        for subject, group in GROUPS.items():
            try:
                families += list(group(view))
            except UNREADABLE as error:
                errors[subject] = _describe(error)
        return families, errors

    def _log_changes(self, errors: dict[str, str]) -> None:
        """Log new errors only: a damaged ledger must not fill the log at every scrape."""
        for subject, error in errors.items():
            if self._errors.get(subject) != error:
                _LOG.warning("cannot read", subject=subject, error=error)
        if self._errors and not errors:
            _LOG.info("the ledger is readable again")
        self._errors = errors


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
