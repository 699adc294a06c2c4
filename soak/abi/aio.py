# SPDX-License-Identifier: GPL-2.0-only
"""Asynchronous transfers (io_submit(2), include/uapi/linux/aio_abi.h).

io_submit() pins the pages before it returns, and the kernel unpins them before it reports completion. A
caller can therefore bound the pin from both sides, which a blocking transfer does not allow.
"""

from __future__ import annotations

import ctypes
import errno
from typing import Final, Self

from soak.abi.libc import LIBC, checked
from soak.abi.syscalls import syscall_number

IOCB_CMD_PREAD: Final = 0  # IOCB_CMD_PREAD
IOCB_CMD_PWRITE: Final = 1  # IOCB_CMD_PWRITE

_IO_SETUP, _IO_DESTROY, _IO_GETEVENTS, _IO_SUBMIT = (
    syscall_number(f"io_{name}") for name in ("setup", "destroy", "getevents", "submit")
)


class _ControlBlock(ctypes.Structure):
    """struct iocb."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("key", ctypes.c_uint32),
        ("rw_flags", ctypes.c_int32),
        ("opcode", ctypes.c_uint16),
        ("priority", ctypes.c_int16),
        ("descriptor", ctypes.c_uint32),
        ("buffer", ctypes.c_uint64),
        ("length", ctypes.c_uint64),
        ("offset", ctypes.c_int64),
        ("reserved", ctypes.c_uint64),
        ("flags", ctypes.c_uint32),
        ("notify", ctypes.c_uint32),
    )


class _Event(ctypes.Structure):
    """struct io_event."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("object", ctypes.c_uint64),
        ("result", ctypes.c_int64),
        ("result2", ctypes.c_int64),
    )


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_int64), ("nanoseconds", ctypes.c_int64))


class Transfers:
    """An AIO context with at most one transfer in flight."""

    def __init__(self) -> None:
        """Create the context.

        Raises:
            OSError: the kernel lacks CONFIG_AIO, or fs.aio-max-nr is exhausted.
        """
        context = ctypes.c_ulong(0)
        checked(LIBC.syscall(_IO_SETUP, 1, ctypes.byref(context)), "io_setup")
        self._context = context
        self._block = _ControlBlock()
        self._pointer = ctypes.pointer(self._block)
        self._event = _Event()

    def submit(self, operation: int, descriptor: int, address: int, length: int, offset: int) -> int:
        """Start a transfer of `length` bytes at `address`; return 0 or an errno."""
        block = self._block
        block.opcode, block.descriptor = operation, descriptor
        block.buffer, block.length, block.offset = address, length, offset
        if LIBC.syscall(_IO_SUBMIT, self._context, 1, ctypes.byref(self._pointer)) == 1:
            return 0
        return ctypes.get_errno()

    def completed(self, seconds: float) -> int | None:
        """Wait up to `seconds`; return 0 or the transfer's errno, or None if it is still in flight."""
        limit = _Timespec(int(seconds), int(seconds % 1 * 1e9))
        result = LIBC.syscall(
            _IO_GETEVENTS, self._context, 1, 1, ctypes.byref(self._event), ctypes.byref(limit)
        )
        if result == 1:
            return max(-int(self._event.result), 0)
        if result < 0 and (number := ctypes.get_errno()) != errno.EINTR:
            return number
        return None

    def close(self) -> None:
        """Destroy the context, after waiting for a transfer in flight."""
        checked(LIBC.syscall(_IO_DESTROY, self._context), "io_destroy")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
