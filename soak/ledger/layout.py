# SPDX-License-Identifier: GPL-2.0-only
"""The layout of a ledger: writes and reads the header that describes blocks and fields.

The file is little-endian: 8 bytes magic, u64 format, u64 length of the JSON text, u64 mirror sequence
(odd while a copy of the whole ledger is under way), u64 CRC-32 of the JSON text, the JSON text, padding
to a page, blocks. The JSON has the name and offset of each block, and of each field its name, offset (in
words from the start of the block), shape and the names along each axis. Fields have no gaps between them.
"""

from __future__ import annotations

import json
import math
import os
import struct
import zlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from soak.files.bounded_json import parse_json
from soak.files.printable import shown
from soak.files.regular import GZIP_MAGIC

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MAGIC: Final = b"DAXSOAK\0"
FORMAT: Final = 1
WORD: Final = 8
# The index of the mirror sequence, in words.
MIRROR_WORD: Final = 3
MAX_HEADER: Final = 4 << 20
# The largest configuration needs a ledger of 64 MiB, with blocks of up to 1 MiB.
MAX_SIZE: Final = 256 << 20
MAX_BLOCK: Final = 16 << 20

_PAGE: Final = 4096
_PREFIX = struct.Struct("<8sQQQQ")
_OFFSET_DIGITS = 16
_MOST_AXES: Final = 4
_SEQUENCE = "sequence"


class LedgerError(Exception):
    """The file is not a ledger, is damaged, or has an unsupported format."""


# The exceptions of reading a damaged ledger or one of another version: the file is not a ledger or has
# shrunk, or its header has unexpected fields, words, numbers or types.
UNREADABLE: Final = (
    LedgerError,
    OSError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    ArithmeticError,
)


@dataclass(frozen=True)
class Field:
    """A field of a block: an array of words.

    `axes` has, for each dimension, the names of its entries or only their number. `values` has the
    words that the numbers stand for, if any. A text field has its length in bytes in the first word.
    """

    name: str
    axes: tuple[tuple[str, ...] | int, ...] = ()
    values: tuple[str, ...] = ()
    text: bool = False
    offset: int = 0

    @cached_property
    def shape(self) -> tuple[int, ...]:
        return tuple(axis if isinstance(axis, int) else len(axis) for axis in self.axes)

    @cached_property
    def words(self) -> int:
        return math.prod(self.shape) + (1 if self.text else 0)

    @property
    def is_group(self) -> bool:
        """Whether the words must agree; their first is then a sequence number."""
        first = self.axes[0] if len(self.axes) == 1 else 0
        return not isinstance(first, int) and first[:1] == (_SEQUENCE,)

    def position(self, indices: tuple[int, ...]) -> int:
        """Return the position of an entry, in words from the start of the block."""
        position = 0
        for index, length in zip(indices, self.shape, strict=True):
            if not 0 <= index < length:
                raise IndexError(f"{self.name}{list(indices)} is outside {self.shape}")
            position = position * length + index
        return self.offset + position


@dataclass(frozen=True)
class Block:
    """The fields of one writer, which `labels` describes."""

    name: str
    kind: str
    fields: Mapping[str, Field]
    labels: Mapping[str, Any]
    offset: int = 0

    @property
    def words(self) -> int:
        return sum(field.words for field in self.fields.values())


@dataclass(frozen=True)
class Layout:
    """All blocks, and the constant facts of the run."""

    blocks: Mapping[str, Block]
    run: Mapping[str, Any]
    size: int

    @classmethod
    def of(cls, blocks: Iterable[Block], run: Mapping[str, Any]) -> Layout:
        """Place the blocks in order, each at a page boundary.

        Raises:
            ValueError: two blocks have the same name, or header, a block or the file would be too large.
        """
        unplaced = list(blocks)
        # Leave room for the digits of the offsets, which are not known yet.
        entries = 1 + sum(1 + len(block.fields) for block in unplaced)
        header = _PREFIX.size + len(_describe(unplaced, run, 0)) + entries * _OFFSET_DIGITS
        header_room = _round_up(header, _PAGE)
        if header_room > MAX_HEADER:
            raise ValueError(f"the ledger's header would have {header} bytes (at most {MAX_HEADER})")
        placed: dict[str, Block] = {}
        offset = header_room
        for block in unplaced:
            if block.name in placed:
                raise ValueError(f"duplicate block {block.name!r} in the ledger")
            fields, word = {}, 0
            for field in block.fields.values():
                fields[field.name] = replace(field, offset=word)
                word += field.words
            placed[block.name] = replace(block, fields=fields, offset=offset)
            if word * WORD > MAX_BLOCK:
                raise ValueError(f"block {block.name!r} of the ledger would have {word} words")
            offset += _round_up(word * WORD, _PAGE)
        # Memory that a virtual machine shares must be a power of two.
        size = 1 << (offset - 1).bit_length()
        if size > MAX_SIZE:
            raise ValueError(f"the ledger would have {size} bytes (at most {MAX_SIZE})")
        return cls(placed, run, size)

    def to_bytes(self) -> bytes:
        """Return the header, from the start of the file."""
        text = _describe(self.blocks.values(), self.run, self.size)
        return _PREFIX.pack(MAGIC, FORMAT, len(text), 0, zlib.crc32(text)) + text

    def check_size(self, actual: int) -> None:
        """Check the size of the file.

        Raises:
            LedgerError: the file is shorter than its layout.
        """
        if actual < self.size:
            raise LedgerError(f"the file has {actual} bytes instead of {self.size}")

    @classmethod
    def read(cls, descriptor: int) -> Layout:
        """Read the header of a file.

        Raises:
            LedgerError: as for `from_bytes`.
            OSError: the file cannot be read.
        """
        head = os.pread(descriptor, _PREFIX.size, 0)
        if len(head) == _PREFIX.size:
            length = min(_PREFIX.unpack(head)[2], MAX_HEADER)
            head = os.pread(descriptor, _PREFIX.size + length, 0)
        return cls.from_bytes(head)

    @classmethod
    def from_bytes(cls, head: bytes) -> Layout:
        """Read a header.

        Raises:
            LedgerError: the bytes are not a header, are damaged, or have an unsupported format.
        """
        if head.startswith(GZIP_MAGIC):
            raise LedgerError("the file is compressed with gzip")
        if len(head) < _PREFIX.size:
            raise LedgerError(f"the file has only {len(head)} bytes")
        magic, version, length, _, checksum = _PREFIX.unpack_from(head)
        if magic != MAGIC:
            raise LedgerError(f"bad magic {magic!r} (expected {MAGIC!r})")
        if version != FORMAT:
            raise LedgerError(f"unsupported format {version} (expected {FORMAT})")
        if length > MAX_HEADER or len(head) < _PREFIX.size + length:
            raise LedgerError(f"the header of {length} bytes is truncated")
        end = _PREFIX.size + length
        text = head[_PREFIX.size : end]
        if zlib.crc32(text) != checksum:
            raise LedgerError("the header is damaged: wrong checksum")
        try:
            layout = _layout(parse_json(text))
        except (ValueError, KeyError, TypeError) as error:
            raise LedgerError(f"the header does not describe a ledger ({error!r})") from None
        _check_places(layout, end)
        return layout


