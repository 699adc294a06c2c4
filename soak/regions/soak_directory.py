"""The directory of a region's files: made by the soak, marked, locked, and taken away again.

A directory that exists and lacks the mark is somebody else's, and is not touched.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from soak.errors import InUseError, UsageError
from soak.helper import HelperError, in_helper

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

MARK: Final = ".dax-soak"
FORMAT: Final = 1
_MOST_MARK: Final = 4096
_OTHERS_WRITE: Final = 0o022
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_SECONDS: Final = 60.0


@dataclass(frozen=True)
class SoakDirectory:
    """A directory that is this run's alone for as long as it, or a worker of it, lives."""

    path: Path
    lock: int = field(compare=False, repr=False)

    @classmethod
    def claim(cls, path: Path, run_id: str) -> SoakDirectory:
        """Make the directory, or take over one that a run left behind; it is empty then.

        Raises:
            UsageError: it is not the soak's, another soak uses it, or what is left in it cannot be
                removed.
            OSError: it cannot be made.
        """
        check_unclaimed(path)
        if not path.exists():
            _make(path, run_id)
        # Workers inherit the open file, and with it the lock: one that hangs for good keeps it.
        lock = os.open(path / MARK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InUseError(
                    f"The directory {path} is in use by another soak: end that first, or give the "
                    f"region another name."
                ) from None
            left = _clear(path, ())
            if left:
                raise UsageError(
                    f"The directory {path} holds what an earlier soak had to leave behind and what "
                    f"still cannot be removed ({', '.join(left)}): reboot, or give the region "
                    f"another name."
                )
            os.ftruncate(lock, 0)
            os.pwrite(lock, _mark(run_id), 0)
            return cls(path, lock)
        except BaseException:
            os.close(lock)
            raise

    def remove(self, spared: Collection[Path] = ()) -> list[str]:
        """Remove everything, and give the lock back; return what had to be left, of which there is none.

        `spared` are files that nobody may truncate or unlink any more. Where any is left, the
        directory stays with its mark, so that a later run can take it away.
        """
        left = _clear(self.path, spared)
        if not left:
            # Under a name that nobody looks at, so that no moment has a directory without its mark.
            gone = self.path.with_name(f".{self.path.name}.{os.getpid()}")
            try:
                self.path.rename(gone)
                (gone / MARK).unlink()
                gone.rmdir()
            except OSError as error:
                left = [f"{self.path}: {error.strerror}"]
        os.close(self.lock)
        return left


def check_unclaimed(path: Path) -> None:
    """Refuse a directory that exists and that no soak made; nothing is changed.

    Raises:
        UsageError: says so, and what to do.
    """
    if not os.path.lexists(path):
        return
    content = b""
    with contextlib.suppress(OSError):
        # Neither the directory nor its mark may be a link to somewhere else.
        directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if _is_own(directory):
                mark = os.open(MARK, _READ, dir_fd=directory)
                with os.fdopen(mark, "rb") as file:
                    content = file.read(_MOST_MARK) if _is_own(mark) else b""
        finally:
            os.close(directory)
    if not _is_mark(content):
        raise UsageError(
            f"{path} exists and was not made by dax-soak (it has no {MARK} that this user alone may "
            f"write), so it is not touched: move it away, or give the region another name."
        )


def _make(path: Path, run_id: str) -> None:
    """Make the directory with its mark in one step: a crash leaves no directory without one."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.mkdir(mode=0o700)
    try:
        mark = os.open(new / MARK, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(mark, _mark(run_id))
            os.fsync(mark)
        finally:
            os.close(mark)
        new.rename(path)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise


def _is_own(descriptor: int) -> bool:
    """Say whether a file or directory is this user's, and no other's to write to: a mark is an order."""
    status = os.fstat(descriptor)
    return status.st_uid == os.geteuid() and not status.st_mode & _OTHERS_WRITE


def _mark(run_id: str) -> bytes:
    return json.dumps({"dax-soak": FORMAT, "run_id": run_id}).encode() + b"\n"


def _is_mark(content: bytes) -> bool:
    try:
        told = json.loads(content)
    except ValueError:
        return False
    return isinstance(told, dict) and told.get("dax-soak") == FORMAT


def _clear(path: Path, spared: Collection[Path]) -> list[str]:
    """Unlink the files and return what is left. Unlinking a pinned file can hang, so a helper does it."""
    try:
        in_helper(lambda: _unlink_all(path, {place.name for place in spared}), _SECONDS)
    except HelperError as error:
        return [f"{path}: {error}"]
    return sorted(entry.name for entry in path.iterdir() if entry.name != MARK)


def _unlink_all(path: Path, spared: Collection[str]) -> None:
    for entry in path.iterdir():
        if entry.name not in {MARK, *spared}:
            entry.unlink()
