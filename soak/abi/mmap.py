# SPDX-License-Identifier: GPL-2.0-only
"""Memory mappings by address (include/uapi/asm-generic/mman-common.h, mman.h)."""

from __future__ import annotations

import ctypes
import os
from typing import Final, Self

from soak.abi.libc import LIBC, checked

PROT_READ: Final = 1
PROT_WRITE: Final = 2
MAP_SHARED: Final = 0x01
MAP_PRIVATE: Final = 0x02
MAP_FIXED: Final = 0x10
MAP_ANONYMOUS: Final = 0x20
MADV_DONTNEED: Final = 4
MADV_NOHUGEPAGE: Final = 15

_FAILED: Final = ctypes.c_void_p(-1).value


class Mapping:
    """A mapping of `length` bytes at `address`, until `close` unmaps it."""

    def __init__(self, length: int, protection: int, flags: int, descriptor: int = -1) -> None:
        """Map `length` bytes.

        Raises:
            OSError: mmap(2) failed.
        """
        self.address = _mapped(None, length, protection, flags, descriptor)
        self.length = length

    @classmethod
    def reserve(cls, length: int) -> Self:
        """Reserve a span of addresses without access to memory (PROT_NONE)."""
        return cls(length, 0, MAP_PRIVATE | MAP_ANONYMOUS)

    def replace(self, start: int, length: int, protection: int, flags: int, descriptor: int) -> None:
        """Map a file over part of this mapping; `flags` must include MAP_FIXED.

        Raises:
            OSError: mmap(2) failed.
        """
        _mapped(self.address + start, length, protection, flags, descriptor)

    @property
    def bytes(self) -> memoryview[int]:
        """A writable view of the mapped memory, not a copy."""
        room = (ctypes.c_ubyte * self.length).from_address(self.address)
        return memoryview(room).cast("B")

    def advise(self, advice: int) -> None:
        """Call madvise(2) on the whole mapping.

        Raises:
            OSError: madvise(2) failed.
        """
        checked(LIBC.madvise(self.address, self.length, advice), "madvise")

    def close(self) -> None:
        if self.length:
            checked(LIBC.munmap(self.address, self.length), "munmap")
            self.length = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _mapped(address: int | None, length: int, protection: int, flags: int, descriptor: int) -> int:
    result = LIBC.mmap(address, length, protection, flags, descriptor, 0)
    if result is None or result == _FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"mmap of {length} bytes")
    return int(result)
