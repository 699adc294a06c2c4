# SPDX-License-Identifier: GPL-2.0-only
"""Change the size and the blocks of a file (include/uapi/linux/falloc.h).

These are the calls under test: each returns 0 or an errno and never raises.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

from soak.abi.libc import LIBC

FALLOC_FL_KEEP_SIZE: Final = 0x01
FALLOC_FL_PUNCH_HOLE: Final = 0x02
FALLOC_FL_ZERO_RANGE: Final = 0x10


def truncate(descriptor: int, size: int) -> int:
    """Set a file's size in bytes with ftruncate(2)."""
    if LIBC.ftruncate(descriptor, size) < 0:
        return ctypes.get_errno()
    return 0


def punch_hole(descriptor: int, offset: int, length: int) -> int:
    """Free the blocks of a range, in bytes, without changing the size."""
    if LIBC.fallocate(descriptor, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length) < 0:
        return ctypes.get_errno()
    return 0


def zero_range(descriptor: int, offset: int, length: int) -> int:
    """Convert a range, in bytes, to unwritten blocks that read as zeros, without changing the size."""
    if LIBC.fallocate(descriptor, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, length) < 0:
        return ctypes.get_errno()
    return 0


def open_truncate(path: bytes) -> int:
    """Open a file with O_TRUNC and close it."""
    descriptor = LIBC.open(path, os.O_RDWR | os.O_TRUNC | os.O_CLOEXEC)
    if descriptor < 0:
        return ctypes.get_errno()
    LIBC.close(descriptor)
    return 0


def unlink(path: bytes) -> int:
    """Unlink a file; the kernel frees its blocks once no process has it open or mapped."""
    if LIBC.unlink(path) < 0:
        return ctypes.get_errno()
    return 0
