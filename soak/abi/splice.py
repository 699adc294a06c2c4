# SPDX-License-Identifier: GPL-2.0-only
"""Short pins by splicing pages into a pipe (vmsplice(2); fs/splice.c)."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Self

from soak.abi.libc import LIBC


class _Vector(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class PagePipe:
    """A pipe that holds one reference (FOLL_GET) on each page in it, until `close`.

    The pipe is close-on-exec, but a forked child would inherit it and keep the references.
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def take(self, address: int, length: int) -> int:
        """Splice the pages of `length` bytes at `address` into the pipe; return 0 or an errno."""
        vector = _Vector(address, length)
        taken = LIBC.vmsplice(self._writer, ctypes.byref(vector), 1, 0)
        if taken < 0:
            return ctypes.get_errno()
        # A short result: the next page could not be pinned, or the pipe is full.
        return 0 if taken == length else errno.EFAULT

    def close(self) -> None:
        """Release the pages."""
        os.close(self._reader)
        os.close(self._writer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class HeldPages(PagePipe):
    """A pipe that holds the pages of one range from its creation on."""

    def __init__(self, address: int, length: int) -> None:
        """Splice the pages of `length` bytes at `address` into a new pipe.

        Raises:
            OSError: a page cannot be pinned, or the pipe is too small.
        """
        super().__init__()
        number = self.take(address, length)
        if number:
            self.close()
            raise OSError(number, os.strerror(number), f"vmsplice of {length} bytes")
