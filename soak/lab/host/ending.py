# SPDX-License-Identifier: GPL-2.0-only
"""Requests to end a lab run early."""

from __future__ import annotations

import asyncio


class Ending:
    """Counts the requests to end a run: the first ends it in order, the second at once."""

    def __init__(self) -> None:
        self._requests = 0
        self.interrupted = asyncio.Event()
        # Everything promised is covered, and the guest was sent a stop.
        self.covered = False
        # The host gave up on the guest, and does not judge its end.
        self.abandoned = False

    def request(self) -> bool:
        """Count a request; return whether it is the first."""
        self._requests += 1
        self.interrupted.set()
        return self._requests == 1

    @property
    def requested(self) -> bool:
        return self._requests > 0

    @property
    def at_once(self) -> bool:
        return self.abandoned or self._requests > 1
