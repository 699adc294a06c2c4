# SPDX-License-Identifier: GPL-2.0-only
"""A file lock that one process holds and its children do not inherit."""

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
# Read permission suffices to lock a file.
_MODE: Final = 0o600
_POLL_SECONDS: Final = 0.02
_NAME_SECONDS: Final = 1.0
_MOST_NAME: Final = 4096


class LockedError(Exception):
    """Another process holds the lock; the message names it if known."""


class ProcessLock:
    """An exclusive flock on a dedicated file, closed in forked children.

    A helper that hangs in the kernel would otherwise hold an inherited lock after the soak has ended.
    """

    def __init__(self, path: Path, run_id: str) -> None:
        """Take the lock and write process id and run id to its file.

        Raises:
            LockedError: another process holds it.
            OSError: the file cannot be opened, or another user owns it.
        """
        self._descriptor = open_lock(path)
        deadline = time.monotonic() + _NAME_SECONDS
        while not locked(self._descriptor):
            owner = _owner(self._descriptor)
            if owner or time.monotonic() > deadline:
                self.close()
                raise LockedError(owner or "unknown process")
            # Either the new owner has not written its id yet, or a freshly forked child of a killed
            # owner has not closed the inherited descriptor yet.
            time.sleep(_POLL_SECONDS)
        _write_name(self._descriptor, json.dumps({"pid": os.getpid(), "run_id": run_id}))
        reference = weakref.ref(self)
        os.register_at_fork(after_in_child=lambda: _close(reference))

    @property
    def held(self) -> bool:
        return self._descriptor >= 0

    def close(self) -> None:
        """Close the descriptor; the kernel drops the lock with the last one."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def release(self) -> None:
        """Erase the owner and drop the lock."""
        if self.held:
            _write_name(self._descriptor, "")
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def open_lock(path: Path) -> int:
    """Open a lock file with mode 0600: anybody who may read it could lock it.

    Raises:
        OSError: it cannot be opened.
        PermissionError: it is not a regular file, or another user owns it.
    """
    descriptor = os.open(path, _FLAGS, _MODE)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise PermissionError(errno.EPERM, "not a regular file, or owned by another user", str(path))
        if stat.S_IMODE(status.st_mode) != _MODE:
            os.fchmod(descriptor, _MODE)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def locked(descriptor: int) -> bool:
    """Try to lock an open file; return whether that succeeded."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _owner(descriptor: int) -> str:
    """Return the owner in a lock file, or an empty string if that process has ended.

    A killed soak leaves its id in the file.
    """
    try:
        name = json.loads(os.pread(descriptor, _MOST_NAME, 0))
        owner = f"run {name['run_id']}, process {int(name['pid'])}"
        return owner if Path(f"/proc/{int(name['pid'])}").exists() else ""
    except (ValueError, TypeError, KeyError):
        return ""


def _write_name(descriptor: int, text: str) -> None:
    """Write the owner, for messages of other processes; a full disk is not an error."""
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, text.encode(), 0)


def _close(reference: weakref.ref[ProcessLock]) -> None:
    lock = reference()
    if lock is not None:
        lock.close()
