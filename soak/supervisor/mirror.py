# SPDX-License-Identifier: GPL-2.0-only
"""Places a guest's ledger in the memory shared with the host, or mirrors it there if that is slow.

Some hypervisors map such memory uncached, so that every store is a bus cycle. `place_ledger` times
them; if they are slow, the ledger is on tmpfs and is copied ten times a second.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from soak.ledger.schema import CANARY, SUPERVISOR, WORKER
from soak.ledger.writer import Ledger
from soak.supervisor.hooks.base import Hook

if TYPE_CHECKING:
    from pathlib import Path

_STORES: Final = 20_000
# Interpreted stores differ by a few per cent between kinds of cached memory.
_SLOW_RATIO: Final = 3.0


class Mirror(Hook):
    """Copies the guest's blocks to shared memory, and leaves the host's own block alone."""

    def __init__(self, near: Ledger, far: Ledger) -> None:
        self._near = near
        self._far = far

    def beat(self) -> None:
        self._far.copy_from(self._near, {SUPERVISOR, WORKER, CANARY})

    def ended(self) -> None:
        self.beat()


def place_ledger(shared: Path, local: Path, *, always: bool) -> tuple[Ledger, Mirror | None]:
    """Open the shared ledger; if its memory is slow, or `always`, mirror one at `local` to it."""
    far = Ledger.open(shared)
    near_cost, far_cost = _cost(memoryview(bytearray(64)).cast("Q")), _cost(_shared_word(far))
    if not always and far_cost < near_cost * _SLOW_RATIO:
        return far, None
    near = Ledger.create(local, far.layout)
    # A resumed run continues from the last copy.
    near.copy_from(far)
    return near, Mirror(near, far)


def _shared_word(ledger: Ledger) -> memoryview[int]:
    return ledger.block(SUPERVISOR).view("pid")


def _cost(words: memoryview[int]) -> int:
    """Time `_STORES` stores, in nanoseconds: the best of three rounds."""
    best, value = 0, words[0]
    for _ in range(3):
        start = time.monotonic_ns()
        for _ in range(_STORES):
            # Store the same value: the host may read the word, and a resumed run needs it.
            words[0] = value
        elapsed = time.monotonic_ns() - start
        best = min(best or elapsed, elapsed)
    return best
