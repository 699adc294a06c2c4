# SPDX-License-Identifier: GPL-2.0-only
"""Writes initramfs archives in the "newc" format.

The kernel unpacks concatenated archives (Documentation/driver-api/early-userspace/buffer-format.rst). So
the guest's root, a kernel's modules and the run's own files are separate layers, cached separately.
"""

from __future__ import annotations

import os
import stat
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_ALIGNMENT = 4
_TRAILER = "TRAILER!!!"
_ARCHIVE_ALIGNMENT = 512


class CpioWriter:
    """Writes one archive, with all files owned by root and without times."""

    def __init__(self, out: IO[bytes]) -> None:
        self._out = out
        self._inode = 0
        self._made = {""}

    def directory(self, name: str, mode: int = 0o755) -> None:
        """Add a directory and its missing parents."""
        if name in self._made:
            return
        self._parents(name)
        self._made.add(name)
        self._entry(name, stat.S_IFDIR | mode, b"")

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        self._parents(name)
        self._entry(name, stat.S_IFREG | mode, data)

    def symlink(self, name: str, target: str) -> None:
        self._parents(name)
        self._entry(name, stat.S_IFLNK | 0o777, os.fsencode(target))

    def tree(self, source: Path, prefix: str = "") -> None:
        """Add everything below `source`, in a stable order."""
        for path in sorted(source.rglob("*")):
            name = f"{prefix}{path.relative_to(source)}"
            if path.is_symlink():
                self.symlink(name, str(path.readlink()))
            elif path.is_dir():
                self.directory(name)
            elif path.is_file():
                self.file(name, path.read_bytes(), stat.S_IMODE(path.stat().st_mode))

    def close(self) -> None:
        """End the archive; another one may follow in the same file."""
        self._entry(_TRAILER, 0, b"")
        self._pad(_ARCHIVE_ALIGNMENT)

    def _parents(self, name: str) -> None:
        parent = name.rpartition("/")[0]
        if parent:
            self.directory(parent)

    def _entry(self, name: str, mode: int, data: bytes) -> None:
        self._inode += 1
        encoded = os.fsencode(name) + b"\0"
        links = 2 if stat.S_ISDIR(mode) else 1
        numbers = (self._inode, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
        self._out.write(b"070701" + b"".join(b"%08X" % number for number in numbers) + encoded)
        self._pad(_ALIGNMENT)
        self._out.write(data)
        self._pad(_ALIGNMENT)

    def _pad(self, alignment: int) -> None:
        self._out.write(b"\0" * (-self._out.tell() % alignment))
