# SPDX-License-Identifier: GPL-2.0-only
"""Offsets of fields in kernel structures, from the running kernel's BTF.

Format: Documentation/bpf/btf.rst.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

VMLINUX: Final = Path("/sys/kernel/btf/vmlinux")

_BTF_MAGIC: Final = 0xEB9F
_HEADER = struct.Struct("<HBBIIIII")
_TYPE = struct.Struct("<III")
_MEMBER = struct.Struct("<III")
_BTF_KIND_STRUCT, _BTF_KIND_UNION = 4, 5
# Bytes that follow a type, by kind: a fixed part, and a part for each of its `vlen` entries.
_TRAILERS: Final = {
    1: (4, 0),  # int
    3: (12, 0),  # array
    _BTF_KIND_STRUCT: (0, 12),
    _BTF_KIND_UNION: (0, 12),
    6: (0, 8),  # enum
    13: (0, 8),  # function prototype
    14: (4, 0),  # variable
    15: (0, 12),  # section
    17: (4, 0),  # declaration tag
    19: (0, 12),  # enum64
}


@dataclass(frozen=True)
class StructLayout:
    """Size of a structure and byte offset of each field, including those of anonymous members."""

    size: int
    offsets: dict[str, int]


class BtfError(Exception):
    """The BTF is damaged, or lacks the structure."""


class Btf:
    """BTF, parsed only as far as a lookup needs."""

    def __init__(self, data: bytes) -> None:
        if len(data) < _HEADER.size:
            raise BtfError(f"BTF is truncated: {len(data)} bytes, expected at least {_HEADER.size}")
        magic, _, _, header, self._types, length, strings, _ = _HEADER.unpack_from(data)
        if magic != _BTF_MAGIC:
            raise BtfError(f"BTF has magic {magic:#x}, expected {_BTF_MAGIC:#x}")
        self._data = data
        self._types += header
        self._end = self._types + length
        self._strings = header + strings
        self._known = [0, self._types]  # offsets by type number: type 0 is void, type 1 comes first

    @classmethod
    def of_running_kernel(cls) -> Btf:
        """Read the BTF of the running kernel.

        Raises:
            OSError: the kernel lacks CONFIG_DEBUG_INFO_BTF.
        """
        return cls(VMLINUX.read_bytes())

    def structure(self, name: str) -> StructLayout:
        """Return the layout of `struct name`.

        Raises:
            BtfError: the kernel has no such structure.
        """
        number = 1
        while (offset := self._offset(number)) is not None:
            name_offset, info, size = _TYPE.unpack_from(self._data, offset)
            if _kind(info) == _BTF_KIND_STRUCT and name_offset and self._string(name_offset) == name:
                found: dict[str, int] = {}
                self._collect(offset, 0, found)
                return StructLayout(size, found)
            number += 1
        raise BtfError(f"the kernel's BTF has no struct {name}")

    def _collect(self, offset: int, base: int, found: dict[str, int]) -> None:
        _, info, _ = _TYPE.unpack_from(self._data, offset)
        for index in range(info & 0xFFFF):
            position = offset + _TYPE.size + index * _MEMBER.size
            name_offset, number, bits = _MEMBER.unpack_from(self._data, position)
            start = base + (bits & 0xFFFFFF if info >> 31 else bits) // 8
            if name_offset:
                found.setdefault(self._string(name_offset), start)
            else:
                inner = self._offset(number)
                if inner is not None and self._is_aggregate(inner):
                    self._collect(inner, start, found)

    def _is_aggregate(self, offset: int) -> bool:
        return _kind(_TYPE.unpack_from(self._data, offset)[1]) in {_BTF_KIND_STRUCT, _BTF_KIND_UNION}

    def _offset(self, number: int) -> int | None:
        """Return the offset of a type, walking on from the last known type; None past the end."""
        known = self._known
        while len(known) <= number:
            offset = known[-1]
            if offset >= self._end:
                return None
            info = _TYPE.unpack_from(self._data, offset)[1]
            fixed, each = _TRAILERS.get(_kind(info), (0, 0))
            known.append(offset + _TYPE.size + fixed + each * (info & 0xFFFF))
        return known[number] if known[number] < self._end else None

    def _string(self, offset: int) -> str:
        start = self._strings + offset
        return self._data[start : self._data.index(b"\0", start)].decode()


def _kind(info: int) -> int:
    return info >> 24 & 0x1F
