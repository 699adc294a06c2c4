# SPDX-License-Identifier: GPL-2.0-only
"""The rate of the host's time-stamp counter, which an emulated guest has for its clock.

A kernel that boots finds that rate out by counting it against a timer, and on a loaded host, where QEMU's
timers come late, it gets it wrong: guests were seen whose clock ran five times as fast as the host's.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

# rdtsc; shl $32, %rdx; or %rdx, %rax; ret
_READ_COUNTER: Final = bytes.fromhex("0f3148c1e2204809d0c3")
_SECONDS: Final = 0.1
_TRIES: Final = 50


def counter_khz() -> int | None:
    """Return how many thousand times a second the counter of this x86-64 processor counts.

    QEMU's emulation passes it on as it is (cpu_get_ticks(), softmmu/cpu-timers.c). None on another
    processor, and where no code may be made.
    """
    if platform.machine() != "x86_64":
        return None
    try:
        code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:
        return None
    code.write(_READ_COUNTER)
    read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
    began, first = _moment(read)
    time.sleep(_SECONDS)
    ended, last = _moment(read)
    return round((last - first) * 1_000_000 / (ended - began))


def _moment(read: Callable[[], int]) -> tuple[int, int]:
    """Return a time in nanoseconds and the counter then, as near to each other as can be had."""
    found = []
    for _ in range(_TRIES):
        before, count = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW), read()
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        found.append((after - before, (before + after) // 2, count))
    _, moment, count = min(found)
    return moment, count
