# SPDX-License-Identifier: GPL-2.0-only
"""Freeze and thaw file systems (include/uapi/linux/fs.h), as fsfreeze(8) does."""

from __future__ import annotations

import os
from typing import Final

from soak.abi.libc import ioctl

_FIFREEZE: Final = 0xC0045877  # _IOWR('X', 119, int)
_FITHAW: Final = 0xC0045878  # _IOWR('X', 120, int)


def freeze(mount_point: str | os.PathLike[str]) -> None:
    """Freeze a file system. Behind a waiting truncate this sleeps uninterruptibly.

    Raises:
        OSError: EBUSY if it is frozen already, EOPNOTSUPP if it cannot be frozen, EPERM.
    """
    _mount_ioctl(mount_point, _FIFREEZE, "FIFREEZE")


def thaw(mount_point: str | os.PathLike[str]) -> None:
    """Thaw a file system.

    Raises:
        OSError: EINVAL if it is not frozen, or a freeze has not completed yet.
    """
    _mount_ioctl(mount_point, _FITHAW, "FITHAW")


def wait_until_writable(mount_point: str | os.PathLike[str]) -> None:
    """Return once the file system accepts writes; while it is frozen this sleeps uninterruptibly.

    An unnamed file leaves nothing behind (O_TMPFILE, open(2)).

    Raises:
        OSError: the file system is read-only, full, or lacks O_TMPFILE.
    """
    os.close(os.open(mount_point, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600))


def _mount_ioctl(mount_point: str | os.PathLike[str], request: int, what: str) -> None:
    descriptor = os.open(mount_point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        ioctl(descriptor, request, 0, f"{what} {os.fspath(mount_point)}")
    finally:
        os.close(descriptor)
