# SPDX-License-Identifier: GPL-2.0-only
"""Calls on directories that Python does not have: openat2(2) and renameat2(2)."""

from __future__ import annotations

import ctypes
import os
from typing import Final

from soak.abi.libc import LIBC, checked
from soak.abi.syscalls import syscall_number

_RENAMEAT2, _OPENAT2 = syscall_number("renameat2"), syscall_number("openat2")
_RENAME_NOREPLACE: Final = 1  # include/uapi/linux/fs.h
# include/uapi/linux/openat2.h
_RESOLVE_NO_XDEV: Final = 0x01
_RESOLVE_NO_SYMLINKS: Final = 0x04
_RESOLVE_BENEATH: Final = 0x08


class _OpenHow(ctypes.Structure):
    """struct open_how."""

    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def open_own_directory(name: str, parent: int) -> int:
    """Open a directory below `parent` through no symbolic link and no mount, bind mounts included.

    Raises:
        OSError: ENOENT; ENOTDIR or ELOOP where it is something else; EXDEV where a file system is
            mounted on it.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    resolve = _RESOLVE_NO_XDEV | _RESOLVE_NO_SYMLINKS | _RESOLVE_BENEATH
    how = _OpenHow(flags, 0, resolve)
    return checked(
        LIBC.syscall(
            ctypes.c_long(_OPENAT2), ctypes.c_long(parent), ctypes.c_char_p(os.fsencode(name)),
            ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how)),
        ),
        name,
    )  # fmt: skip


def rename_to_new(old: str, new: str, parent: int) -> None:
    """Rename within `parent`, and never over something that is there.

    Raises:
        OSError: EEXIST, ENOENT, or EINVAL where the file system cannot promise that.
    """
    checked(
        LIBC.syscall(
            ctypes.c_long(_RENAMEAT2),
            ctypes.c_long(parent), ctypes.c_char_p(os.fsencode(old)),
            ctypes.c_long(parent), ctypes.c_char_p(os.fsencode(new)),
            ctypes.c_long(_RENAME_NOREPLACE),
        ),
        new,
    )  # fmt: skip
