# SPDX-License-Identifier: GPL-2.0-only
"""Numbers of system calls: known for some architectures, and harmless on all others."""

from __future__ import annotations

import ctypes
import errno

import pytest

from soak.abi.libc import LIBC
from soak.abi.syscalls import syscall_number


@pytest.mark.parametrize(("machine", "number"), [("x86_64", 321), ("aarch64", 280), ("s390x", -1)])
def test_a_number_belongs_to_an_architecture(machine: str, number: int) -> None:
    assert syscall_number("bpf", machine) == number


def test_the_kernel_has_no_system_call_of_an_unknown_architecture() -> None:
    assert LIBC.syscall(ctypes.c_long(syscall_number("bpf", "s390x"))) == -1
    assert ctypes.get_errno() == errno.ENOSYS
