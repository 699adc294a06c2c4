# SPDX-License-Identifier: GPL-2.0-only
"""Block devices for O_DIRECT transfers: only empty ones, or ones that a soak has marked.

A soak writes a mark to the first block, and transfers data behind it. A disk whose first and last
256 KiB are neither zero nor marked holds foreign data: file systems, partition tables, RAID and LVM keep
their metadata there (btrfs 64 KiB from the beginning, ZFS and md also before the end).
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Final

from soak.abi.mmap import MAP_ANONYMOUS, MAP_PRIVATE, PROT_READ, PROT_WRITE, Mapping
from soak.abi.transfer import open_direct, read_into, write_from
from soak.errors import UsageError
from soak.process.helper import HelperError, in_helper

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

# Offset of transfers: a multiple of every logical block size.
DATA_OFFSET: Final = 4096
_MARK: Final = b"dax-soak moves memory to and from this disk\n"
_EXAMINED: Final = 256 << 10
# The mark, and the longest transfer.
_SMALLEST: Final = DATA_OFFSET + (2 << 20)
_SECONDS: Final = 20.0


def contents_problem(path: Path) -> str:
    """Return why a disk must not be overwritten, or an empty string if it may be.

    This only reads, in a helper because the disk may hang.
    """
    try:
        return str(in_helper(partial(_problem, path), _SECONDS))
    except HelperError as error:
        return f"its contents cannot be read ({error})"


def mark_disks(paths: Collection[Path], run_id: str) -> None:
    """Mark disks as a soak's, before any transfer.

    Raises:
        UsageError: a disk cannot be written.
    """
    for path in paths:
        try:
            in_helper(partial(_write_mark, path, run_id), _SECONDS)
        except HelperError as error:
            raise UsageError(f"The disk {path} cannot be written: {error}.") from None


def _problem(path: Path) -> str:
    descriptor = open_direct(path)
    try:
        size = os.lseek(descriptor, 0, os.SEEK_END)
        if size < _SMALLEST:
            return f"it has {size} bytes, but transfers need {_SMALLEST}"
        first = _read(descriptor, 0)
        if first.startswith(_MARK):
            return ""
        # O_DIRECT needs an aligned offset: round it up, the read then reaches the end of the disk.
        last = _read(descriptor, -((_EXAMINED - size) // DATA_OFFSET) * DATA_OFFSET)
    finally:
        os.close(descriptor)
    if any(first) or any(last):
        return "it holds data that no soak wrote"
    return ""


def _read(descriptor: int, offset: int) -> bytes:
    # null_blk transfers nothing: the buffer keeps its zeros, and the disk counts as empty.
    buffer = Mapping(_EXAMINED, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
    try:
        number = read_into(descriptor, buffer.address, _EXAMINED, offset)
        if number:
            raise OSError(number, os.strerror(number))
        return bytes(buffer.bytes)
    finally:
        buffer.close()


def _write_mark(path: Path, run_id: str) -> None:
    text = _MARK + f"run {run_id}\n".encode()
    buffer = Mapping(DATA_OFFSET, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS)
    descriptor = open_direct(path)
    try:
        buffer.bytes[: len(text)] = text
        number = write_from(descriptor, buffer.address, DATA_OFFSET, 0)
        if number:
            raise OSError(number, os.strerror(number))
    finally:
        os.close(descriptor)
        buffer.close()
