# SPDX-License-Identifier: GPL-2.0-only
"""What is mounted, and what is swap: /proc/self/mountinfo and /proc/swaps (proc(5)).

Reading them asks no file system anything, so a server that is gone cannot make it hang.
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
    """One line of mountinfo. `options` are those of the mount and of its file system."""

    number: str  # MAJOR:MINOR, as stat(2) gives it for files of it
    root: str
    point: str
    kind: str
    source: str
    options: frozenset[str]


def parse_mountinfo(content: bytes) -> list[Mount]:
    """Read mountinfo; what is hidden below another mount of the same place stays in the list.

    Raises:
        ValueError: it is no mountinfo.
    """
    found = []
    for line in content.splitlines():
        words = line.split(b" ")
        try:
            # Optional fields end with a dash (fs/proc_namespace.c).
            after = words.index(b"-", 6)
            kind, source, of_file_system = words[after + 1 : after + 4]
            number, root, point, options = words[2:6]
        except ValueError:
            raise ValueError(f"mountinfo has the line {line!r}") from None
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
    """Return the kind of the file system on a disk (MAJOR:MINOR), such as ext4.

    Raises:
        LookupError: it is not mounted.
    """
    for mount in mounts():
        if mount.number == number:
            return mount.kind
    raise LookupError(f"nothing is mounted from the disk {number}")


def parse_swaps(content: bytes) -> list[str]:
    """Return the device files and files that are swap."""
    return [_unescaped(line.split()[0]) for line in content.splitlines()[1:]]


def swap_devices() -> set[str]:
    """Return MAJOR:MINOR of each block device that is swap."""
    found = set()
    for path in parse_swaps(_SWAPS.read_bytes()):
        if Path(path).is_block_device():
            number = Path(path).stat().st_rdev
            found.add(f"{os.major(number)}:{os.minor(number)}")
    return found


def _unescaped(word: bytes) -> str:
    """Undo mangle() (fs/seq_file.c): blanks and backslashes stand as three octal digits."""
    return os.fsdecode(_ESCAPE.sub(lambda match: bytes((int(match[1], 8) & 0xFF,)), word))
