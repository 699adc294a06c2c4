# SPDX-License-Identifier: GPL-2.0-only
"""Processes and descriptors, read from /proc and by nothing of the program."""

from __future__ import annotations

import os
from pathlib import Path


def state(pid: int) -> str:
    """Return the letter of a process's state, as proc(5) has it; empty where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return ""


def alive(pid: int) -> bool:
    """Return whether a process is there and is no zombie."""
    return state(pid) not in {"", "Z"}


def children() -> set[int]:
    """Return this process's children, those that ended and were not waited for included."""
    found = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return {int(pid) for pid in found}


def descriptors() -> set[Path]:
    """Return the open descriptors of this process."""
    return set(Path("/proc/self/fd").iterdir())
