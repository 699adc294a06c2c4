# SPDX-License-Identifier: GPL-2.0-only
"""The C library through ctypes, which keeps errno and returns EINTR.

Python's own wrappers retry after EINTR, so no signal can interrupt a hanging call. A call through ctypes
returns EINTR once the process has installed a handler, even an empty one.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any, Final

LIBC: Final = ctypes.CDLL(None, use_errno=True)

# Without argument types ctypes passes int, which truncates 64-bit offsets.
LIBC.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)
# For hot loops: an untyped call costs half as much. Integers must fit in 32 bits, and pointers must
# come from `byref`.
RAW_IOCTL: Final = LIBC["ioctl"]
LIBC.ftruncate.argtypes = (ctypes.c_int, ctypes.c_int64)
LIBC.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
LIBC.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int64,
)
LIBC.mmap.restype = ctypes.c_void_p
LIBC.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
LIBC.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
LIBC.prctl.argtypes = (ctypes.c_int, *([ctypes.c_ulong] * 4))
LIBC.mount.argtypes = (*([ctypes.c_char_p] * 3), ctypes.c_ulong, ctypes.c_char_p)
LIBC.vmsplice.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint)
LIBC.vmsplice.restype = ctypes.c_ssize_t
for _name in ("pread", "pwrite"):
    getattr(LIBC, _name).argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64)
    getattr(LIBC, _name).restype = ctypes.c_ssize_t
for _name in ("process_vm_readv", "process_vm_writev"):
    getattr(LIBC, _name).argtypes = (
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_ulong,
        ctypes.c_void_p,
        ctypes.c_ulong,
        ctypes.c_ulong,
    )
    getattr(LIBC, _name).restype = ctypes.c_ssize_t
LIBC.open.argtypes = (ctypes.c_char_p, ctypes.c_int)
LIBC.close.argtypes = (ctypes.c_int,)
LIBC.unlink.argtypes = (ctypes.c_char_p,)
LIBC.syscall.restype = ctypes.c_long

_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h


def checked(result: int, what: str) -> int:
    """Return the result of a call.

    Raises:
        OSError: the result is negative; `errno` is the thread's.
    """
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def ioctl(descriptor: int, request: int, argument: Any, what: str) -> int:  # noqa: ANN401 - as ctypes
    """Issue an ioctl; `argument` is an integer, or anything that ctypes converts to a pointer.

    Raises:
        OSError: the call failed.
    """
    return checked(LIBC.ioctl(descriptor, request, argument), what)


def die_with_parent(signal_number: int, parent: int) -> None:
    """Make the kernel send this process a signal when `parent`, the process that forked it, ends.

    PR_SET_PDEATHSIG (prctl(2)) only covers a later death: if the parent died between the fork and the
    call, this process sends itself the signal.
    """
    checked(LIBC.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0), "prctl")
    if os.getppid() != parent:
        os.kill(os.getpid(), signal_number)
