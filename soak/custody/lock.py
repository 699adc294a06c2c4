"""Who may change this machine: one soak at a time, and no helper that a dead one left behind."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Final

from soak.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOCK: Final = "custody.lock"
_BUSY: Final = "custody.busy"
_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
_POLL_SECONDS: Final = 0.02
_NAME_SECONDS: Final = 1.0


class MachineLock:
    """An exclusive flock on a file beside the record. Processes forked later do not have it.

    A lock that a helper inherited would outlive the soak for as long as the helper hangs in the kernel.
    """

    def __init__(self, state: Path, run_id: str) -> None:
        """Take the lock.

        Raises:
            UsageError: another soak has it; the sentence names it.
            OSError: the file cannot be opened.
        """
        path = state / _LOCK
        self._descriptor = os.open(path, _FLAGS, 0o644)
        deadline = time.monotonic() + _NAME_SECONDS
        while not _locked(self._descriptor):
            who = _owner(self._descriptor)
            if who or time.monotonic() > deadline:
                self.close()
                raise UsageError(
                    f"Another soak has this machine ({who or 'it did not say which'}, by {path}): only "
                    f"one can change it at a time. End that one with 'dax-soak stop', or wait for it."
                )
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
        descriptor = os.open(self._path, _FLAGS, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            os.set_inheritable(descriptor, True)
            yield descriptor
        finally:
            os.close(descriptor)

    def wait(self, seconds: float) -> bool:
        """Wait until no helper of an earlier soak is left; False when one still is."""
        descriptor = os.open(self._path, _FLAGS, 0o600)
        deadline = time.monotonic() + seconds
        try:
            while not _locked(descriptor):
                if time.monotonic() > deadline:
                    return False
                time.sleep(_POLL_SECONDS)
            return True
        finally:
            os.close(descriptor)


def _locked(descriptor: int) -> bool:
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
        name = json.loads(os.pread(descriptor, 4096, 0))
        who = f"run {name['run_id']}, process {int(name['pid'])}"
        return who if Path(f"/proc/{int(name['pid'])}").exists() else ""
    except (ValueError, TypeError, KeyError):
        return ""


def _write_name(descriptor: int, text: str) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)


def _close(reference: weakref.ref[MachineLock]) -> None:
    lock = reference()
    if lock is not None:
        lock.close()
