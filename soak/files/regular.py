# SPDX-License-Identifier: GPL-2.0-only
"""Open paths from users or shared directories, but only regular files, and without blocking.

Opening a named pipe blocks, reading a terminal never ends, and opening some devices has side effects.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from io import BufferedReader
    from pathlib import Path

GZIP_MAGIC: Final = b"\x1f\x8b"

_KINDS: Final = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


class NotRegularError(OSError):
    """The path is not a regular file; `strerror` names its type."""


class ContentError(OSError):
    """The file is too large or compressed; `strerror` says which."""


def open_regular(
    path: Path, flags: int = os.O_RDONLY, mode: int = 0o666, *, directory: int | None = None
) -> int:
    """Open a regular file and return its descriptor; `flags` may include O_CREAT.

    A relative path starts at `directory`, an open descriptor, if given.

    Raises:
        NotRegularError: it is a named pipe, a socket or a device.
        IsADirectoryError: it is a directory.
        OSError: it cannot be opened.
    """
    with suppress(FileNotFoundError):  # open() creates a missing file or reports it
        _check(os.stat(path, dir_fd=directory).st_mode, path)
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, mode, dir_fd=directory)
    try:
        # Another file may have replaced it since.
        _check(os.fstat(descriptor).st_mode, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_to_read(path: Path) -> BufferedReader:
    """Open a regular file for reading, compressed or not.

    Raises:
        OSError: see `open_regular`.
    """
    return open(open_regular(path), "rb")


def open_plain(path: Path) -> BufferedReader:
    """Open a regular, uncompressed file for reading.

    Raises:
        ContentError: it is compressed.
        OSError: see `open_regular`.
    """
    file = open_to_read(path)
    if file.peek(len(GZIP_MAGIC)).startswith(GZIP_MAGIC):
        file.close()
        raise ContentError(errno.EINVAL, "it is compressed with gzip", str(path))
    return file


def read_regular(path: Path, most: int) -> bytes:
    """Return the content of a regular, uncompressed file of at most `most` bytes.

    Raises:
        ContentError: it is larger, or compressed.
        OSError: it cannot be read, or see `open_regular`.
    """
    with open_plain(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ContentError(errno.EFBIG, f"it is too large, expected at most {most:,} bytes", str(path))
    return content


def _check(mode: int, path: Path) -> None:
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    kind = _KINDS.get(stat.S_IFMT(mode), "of unknown type")
    raise NotRegularError(errno.EINVAL, f"it is {kind}, expected a regular file", str(path))