def _check_places(layout: Layout, end: int) -> None:
    """Refuse blocks that overlap each other or the header of `end` bytes, or exceed the file."""
    for block in sorted(layout.blocks.values(), key=lambda block: block.offset):
        if block.offset < end or block.offset % WORD:
            raise LedgerError(f"the header has a bad offset for block {shown(block.name)}")
        end = block.offset + block.words * WORD
        if end - block.offset > MAX_BLOCK:
            raise LedgerError(f"the header has too many words in block {shown(block.name)}")
        # A field with an empty axis takes no space, however long its other axes are.
        for field in block.fields.values():
            if max(field.shape, default=0) * WORD > layout.size:
                raise LedgerError(f"the header has too many entries in field {shown(field.name)}")
    if end > layout.size or layout.size > MAX_SIZE:
        raise LedgerError(f"the header describes {end} bytes in a file of {layout.size}")


def _describe(blocks: Iterable[Block], run: Mapping[str, Any], size: int) -> bytes:
    described = {
        "size": size,
        "run": dict(run),
        "blocks": [
            {
                "name": block.name,
                "kind": block.kind,
                "offset": block.offset,
                "labels": dict(block.labels),
                "fields": [
                    {
                        "name": field.name,
                        "offset": field.offset,
                        "axes": list(field.axes),
                        "values": list(field.values),
                        "text": field.text,
                    }
                    for field in block.fields.values()
                ],
            }
            for block in blocks
        ],
    }
    return json.dumps(described, separators=(",", ":")).encode()


def _layout(described: dict[str, Any]) -> Layout:
    """Build a layout from a header; ValueError, KeyError or TypeError if the header is invalid."""
    blocks = {entry["name"]: _block(entry) for entry in described["blocks"]}
    if len(blocks) < len(described["blocks"]):
        raise ValueError("duplicate block")
    return Layout(blocks, _mapping(described["run"]), _whole(described["size"]))


def _block(entry: dict[str, Any]) -> Block:
    fields: dict[str, Field] = {}
    word = 0
    for described in entry["fields"]:
        field = Field(
            _string(described["name"]),
            _axes(described["axes"]),
            _strings(described["values"]),
            bool(described["text"]),
            _whole(described["offset"]),
        )
        if field.name in fields or field.offset != word:
            raise ValueError(f"field {shown(field.name)} is duplicate or out of place")
        fields[field.name] = field
        word += field.words
    return Block(
        _string(entry["name"]),
        _string(entry["kind"]),
        fields,
        _mapping(entry["labels"]),
        _whole(entry["offset"]),
    )


def _axes(value: object) -> tuple[tuple[str, ...] | int, ...]:
    if not isinstance(value, list) or len(value) > _MOST_AXES:
        raise ValueError(f"a field has at most {_MOST_AXES} axes")
    return tuple(_axis(axis) for axis in value)


def _axis(value: object) -> tuple[str, ...] | int:
    return _strings(value) if isinstance(value, list) else _whole(value)


def _whole(value: object) -> int:
    if not isinstance(value, int) or not 0 <= value <= MAX_SIZE:
        raise ValueError(f"{shown(value)} is not a whole number from 0 to {MAX_SIZE}")
    return value


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{shown(value)} is not a text")
    return value


def _strings(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError(f"{shown(value)} is not a list")
    return tuple(_string(item) for item in value)


def _mapping(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{shown(value)} is not an object")
    return value


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
