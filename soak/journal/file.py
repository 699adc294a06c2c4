# SPDX-License-Identifier: GPL-2.0-only
"""The file that a journal is written to: it appends whole lines, rotates, and keeps a reserve.

Nobody else writes it. A tool of the system may rename it, which the writer notices.
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
_LOOK_SECONDS: Final = 1.0


class JournalFile:
    """Appends lines. One that an error cut short is gone on with when it is appended again."""

    def __init__(self, path: Path, rotate_bytes: int) -> None:
        """Open or make the file.

        Raises:
            OSError: it cannot be opened.
        """
        self._path = path
        # By its descriptor: whatever comes to have the name of the run's directory is not the run's.
        self._directory = os.open(path.parent, _DIRECTORY_FLAGS)
        self._rotate_bytes = rotate_bytes
        self._file = -1
        self._identity = (0, 0)
        self._size = 0
        self._written = 0
        self._ended = True
        self._unsynced = False
        self._looked = time.monotonic()
        self.sync_errors = 0
        try:
            self._open()
        except BaseException:
            os.close(self._directory)
            raise

    @property
    def cut(self) -> bool:
        """Whether the line that was appended last is there in part."""
        return self._written > 0

    def append(self, line: bytes, *, durable: bool = False) -> None:
        """Append a line with its end; a `durable` one is on disk after the next `sync`.

        Raises:
            OSError: not all of it could be written; the same line has to be appended again.
        """
        if time.monotonic() - self._looked >= _LOOK_SECONDS:
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

        A failure is counted in `sync_errors` and not tried again: the kernel tells it once, calls the
        pages clean, and nobody can say what of them is on disk.
        """
        if not self._unsynced:
            return
        self._unsynced = False
        try:
            os.fdatasync(self._file)
        except OSError:
            self.sync_errors += 1

    def follow(self) -> None:
        """Open the journal anew where somebody has renamed or removed its file.

        Raises:
            OSError: it was removed, and no new one can be made.
        """
        self._looked = -math.inf  # left without a file, each line looks again
        try:
            there = os.stat(self._path.name, dir_fd=self._directory)
            moved = (there.st_dev, there.st_ino) != self._identity
        except OSError:
            moved = True
        if moved:
            try:
                self._open()
            except OSError:
                # Lines go on into the file under its new name, if it has one.
                if os.fstat(self._file).st_nlink == 0:
                    raise
        self._looked = time.monotonic()

    def close(self) -> None:
        os.close(self._file)
        os.close(self._directory)

    def _open(self) -> None:
        self._take(self._opened(self._path.name, _FLAGS))
        self._sync_directory()

    def _opened(self, name: str, flags: int) -> int:
        return open_regular(Path(name), flags, _MODE, directory=self._directory)

    def _take(self, file: int) -> None:
        """Write to this file from now on, a line that was cut in the old one from its beginning."""
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
        """Give the full file a number and begin a new one.

        The new one is made first: a disk that has no inode left leaves all as it is. Between the
        two renames the journal is there under its number alone, which readers and writers know.
        """
        new = f".{self._path.name}.new"
        try:
            file = self._opened(new, _FLAGS | os.O_TRUNC)
        except OSError:
            # The file gets longer than it should; its next line tries again.
            return
        try:
            self._rename(self._path.name, self._numbered())
            self._rename(new, self._path.name)
        except OSError:
            # Where one was done and the other not, the journal's name is missing: it is made again.
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
        """Have the file's name on disk, without which a synced line is in a file that nobody finds."""
        try:
            os.fsync(self._directory)
        except OSError as error:
            # Some file systems do not know it of a directory (fsync(2)).
            self.sync_errors += error.errno != errno.EINVAL


class Reserve:
    """Space beside the journal that is given back when the disk is full.

    ext4, xfs and tmpfs free the blocks of a file when it is truncated: ext4 commits its journal before
    it says that there is no space while some is being freed (ext4_should_retry_alloc), xfs truncates
    within the call, tmpfs knows no delay. Where posix_fallocate is not to be had there is no reserve.
    """

    def __init__(self, journal: Path, size: int = RESERVE_BYTES) -> None:
        self._name = f".{journal.stem}.reserve"
        self._directory = os.open(journal.parent, _DIRECTORY_FLAGS)
        self._size = size
        self.spent = False
        self.take()

    def take(self) -> bool:
        """Set the space aside and say whether it could be had: what is less than all is given back."""
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
        """Free the space; False where there is none."""
        if self.spent or not self._remove():
            return False
        self.spent = True
        return True

    def close(self) -> None:
        """Leave nothing behind."""
        self._remove()
        os.close(self._directory)

    def _open(self, more: int = 0) -> int:
        flags = os.O_WRONLY | os.O_CLOEXEC | more
        return os.open(self._name, flags, _MODE, dir_fd=self._directory)

    def _remove(self) -> bool:
        try:
            # Blocks of a file that is only unlinked may be freed later, in the background.
            file = self._open(os.O_TRUNC)
            os.close(file)
            os.unlink(self._name, dir_fd=self._directory)
        except OSError:
            return False
        return True
