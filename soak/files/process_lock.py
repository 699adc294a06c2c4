# SPDX-License-Identifier: GPL-2.0-only
"""A lock that one process has until it ends, whatever it started meanwhile."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from typing import Self

_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# Whoever may read a file may lock it.
_MODE: Final = 0o600
_POLL_SECONDS: Final = 0.02
_NAME_SECONDS: Final = 1.0
_MOST_NAME: Final = 4096


class LockedError(Exception):
    """Another process has the lock; the text names it as far as it can be said."""


class ProcessLock:
    """An exclusive flock on a file of its own. Processes forked later do not have it.

    A lock that a helper inherited would outlive the soak for as long as the helper hangs in the kernel.
    """

    def __init__(self, path: Path, run_id: str) -> None:
        """Take the lock and leave the name of the run in it.

        Raises:
            LockedError: another process has it.
            OSError: the file cannot be opened, or is somebody else's.
        """
        self._descriptor = open_lock(path)
        deadline = time.monotonic() + _NAME_SECONDS
        while not locked(self._descriptor):
            who = _owner(self._descriptor)
            if who or time.monotonic() > deadline:
                self.close()
                raise LockedError(who or "it did not say which")
            # Whoever took it has not written its name yet; or a child of one that was killed has only
            # just been forked, and is about to close what it inherited.
            time.sleep(_POLL_SECONDS)
        _write_name(self._descriptor, json.dumps({"pid": os.getpid(), "run_id": run_id}))
        reference = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _close(reference))

    @property
    def held(self) -> bool:
        return self._descriptor >= 0

    def close(self) -> None:
        """Close the file. The lock ends with the last descriptor: a child that closes keeps nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def release(self) -> None:
        """Give the lock back."""
        if self.held:
            _write_name(self._descriptor, "")
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def open_lock(path: Path) -> int:
    """Open the file of a lock, which nobody but its owner may: to read it is enough to lock it.

    Raises:
        OSError: it cannot be opened.
        PermissionError: it is no file, or another user's.
    """
    descriptor = os.open(path, _FLAGS, _MODE)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "it is no file, or belongs to another user", str(path))
        if stat.S_IMODE(status.st_mode) != _MODE:
            os.fchmod(descriptor, _MODE)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def locked(descriptor: int) -> bool:
    """Take the lock of an open file, unless somebody else has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _owner(descriptor: int) -> str:
    """Say who wrote its name into a lock that is held, if that one is there.

    What a soak that was killed left is not the name of the one that has the lock now.
    """
    try:
        name = json.loads(os.pread(descriptor, _MOST_NAME, 0))
        who = f"run {name['run_id']}, process {int(name['pid'])}"
        return who if Path(f"/proc/{int(name['pid'])}").exists() else ""
    except (ValueError, TypeError, KeyError):
        return ""


def _write_name(descriptor: int, text: str) -> None:
    """Leave a name for those who find the lock held; on a full disk they do without."""
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)


def _close(reference: weakref.ref[ProcessLock]) -> None:
    lock = reference()
    if lock is not None:
        lock.close()
