# SPDX-License-Identifier: GPL-2.0-only
"""Unload kernel modules (delete_module(2)). Loading needs modprobe, which resolves dependencies."""

from __future__ import annotations

import ctypes
import os
from typing import Final

from soak.abi.libc import LIBC, checked
from soak.abi.syscalls import syscall_number

_DELETE_MODULE: Final = syscall_number("delete_module")


def delete_module(name: str) -> None:
    """Unload an unused module.

    Raises:
        OSError: ENOENT if it is not loaded, EAGAIN if it is in use, EPERM.
    """
    checked(
        LIBC.syscall(
            ctypes.c_long(_DELETE_MODULE), ctypes.c_char_p(name.encode()), ctypes.c_long(os.O_NONBLOCK)
        ),
        f"delete_module {name}",
    )
