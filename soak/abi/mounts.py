# SPDX-License-Identifier: GPL-2.0-only
"""Mounted file systems and swap, from /proc/self/mountinfo and /proc/swaps (proc(5)).

Reading these files calls into no file system, so a dead network server cannot block it.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_MOUNTINFO: Final = Path("/proc/self/mountinfo")
_SWAPS: Final = Path("/proc/swaps")
_ESCAPE: Final = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """One line of mountinfo. `options` combines mount options and super block options."""

    number: str  # MAJOR:MINOR, the st_dev of its files (stat(2))
    root: str
    point: str
    kind: str
    source: str
    options: frozenset[str]


def parse_mountinfo(content: bytes) -> list[Mount]:
    """Parse mountinfo; the result includes mounts that another mount at the same point hides.

    Raises:
        ValueError: a line is malformed.
    """
    found = []
    for line in content.splitlines():
        words = line.split(b" ")
        try:
            # A dash terminates the optional fields (fs/proc_namespace.c).
            after = words.index(b"-", 6)
            kind, source, of_file_system = words[after + 1 : after + 4]
            number, root, point, options = words[2:6]
        except ValueError:
            raise ValueError(f"malformed line in mountinfo: {line!r}") from None
        found.append(
            Mount(
                number.decode(),
                _unescaped(root),
                _unescaped(point),
                _unescaped(kind),
                _unescaped(source),
                frozenset(_unescaped(options + b"," + of_file_system).split(",")),
            )
        )
    return found


def mounts() -> list[Mount]:
    return parse_mountinfo(_MOUNTINFO.read_bytes())


def filesystem_of(number: str) -> str:
    """Return the type of the file system on the disk MAJOR:MINOR, such as ext4.

    Raises:
        LookupError: the disk is not mounted.
    """
    for mount in mounts():
        if mount.number == number:
            return mount.kind
    raise LookupError(f"disk {number} is not mounted")


def parse_swaps(content: bytes) -> list[str]:
    """Return the paths of swap devices and swap files."""
    return [_unescaped(line.split()[0]) for line in content.splitlines()[1:]]


def swap_devices() -> set[str]:
    """Return MAJOR:MINOR of each swap device."""
    found = set()
    for path in parse_swaps(_SWAPS.read_bytes()):
        if Path(path).is_block_device():
            number = Path(path).stat().st_rdev
            found.add(f"{os.major(number)}:{os.minor(number)}")
    return found


def _unescaped(word: bytes) -> str:
    """Undo mangle() (fs/seq_file.c), which writes blanks and backslashes as octal escapes."""
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes((int(match[1], 8) & 0xFF,)), word))
