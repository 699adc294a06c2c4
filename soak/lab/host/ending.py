# SPDX-License-Identifier: GPL-2.0-only
"""Why a run of the lab is to end before its guest ends by itself."""

from __future__ import annotations

import asyncio


class Ending:
    """Counts the requests to end a run: the first ends it in order, the second at once."""

    def __init__(self) -> None:
        self._requests = 0
        self.interrupted = asyncio.Event()
        # The soak has covered all that it promised, and was sent a stop.
        self.covered = False
        # The host has no use for the guest any more, and does not judge its end.
        self.abandoned = False

    def request(self) -> bool:
        """Take one more request in; return whether it is the first."""
        self._requests += 1
        self.interrupted.set()
        return self._requests == 1

    @property
    def requested(self) -> bool:
        return self._requests > 0

    @property
    def at_once(self) -> bool:
        return self.abandoned or self._requests > 1
