# SPDX-License-Identifier: GPL-2.0-only
"""Attributes that only statx(2) returns (include/uapi/linux/stat.h)."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path
from typing import Final

from soak.abi.libc import LIBC, checked

_AT_EMPTY_PATH: Final = 0x1000
_STATX_ATTR_DAX: Final = 0x00200000
_SIZE: Final = 256
_ATTRIBUTES_OFFSET: Final = 8


def is_dax(descriptor: int) -> bool:
    """Return whether the file is in DAX state (STATX_ATTR_DAX).

    Raises:
        OSError: statx(2) failed.
    """
    room = ctypes.create_string_buffer(_SIZE)
    checked(LIBC.statx(ctypes.c_int(descriptor), b"", _AT_EMPTY_PATH, 0, room), f"statx({descriptor})")
    return bool(struct.unpack_from("<Q", room, _ATTRIBUTES_OFFSET)[0] & _STATX_ATTR_DAX)


def device_number(path: str | os.PathLike[str]) -> str:
    """Return MAJOR:MINOR of the device that a file is on."""
    device = Path(path).stat().st_dev
    return f"{os.major(device)}:{os.minor(device)}"
