# SPDX-License-Identifier: GPL-2.0-only
"""Blocking transfers between memory and a device or another process (uio.h, fcntl.h).

Each transfer pins its pages while it copies, returns 0 or an errno, and never raises.
"""

from __future__ import annotations

import ctypes
import os
from typing import TYPE_CHECKING

from soak.abi.libc import LIBC

if TYPE_CHECKING:
    from pathlib import Path


class _Vector(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def open_direct(path: Path) -> int:
    """Open a device or a file with O_DIRECT, which bypasses the page cache.

    Raises:
        OSError: open(2) failed.
    """
    return os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)


def read_into(descriptor: int, address: int, length: int, offset: int) -> int:
    """Read from `offset` of a file into memory with pread(2); a short read is not an error."""
    if LIBC.pread(descriptor, address, length, offset) < 0:
        return ctypes.get_errno()
    return 0


def write_from(descriptor: int, address: int, length: int, offset: int) -> int:
    """Write memory to `offset` of a file with pwrite(2); a short write is not an error."""
    if LIBC.pwrite(descriptor, address, length, offset) < 0:
        return ctypes.get_errno()
    return 0


def copy_from_process(pid: int, remote: int, local: int, length: int) -> int:
    """Copy out of a process with process_vm_readv(2), which pins its pages chunk by chunk."""
    return _copy(LIBC.process_vm_readv, pid, remote, local, length)


def copy_to_process(pid: int, remote: int, local: int, length: int) -> int:
    """Copy into a process with process_vm_writev(2)."""
    return _copy(LIBC.process_vm_writev, pid, remote, local, length)


def _copy(call: ctypes._NamedFuncPointer, pid: int, remote: int, local: int, length: int) -> int:
    here, there = _Vector(local, length), _Vector(remote, length)
    if call(pid, ctypes.byref(here), 1, ctypes.byref(there), 1, 0) < 0:
        return ctypes.get_errno()
    return 0
