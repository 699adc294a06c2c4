# SPDX-License-Identifier: GPL-2.0-only
"""Numbers of system calls without a libc wrapper, by architecture.

x86_64: arch/x86/entry/syscalls/syscall_64.tbl. aarch64: include/uapi/asm-generic/unistd.h.
"""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_MACHINES: Final = ("x86_64", "aarch64")
# Numbers in the order of `_MACHINES`.
_NUMBERS: Final[Mapping[str, tuple[int, int]]] = {
    "bpf": (321, 280),
    "delete_module": (176, 106),
    "io_destroy": (207, 1),
    "io_getevents": (208, 4),
    "io_setup": (206, 0),
    "io_submit": (209, 2),
    "io_uring_setup": (425, 425),
    "renameat2": (316, 276),
}


# Not a system call: the kernel returns ENOSYS.
_NONE: Final = -1


def syscall_number(name: str, machine: str | None = None) -> int:
    """Return the number of a system call on `machine`, by default this machine's architecture.

    For an architecture outside the table this is -1, for which the kernel returns ENOSYS.
    """
    machine = machine or platform.machine()
    return _NUMBERS[name][_MACHINES.index(machine)] if machine in _MACHINES else _NONE
