# SPDX-License-Identifier: GPL-2.0-only
"""Detect io_uring (include/uapi/linux/io_uring.h)."""

from __future__ import annotations

import ctypes
import os
from typing import Final

from soak.abi.libc import LIBC, checked
from soak.abi.syscalls import syscall_number

_IO_URING_SETUP: Final = syscall_number("io_uring_setup")
_PARAMS_SIZE: Final = 120  # struct io_uring_params


def try_io_uring() -> None:
    """Create a ring and close it.

    Raises:
        OSError: ENOSYS without CONFIG_IO_URING, EPERM if kernel.io_uring_disabled forbids it.
    """
    parameters = ctypes.create_string_buffer(_PARAMS_SIZE)
    ring = checked(LIBC.syscall(_IO_URING_SETUP, 1, parameters), "io_uring_setup")
    os.close(ring)
