# SPDX-License-Identifier: GPL-2.0-only
"""The current file of a journal: appends whole lines, rotates, and keeps a reserve of disk space.

Only the journal's writer writes the file. A tool such as logrotate may rename it; the writer follows.
"""

from __future__ import annotations

import errno
import math
import os
import re
import time
from pathlib import Path
from typing import Final

from soak.files.regular import open_regular
from soak.journal.reading import rotated_files

ROTATE_BYTES: Final = 64 << 20
RESERVE_BYTES: Final = 1 << 20

_MODE: Final = 0o640
_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
_DIRECTORY_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_CHECK_SECONDS: Final = 1.0


class JournalFile:
    """Appends lines. After an error, appending the same line again continues where it was cut."""

    def __init__(self, path: Path, rotate_bytes: int) -> None:
        """Open or create the file.

        Raises:
            OSError: it cannot be opened.
        """
        self._path = path
        # Keep a descriptor: another directory may later take the name of the run's.
        self._directory = os.open(path.parent, _DIRECTORY_FLAGS)
        self._rotate_bytes = rotate_bytes
        self._file = -1
        self._identity = (0, 0)
        self._size = 0
        self._written = 0
        self._ended = True
        self._unsynced = False
        self._checked = time.monotonic()
        self.sync_errors = 0
        try:
            self._open()
        except BaseException:
            os.close(self._directory)
            raise

    @property
    def cut(self) -> bool:
        """Whether the file holds only part of the last appended line."""
        return self._written > 0

    def append(self, line: bytes, *, durable: bool = False) -> None:
        """Append a line that ends with a newline; the next `sync` makes a `durable` one durable.

        Raises:
            OSError: the write was incomplete; append the same line again.
        """
        if time.monotonic() - self._checked >= _CHECK_SECONDS:
            self.follow()
        if not self.cut and self._size and self._size + len(line) > self._rotate_bytes:
            self._rotate()
        if not self._ended:
            os.write(self._file, b"\n")
            self._ended = True
        while self._written < len(line):
            count = os.write(self._file, line[self._written :])
            self._written += count
            self._size += count
        self._written = 0
        self._unsynced |= durable

    def sync(self) -> None:
        """Wait until the durable lines are on disk.

        A failure is counted in `sync_errors` and not retried: the kernel reports a write-back error once
        and marks the pages clean, so a second fdatasync() would succeed without the data on disk.
        """
        if not self._unsynced:
            return
        self._unsynced = False
        try:
            os.fdatasync(self._file)
        except OSError:
            self.sync_errors += 1

    def follow(self) -> None:
        """Reopen the journal if its file was renamed or removed.

        Raises:
            OSError: the file was removed, and a new one cannot be created.
        """
        self._checked = -math.inf  # on an error the next line checks again
        try:
            status = os.stat(self._path.name, dir_fd=self._directory)
            moved = (status.st_dev, status.st_ino) != self._identity
        except OSError:
            moved = True
        if moved:
            try:
                self._open()
            except OSError:
                # A renamed file still takes the lines.
                if os.fstat(self._file).st_nlink == 0:
                    raise
        self._checked = time.monotonic()

    def close(self) -> None:
        os.close(self._file)
        os.close(self._directory)

    def _open(self) -> None:
        self._take(self._opened(self._path.name, _FLAGS))
        self._sync_directory()

    def _opened(self, name: str, flags: int) -> int:
        return open_regular(Path(name), flags, _MODE, directory=self._directory)

    def _take(self, file: int) -> None:
        """Switch to another file; a line that was cut in the old file starts over."""
        if self._file >= 0:
            self.sync()
            os.close(self._file)
        self._file = file
        status = os.fstat(file)
        self._identity = (status.st_dev, status.st_ino)
        self._size = status.st_size
        self._ended = not self._size or os.pread(file, 1, self._size - 1) == b"\n"
        self._written = 0

    def _rotate(self) -> None:
        """Rename the full file to a number and start a new one.

        The new file is created first, so that a disk without free inodes changes nothing. Between the two
        renames only the numbered file exists; readers and writers handle that.
        """
        new = f".{self._path.name}.new"
        try:
            file = self._opened(new, _FLAGS | os.O_TRUNC)
        except OSError:
            # Exceed the limit; the next line tries again.
            return
        try:
            self._rename(self._path.name, self._numbered())
            self._rename(new, self._path.name)
        except OSError:
            # If only the first rename succeeded, follow() creates the journal's file again.
            os.close(file)
            self.follow()
            return
        self._take(file)
        self._sync_directory()

    def _rename(self, old: str, new: str) -> None:
        os.rename(old, new, src_dir_fd=self._directory, dst_dir_fd=self._directory)

    def _numbered(self) -> str:
        pattern = re.compile(rf"{re.escape(self._path.stem)}-(\d+){re.escape(self._path.suffix)}")
        numbers = [
            int(found[1]) for other in rotated_files(self._path) if (found := pattern.match(other.name))
        ]
        number = max(numbers, default=0) + 1
        return f"{self._path.stem}-{number:06}{self._path.suffix}"

    def _sync_directory(self) -> None:
        """Make the file's name durable; without it, a synced line would be lost with the name."""
        try:
            os.fsync(self._directory)
        except OSError as error:
            # EINVAL: the file system does not support fsync(2) on a directory.
            self.sync_errors += error.errno != errno.EINVAL


class Reserve:
    """Disk space beside the journal, to be freed when the disk is full.

    ext4, xfs and tmpfs free the blocks of a truncated file in time: ext4 commits its journal before it
    returns ENOSPC (ext4_should_retry_alloc()), xfs and tmpfs truncate synchronously. Without
    posix_fallocate(3) there is no reserve.
    """

    def __init__(self, journal: Path, size: int = RESERVE_BYTES) -> None:
        self._name = f".{journal.stem}.reserve"
        self._directory = os.open(journal.parent, _DIRECTORY_FLAGS)
        self._size = size
        self.spent = False
        self.take()

    def take(self) -> bool:
        """Allocate the whole reserve, or nothing; return whether that succeeded."""
        try:
            file = self._open(os.O_CREAT)
        except OSError:
            return False
        try:
            os.posix_fallocate(file, 0, self._size)
        except OSError:
            self._remove()
            return False
        finally:
            os.close(file)
        self.spent = False
        return True

    def give_back(self) -> bool:
        """Free the reserve; return False if there was none."""
        if self.spent or not self._remove():
            return False
        self.spent = True
        return True

    def close(self) -> None:
        """Remove the reserve."""
        self._remove()
        os.close(self._directory)

    def _open(self, more: int = 0) -> int:
        flags = os.O_WRONLY | os.O_CLOEXEC | more
        return os.open(self._name, flags, _MODE, dir_fd=self._directory)

    def _remove(self) -> bool:
        try:
            # Truncate first: the blocks of an unlinked file may be freed later, in the background.
            file = self._open(os.O_TRUNC)
            os.close(file)
            os.unlink(self._name, dir_fd=self._directory)
        except OSError:
            return False
        return True
