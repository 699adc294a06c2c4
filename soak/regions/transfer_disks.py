# SPDX-License-Identifier: GPL-2.0-only
"""Block devices that memory is moved to and from: only those that hold nothing, or are a soak's.

A soak leaves its mark in the first block and moves memory behind it. What has neither zeros nor that
mark at its ends holds data that no soak wrote: file systems, partition tables, RAID and LVM all keep
theirs there (btrfs 64 KiB from the beginning, ZFS and md also before the end).
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

# Where transfers begin: a multiple of every logical block size.
DATA_OFFSET: Final = 4096
_MARK: Final = b"dax-soak moves memory to and from this disk\n"
_EXAMINED: Final = 256 << 10
# As long as the longest transfer, behind the mark.
_SMALLEST: Final = DATA_OFFSET + (2 << 20)
_SECONDS: Final = 20.0


def contents_problem(path: Path) -> str:
    """Say why what a disk holds must not be overwritten, or nothing where it may be.

    Nothing is written. A disk may hang, so a helper reads it.
    """
    try:
        return str(in_helper(partial(_problem, path), _SECONDS))
    except HelperError as error:
        return f"what it holds cannot be read ({error})"


def mark_disks(paths: Collection[Path], run_id: str) -> None:
    """Mark disks as a soak's, before anything else is written to them.

    Raises:
        UsageError: one cannot be written.
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
            return f"it has {size} bytes, and transfers take {_SMALLEST}"
        first = _read(descriptor, 0)
        if first.startswith(_MARK):
            return ""
        # O_DIRECT wants whole blocks; a disk may end in the middle of one, and is read to its very end.
        last = _read(descriptor, -((_EXAMINED - size) // DATA_OFFSET) * DATA_OFFSET)
    finally:
        os.close(descriptor)
    if any(first) or any(last):
        return "it holds data that no soak wrote"
    return ""


def _read(descriptor: int, offset: int) -> bytes:
    # A disk that keeps nothing (null_blk) leaves the memory as it is, which is new and zero.
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
