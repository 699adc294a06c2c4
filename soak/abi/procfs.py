# SPDX-License-Identifier: GPL-2.0-only
"""Files of /proc whose reading never blocks.

This excludes `/proc/PID/maps`, `smaps` and `cmdline`: they take the mmap lock of a process that may be
stuck.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

_PROC = Path("/proc")
_CHUNK: Final = 1 << 20
_KIB: Final = 1024


def kernel_release() -> str:
    return (_PROC / "sys/kernel/osrelease").read_text().strip()


def boot_id() -> str:
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def taint() -> int:
    """Return the kernel's taint flags (Documentation/admin-guide/tainted-kernels.rst)."""
    return int((_PROC / "sys/kernel/tainted").read_text())


def symbol_address(name: str) -> int:
    """Return the address of a kernel symbol from /proc/kallsyms.

    Raises:
        LookupError: the kernel has no such symbol, or kptr_restrict hides its address.
    """
    # More than a hundred thousand lines: "ADDRESS TYPE NAME", for modules followed by "\t[MODULE]".
    end = f" {name}\n".encode()
    with (_PROC / "kallsyms").open("rb", buffering=0) as symbols:
        rest = b""
        while chunk := symbols.read(_CHUNK):
            text = rest + chunk
            found = text.find(end)
            if found >= 0:
                address = int(text[text.rfind(b"\n", 0, found) + 1 : found].split()[0], 16)
                if address:
                    return address
            rest = text[text.rfind(b"\n") + 1 :]
    raise LookupError(f"/proc/kallsyms has no address for {name}")


def foll_pins() -> tuple[int, int]:
    """Return how many FOLL_PIN pins the whole system has acquired and released since boot.

    The counters are per CPU; writing to stat_refresh folds them.
    """
    (_PROC / "sys/vm/stat_refresh").write_text("1")
    counters = dict(line.split() for line in (_PROC / "vmstat").read_text().splitlines())
    return int(counters["nr_foll_pin_acquired"]), int(counters["nr_foll_pin_released"])


def task_state(pid: int) -> str:
    """Return the state of a task, such as S or D (Documentation/filesystems/proc.rst).

    Raises:
        OSError: the task has ended.
    """
    return (_PROC / f"{pid}/stat").read_text().rpartition(")")[2].split()[0]


def task_wchan(pid: int) -> str:
    """Return the kernel function that a task sleeps in, or "0".

    Raises:
        OSError: the task has ended.
    """
    return (_PROC / f"{pid}/wchan").read_text().strip()


def task_stack(pid: int) -> list[str]:
    """Return the kernel functions on the stack of a task, innermost first.

    Raises:
        OSError: the task has ended, or the kernel lacks CONFIG_STACKTRACE.
    """
    lines = (_PROC / f"{pid}/stack").read_text().splitlines()
    return [line.partition("] ")[2] for line in lines]


def locked_and_pinned_bytes(pid: int) -> tuple[int, int]:
    """Return VmLck and VmPin of a process, in bytes.

    Raises:
        OSError: the process has ended.
    """
    status = (_PROC / f"{pid}/status").read_text()
    fields = re.findall(r"^(VmLck|VmPin):\s+(\d+) kB$", status, re.MULTILINE)
    values = {name: int(value) * _KIB for name, value in fields}
    return values.get("VmLck", 0), values.get("VmPin", 0)
