# SPDX-License-Identifier: GPL-2.0-only
"""Find processes that have a device open or mapped (/proc/PID/fd, maps and map_files; proc(5)).

Call `openers` only in a helper process with a deadline: `/proc/PID/maps` takes the mmap lock of a
process that may be stuck, and stat(2) of a file on a dead network server may hang.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Collection

_PROC: Final = Path("/proc")
_MOST_NAMED: Final = 5
# address permissions offset device inode path; device mappings are shared.
_SHARED: Final = re.compile(r"^(\S+) \S{3}s \S+ (\S+) (\d+)", re.MULTILINE)


@dataclass(frozen=True)
class Device:
    """A device, independent of its path: type (`c` or `b`) and MAJOR:MINOR."""

    letter: str
    number: str

    @classmethod
    def of(cls, status: os.stat_result) -> Device | None:
        """Return the device of a device file, or None for any other file."""
        letter = {stat.S_IFCHR: "c", stat.S_IFBLK: "b"}.get(stat.S_IFMT(status.st_mode))
        if letter is None:
            return None
        return cls(letter, f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}")


@dataclass
class Openers:
    """Command names by process id: `found` use a device, `hidden` could not be examined."""

    found: dict[int, str] = field(default_factory=dict)
    hidden: dict[int, str] = field(default_factory=dict)

    def texts(self) -> tuple[str, str]:
        """Return found and hidden processes as text, such as `qemu-system-x86 (4711)`."""
        return _named(self.found), _named(self.hidden)


def openers(devices: Collection[Device], but: Collection[int] = ()) -> Openers:
    """Examine every process except those in `but`; call only in a helper, see the module."""
    result = Openers()
    kinds: dict[tuple[str, str], Device | None] = {}
    for entry in _PROC.iterdir():
        if not entry.name.isdigit() or int(entry.name) in but:
            continue
        try:
            uses = _has_open(entry, devices) or _has_mapped(entry, devices, kinds)
            if uses:
                result.found[int(entry.name)] = _name(entry)
        except PermissionError:
            result.hidden[int(entry.name)] = _name(entry)
        except (FileNotFoundError, ProcessLookupError):
            continue  # the process ended meanwhile
    return result


def _name(process: Path) -> str:
    try:
        return (process / "comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return "ended"


def _named(processes: dict[int, str]) -> str:
    most = sorted(processes.items())[:_MOST_NAMED]
    more = f" and {len(processes) - len(most)} more" if len(processes) > len(most) else ""
    return ", ".join(f"{name} ({pid})" for pid, name in most) + more


def _has_open(process: Path, devices: Collection[Device]) -> bool:
    for link in (process / "fd").iterdir():
        try:
            # Links of sockets, pipes and the like are not absolute paths.
            if link.readlink().is_absolute() and Device.of(link.stat()) in devices:
                return True
        except FileNotFoundError:
            continue  # closed meanwhile
    return False


def _has_mapped(
    process: Path, devices: Collection[Device], kinds: dict[tuple[str, str], Device | None]
) -> bool:
    """Examine shared mappings, which keep a device in use after its descriptor is closed.

    `kinds` caches the result of stat(2) by device and inode, across processes.
    """
    for place, *file in _SHARED.findall((process / "maps").read_text(errors="surrogateescape")):
        key = (file[0], file[1])
        if key[1] == "0":
            continue  # no file
        if key not in kinds:
            # Names in map_files have no leading zeros.
            first, last = (f"{int(part, 16):x}" for part in place.split("-"))
            try:
                kinds[key] = Device.of((process / "map_files" / f"{first}-{last}").stat())
            except FileNotFoundError:
                continue  # unmapped meanwhile
        if kinds[key] in devices:
            return True
    return False
