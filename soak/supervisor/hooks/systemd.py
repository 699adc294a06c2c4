# SPDX-License-Identifier: GPL-2.0-only
"""A soak as a service: what the service manager is told, and when its watchdog is fed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from soak.process.notify import Notifier, watchdog_seconds
from soak.process.watchdog import Watchdog
from soak.supervisor.hooks.base import Hook

if TYPE_CHECKING:
    from collections.abc import Callable

    from soak.journal.writer import FileJournal
    from soak.ledger.writer import BlockWriter
    from soak.process.http_probe import ExporterProbe


class Service(Hook):
    """Tells when the soak is up and when it ends; feeds the watchdog while everything moves."""

    def __init__(self, block: BlockWriter, journal: FileJournal, exporter: ExporterProbe | None) -> None:
        """Take the supervisor's block, and whom to ask for the exporter where that is watched.

        Raises:
            UsageError: the service manager's address or its patience is none.
        """
        self._notifier = Notifier.from_environment()
        sources: dict[str, Callable[[], int]] = {
            "the supervisor": lambda: block.get("heartbeats"),
            # Samples are taken all the time. On a full disk they wait in memory, which moves as well.
            "the journal": lambda: journal.seq,
        }
        if exporter is not None:
            sources["the exporter"] = exporter.poll
        self._watchdog = Watchdog(self._notifier, watchdog_seconds(), sources)

    def started(self) -> None:
        self._notifier.ready("Soaking")

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
