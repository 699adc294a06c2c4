# SPDX-License-Identifier: GPL-2.0-only
"""Where a guest keeps its ledger: in the memory that the host shares, unless that is slow.

Some hypervisors make such memory uncached, and then every store is a bus cycle. It is measured at the
start; where it is so, the ledger lives on tmpfs and is copied ten times a second.
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
    """Copies what the guest writes; the host's own block stays as the host wrote it."""

    def __init__(self, near: Ledger, far: Ledger) -> None:
        self._near = near
        self._far = far

    def beat(self) -> None:
        self._far.copy_from(self._near, {SUPERVISOR, WORKER, CANARY})

    def ended(self) -> None:
        self.beat()


def place_ledger(shared: Path, local: Path, *, always: bool) -> tuple[Ledger, Mirror | None]:
    """Open the shared ledger; where its memory is slow, or `always`, put one at `local` before it."""
    far = Ledger.open(shared)
    near_cost, far_cost = _cost(memoryview(bytearray(64)).cast("Q")), _cost(_shared_word(far))
    if not always and far_cost < near_cost * _SLOW_RATIO:
        return far, None
    near = Ledger.create(local, far.layout)
    # A run that is resumed goes on from what was copied last.
    near.copy_from(far)
    return near, Mirror(near, far)


def _shared_word(ledger: Ledger) -> memoryview[int]:
    return ledger.block(SUPERVISOR).view("pid")


def _cost(words: memoryview[int]) -> int:
    """Return how long a number of stores take, in nanoseconds: the best of three."""
    best, value = 0, words[0]
    for _ in range(3):
        start = time.monotonic_ns()
        for _ in range(_STORES):
            # The host may read the word, and a run that is resumed has it from before.
            words[0] = value
        taken = time.monotonic_ns() - start
        best = min(best or taken, taken)
    return best
