# SPDX-License-Identifier: GPL-2.0-only
"""Open directories without crossing links or mounts, and rename without replacing (renameat2(2))."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path
from typing import Final

from soak.abi.libc import LIBC, checked
from soak.abi.syscalls import syscall_number

_RENAMEAT2: Final = syscall_number("renameat2")
_RENAME_NOREPLACE: Final = 1  # include/uapi/linux/fs.h


def open_own_directory(name: str, parent: int) -> int:
    """Open a directory in `parent` without crossing a symbolic link or a mount, bind mounts included.

    openat2(2) would do this in one call, but RestrictSUIDSGID= of a systemd service blocks it (ENOSYS).

    Raises:
        OSError: ENOENT; ENOTDIR or ELOOP if it is not a directory; EXDEV if it is a mount point.
    """
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, dir_fd=parent)
    if _mount_of(descriptor) != _mount_of(parent):
        os.close(descriptor)
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), name)
    return descriptor


def _mount_of(descriptor: int) -> str:
    """Return the mount ID of a descriptor (proc_pid_fdinfo(5))."""
    lines = Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines()
    return next(line for line in lines if line.startswith("mnt_id:"))


def rename_to_new(old: str, new: str, parent: int) -> None:
    """Rename within `parent`, never replacing an existing file.

    Raises:
        OSError: EEXIST, ENOENT, or EINVAL if the file system lacks RENAME_NOREPLACE.
    """
    checked(
        LIBC.syscall(
            ctypes.c_long(_RENAMEAT2),
            ctypes.c_long(parent),
            ctypes.c_char_p(os.fsencode(old)),
            ctypes.c_long(parent),
            ctypes.c_char_p(os.fsencode(new)),
            ctypes.c_long(_RENAME_NOREPLACE),
        ),
        new,
    )
