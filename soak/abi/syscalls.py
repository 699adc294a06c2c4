# SPDX-License-Identifier: GPL-2.0-only
"""Numbers of system calls for which the C library has no function, by architecture.

x86_64: arch/x86/entry/syscalls/syscall_64.tbl. aarch64: include/uapi/asm-generic/unistd.h.
"""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

# In the order of `_MACHINES`.
_MACHINES: Final = ("x86_64", "aarch64")
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


# No system call has it: the kernel answers ENOSYS.
_NONE: Final = -1


def syscall_number(name: str, machine: str | None = None) -> int:
    """Return the number of a system call on an architecture, by default this machine's.

    Of an architecture that is not in the table it is -1, for which the kernel answers ENOSYS.
    """
    machine = machine or platform.machine()
    return _NUMBERS[name][_MACHINES.index(machine)] if machine in _MACHINES else _NONE
