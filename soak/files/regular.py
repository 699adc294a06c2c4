# SPDX-License-Identifier: GPL-2.0-only
"""Files that a user names or others can replace: only regular ones are opened, nothing is waited for.

Opening a named pipe waits for its other end, reading a terminal never ends, and opening some devices
does something to them.
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
    """The path leads to something that is no regular file; `strerror` says to what."""


class ContentError(OSError):
    """The file is too large, or is compressed; `strerror` says which."""


def open_regular(
    path: Path, flags: int = os.O_RDONLY, mode: int = 0o666, *, directory: int | None = None
) -> int:
    """Open a regular file and return its descriptor; `flags` may make it.

    A relative path may start at a `directory`, given by its descriptor.

    Raises:
        NotRegularError: it is a named pipe, a socket or a device.
        IsADirectoryError: it is a directory.
        OSError: it cannot be opened.
    """
    with suppress(FileNotFoundError):  # made now, or the open says that it is missing
        _check(os.stat(path, dir_fd=directory).st_mode, path)
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, mode, dir_fd=directory)
    try:
        # Another file may have come in its place since.
        _check(os.fstat(descriptor).st_mode, path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_to_read(path: Path) -> BufferedReader:
    """Open a regular file for reading, compressed or not.

    Raises:
        OSError: as `open_regular` raises it.
    """
    return open(open_regular(path), "rb")


def open_plain(path: Path) -> BufferedReader:
    """Open a regular file for reading that is not compressed.

    Raises:
        ContentError: it is compressed.
        OSError: as `open_regular` raises it.
    """
    file = open_to_read(path)
    if file.peek(len(GZIP_MAGIC)).startswith(GZIP_MAGIC):
        file.close()
        raise ContentError(errno.EINVAL, "it is compressed with gzip", str(path))
    return file


def read_regular(path: Path, most: int) -> bytes:
    """Return the content of a regular file that is not compressed and has at most `most` bytes.

    Raises:
        ContentError: it is larger, or is compressed.
        OSError: it cannot be read, or as `open_regular` raises it.
    """
    with open_plain(path) as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ContentError(
            errno.EFBIG, f"it has more than the {most:,} bytes that it may have", str(path)
        )
    return content


def _check(mode: int, path: Path) -> None:
    if stat.S_ISREG(mode):
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    kind = _KINDS.get(stat.S_IFMT(mode), "something else")
    raise NotRegularError(errno.EINVAL, f"it is {kind}, expected a regular file", str(path))
