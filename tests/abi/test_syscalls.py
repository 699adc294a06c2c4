# SPDX-License-Identifier: GPL-2.0-only
"""Numbers of system calls: known for some architectures, and harmless on all others."""

from __future__ import annotations

import ctypes
import errno

import pytest

from soak.abi.libc import LIBC
from soak.abi.syscalls import syscall_number


@pytest.mark.parametrize(("machine", "number"), [("x86_64", 321), ("aarch64", 280), ("s390x", -1)])
def test_number_depends_on_the_architecture(machine: str, number: int) -> None:
    assert syscall_number("bpf", machine) == number


def test_unknown_architecture_gets_enosys() -> None:
    assert LIBC.syscall(ctypes.c_long(syscall_number("bpf", "s390x"))) == -1
    assert ctypes.get_errno() == errno.ENOSYS
