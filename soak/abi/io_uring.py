# SPDX-License-Identifier: GPL-2.0-only
"""io_uring (include/uapi/linux/io_uring.h), as far as asking whether it is there."""

from __future__ import annotations

import ctypes
import os
from typing import Final

from soak.abi.libc import LIBC, checked
from soak.abi.syscalls import syscall_number

_IO_URING_SETUP: Final = syscall_number("io_uring_setup")
_PARAMS_SIZE: Final = 120  # struct io_uring_params


def try_io_uring() -> None:
    """Set up a ring and give it back.

    Raises:
        OSError: ENOSYS without CONFIG_IO_URING, EPERM where kernel.io_uring_disabled forbids it.
    """
    parameters = ctypes.create_string_buffer(_PARAMS_SIZE)
    ring = checked(LIBC.syscall(_IO_URING_SETUP, 1, parameters), "io_uring_setup")
    os.close(ring)
