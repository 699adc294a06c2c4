# SPDX-License-Identifier: GPL-2.0-only
"""Reports a soak's state to the service manager, and feeds its watchdog."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Self

from soak.process.notify import Notifier, watchdog_seconds
from soak.process.watchdog import Watchdog
from soak.supervisor.hooks.base import Hook

if TYPE_CHECKING:
    from collections.abc import Callable

    from soak.journal.writer import FileJournal
    from soak.ledger.writer import BlockWriter
    from soak.process.http_probe import ExporterProbe

_STATUS: Final = "Soaking"


class Service(Hook):
    """Reports the start and the end of the soak; feeds the watchdog while all sources progress."""

    def __init__(self, block: BlockWriter, journal: FileJournal, exporter: ExporterProbe | None) -> None:
        """Watch the supervisor's block, the journal, and the exporter if a probe is given.

        Raises:
            UsageError: NOTIFY_SOCKET or the watchdog's interval is invalid.
        """
        self._notifier = Notifier.from_environment()
        sources: dict[str, Callable[[], int]] = {
            "the supervisor": lambda: block.get("heartbeats"),
            # Periodic samples advance it; on a full disk, where they wait in memory, too.
            "the journal": lambda: journal.seq,
        }
        if exporter is not None:
            sources["the exporter"] = exporter.poll
        self._watchdog = Watchdog(self._notifier, watchdog_seconds(), sources, status=_STATUS)

    def started(self) -> None:
        self._notifier.ready(_STATUS)

    def beat(self) -> None:
        self._watchdog.beat()

    def ended(self) -> None:
        self._notifier.stopping("The soak has ended")

    def close(self) -> None:
        self._notifier.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
