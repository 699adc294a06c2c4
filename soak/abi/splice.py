"""Short pins by splicing pages into a pipe (vmsplice(2); fs/splice.c)."""

from __future__ import annotations

import ctypes
import os
from typing import Self

from soak.abi.libc import LIBC, checked


class _Vector(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class HeldPages:
    """Pages that lie in a pipe: each carries one reference more (FOLL_GET) until `close`.

    The pipe is close-on-exec, but a fork would keep it, and with it the pages.
    """

    def __init__(self, address: int, length: int) -> None:
        """Splice the pages of `length` bytes at `address` into a new pipe.

        Raises:
            OSError: the memory cannot be pinned, or the pipe took fewer bytes than asked.
        """
        self._reader, self._writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            vector = _Vector(address, length)
            taken = checked(
                LIBC.vmsplice(self._writer, ctypes.byref(vector), 1, 0),
                f"vmsplice of {length} bytes",
            )
            if taken != length:
                raise OSError(f"vmsplice took {taken} of {length} bytes")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let the pages go."""
        os.close(self._reader)
        os.close(self._writer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
