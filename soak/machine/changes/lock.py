# SPDX-License-Identifier: GPL-2.0-only
"""Who may change this machine: one soak at a time, and no helper that a dead one left behind."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from typing import TYPE_CHECKING, Final

from soak.errors import UsageError
from soak.files.process_lock import LockedError, ProcessLock, locked, open_lock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_LOCK: Final = "changes.lock"
_BUSY: Final = "changes.busy"
_POLL_SECONDS: Final = 0.02


def lock_machine(state: Path, run_id: str) -> ProcessLock:
    """Take the lock of this machine, on a file beside the record.

    Raises:
        UsageError: another soak has it; the sentence names it.
        OSError: the file cannot be opened.
    """
    path = state / _LOCK
    try:
        return ProcessLock(path, run_id)
    except LockedError as error:
        raise UsageError(
            f"Another soak has this machine ({error}, by {path}): only one can change it at a time. "
            f"End that one with 'dax-soak stop', or wait for it."
        ) from None


class Busy:
    """A lock that helpers share while they change something, in order that nobody works beside them.

    A helper of a soak that was killed may still be in a system call. Unlike the machine's lock this one
    is inherited, by helpers and by the programs that they start: it is free when all of them are gone.
    """

    def __init__(self, state: Path) -> None:
        self._path = state / _BUSY

    @contextlib.contextmanager
    def shared(self) -> Iterator[int]:
        """Hold the lock by the descriptor given; a child forked meanwhile keeps it until it ends."""
        descriptor = open_lock(self._path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            os.set_inheritable(descriptor, True)
            yield descriptor
        finally:
            os.close(descriptor)

    def wait(self, seconds: float) -> bool:
        """Wait until no helper of an earlier soak is left; False when one still is."""
        descriptor = open_lock(self._path)
        deadline = time.monotonic() + seconds
        try:
            while not locked(descriptor):
                if time.monotonic() > deadline:
                    return False
                time.sleep(_POLL_SECONDS)
            return True
        finally:
            os.close(descriptor)
