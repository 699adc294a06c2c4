# SPDX-License-Identifier: GPL-2.0-only
"""Kill a soak at calls of one change, one after the other, and put back what it had changed.

It is a program of its own, because a small process forks quickly: DIRECTORY KIND prints how often it
killed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

from soak.machine.changes import restore_only
from tests.machine.support import SETTINGS, Place, killed_at, perform

CHANGES: Final[dict[str, tuple[str, Any]]] = {
    "set": ("set", (SETTINGS[0], 2000)),
    "make": ("make", "scratch"),
}
# All calls would take long.
_STRIDE: Final = 29


def kill_each(place: Place, change: tuple[str, Any]) -> int:
    before, call, killed = place.snapshot(), 1, 0
    while killed_at(call, lambda: perform(place, [change])):
        restore_only(place.state, place.machine())
        assert place.snapshot() == before, f"killed at call {call}"
        killed, call = killed + 1, call + _STRIDE
    assert place.snapshot() == before
    return killed


if __name__ == "__main__":
    directory, kind = sys.argv[1:]
    sys.stdout.write(f"{kill_each(Place.make(Path(directory)), CHANGES[kind])}\n")
