# SPDX-License-Identifier: GPL-2.0-only
"""Locks that let one soak at a time change this machine, and detect helpers of a dead one."""

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
        UsageError: another soak holds it; the message names that soak.
        OSError: the file cannot be opened.
    """
    path = state / _LOCK
    try:
        return ProcessLock(path, run_id)
    except LockedError as error:
        raise UsageError(
            f"Another soak has this machine ({error}, by {path}): only one can change it at a time. "
            f"Stop it with 'dax-soak stop', or wait for it."
        ) from None


class Busy:
    """A lock that helpers share while they change something.

    A helper of a killed soak may still be in a system call. Unlike the machine's lock, helpers and the
    programs that they start inherit this one: it is free when all of them have ended.
    """

    def __init__(self, state: Path) -> None:
        self._path = state / _BUSY

    @contextlib.contextmanager
    def shared(self) -> Iterator[int]:
        """Hold the lock and yield its descriptor; a child forked meanwhile holds it until it ends."""
        descriptor = open_lock(self._path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            os.set_inheritable(descriptor, True)
            yield descriptor
        finally:
            os.close(descriptor)

    def wait(self, seconds: float) -> bool:
        """Wait until all helpers of an earlier soak have ended; False on timeout."""
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
