# SPDX-License-Identifier: GPL-2.0-only
"""How a ledger is laid out: the header that describes blocks and fields, written and read.

Layout of the file, little-endian: 8 bytes magic, u64 format, u64 length of the JSON text that
follows, u64 mirror sequence (odd while a copy of the whole ledger is under way), u64 CRC-32 of the
JSON text, the JSON text, padding to a page, blocks. The JSON names each block, its offset, and each
field with its offset (in words from the start of the block), its shape and the names along each
axis. The fields of a block follow each other without a gap.
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
# Which word of the file is the mirror sequence.
MIRROR_WORD: Final = 3
MAX_HEADER: Final = 4 << 20
# The largest ledger that a configuration can ask for has 64 MiB, and its largest block 1 MiB.
MAX_SIZE: Final = 256 << 20
MAX_BLOCK: Final = 16 << 20

_PAGE: Final = 4096
_PREFIX = struct.Struct("<8sQQQQ")
_OFFSET_DIGITS = 16
_MOST_AXES: Final = 4
_SEQUENCE = "sequence"


class LedgerError(Exception):
    """The file is no ledger, is damaged, or has a format that this program does not know."""


# What reading a damaged ledger, or one of another version, can raise: a file that is none or has shrunk,
# and a header whose fields, words, numbers or types are not those that are looked for.
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
    """Words of one meaning in a block.

    `axes` names the entries along each dimension, or is a number where they are only counted.
    `values` says what the numbers stand for, where they stand for words. A text field holds its
    length in bytes in the first word.
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
        """Whether these words must agree, and the first of them is their sequence number."""
        first = self.axes[0] if len(self.axes) == 1 else 0
        return not isinstance(first, int) and first[:1] == (_SEQUENCE,)

    def position(self, indices: tuple[int, ...]) -> int:
        """Return where the block keeps the entry at these indices."""
        position = 0
        for index, length in zip(indices, self.shape, strict=True):
            if not 0 <= index < length:
                raise IndexError(f"{self.name}{list(indices)} is outside {self.shape}")
            position = position * length + index
        return self.offset + position


@dataclass(frozen=True)
class Block:
    """The words of one writer. `labels` says whose they are."""

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
    """All blocks, and facts about the run that do not change."""

    blocks: Mapping[str, Block]
    run: Mapping[str, Any]
    size: int

    @classmethod
    def of(cls, blocks: Iterable[Block], run: Mapping[str, Any]) -> Layout:
        """Place the blocks one behind the other, each on a page of its own.

        Raises:
            ValueError: two blocks have one name, or readers would refuse the description as too long,
                or the blocks as too large.
        """
        unplaced = list(blocks)
        # The offsets are not known yet, and take a few more digits when they are.
        entries = 1 + sum(1 + len(block.fields) for block in unplaced)
        header = _PREFIX.size + len(_describe(unplaced, run, 0)) + entries * _OFFSET_DIGITS
        header_room = _round_up(header, _PAGE)
        if header_room > MAX_HEADER:
            raise ValueError(f"the header of this ledger would have {header} bytes")
        placed: dict[str, Block] = {}
        offset = header_room
        for block in unplaced:
            if block.name in placed:
                raise ValueError(f"two blocks of this ledger are called {block.name!r}")
            fields, word = {}, 0
            for field in block.fields.values():
                fields[field.name] = replace(field, offset=word)
                word += field.words
            placed[block.name] = replace(block, fields=fields, offset=offset)
            if word * WORD > MAX_BLOCK:
                raise ValueError(f"block {block.name!r} of this ledger would have {word} words")
            offset += _round_up(word * WORD, _PAGE)
        # Memory that a virtual machine shares must be a power of two.
        size = 1 << (offset - 1).bit_length()
        if size > MAX_SIZE:
            raise ValueError(f"this ledger would have {size} bytes")
        return cls(placed, run, size)

    def to_bytes(self) -> bytes:
        """Return the header as it stands at the start of the file."""
        text = _describe(self.blocks.values(), self.run, self.size)
        return _PREFIX.pack(MAGIC, FORMAT, len(text), 0, zlib.crc32(text)) + text

    def check_size(self, actual: int) -> None:
        """Refuse a file that is shorter than its layout.

        Raises:
            LedgerError: it is.
        """
        if actual < self.size:
            raise LedgerError(f"it should have {self.size} bytes and has {actual}")

    @classmethod
    def read(cls, descriptor: int) -> Layout:
        """Read the header of a file, which often is a small part of what it may have.

        Raises:
            LedgerError: as `from_bytes` raises it.
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
            LedgerError: it is none, is damaged, or is of a format that is not known.
        """
        if head.startswith(GZIP_MAGIC):
            raise LedgerError("it is compressed with gzip")
        if len(head) < _PREFIX.size:
            raise LedgerError(f"the file is only {len(head)} bytes long")
        magic, version, length, _, checksum = _PREFIX.unpack_from(head)
        if magic != MAGIC:
            raise LedgerError(f"it starts with {magic!r}, not with {MAGIC!r}")
        if version != FORMAT:
            raise LedgerError(f"its format is {version}, and this program reads format {FORMAT}")
        if length > MAX_HEADER or len(head) < _PREFIX.size + length:
            raise LedgerError(f"its header should have {length} bytes and is cut short")
        end = _PREFIX.size + length
        text = head[_PREFIX.size : end]
        if zlib.crc32(text) != checksum:
            raise LedgerError("its header is damaged: the checksum does not fit")
        try:
            layout = _layout(parse_json(text))
        except (ValueError, KeyError, TypeError) as error:
            raise LedgerError(f"its header does not describe a ledger ({error!r})") from None
        _check_places(layout, end)
        return layout


def _check_places(layout: Layout, end: int) -> None:
    """Refuse blocks that overlap, or lie in the header, which has `end` bytes, or behind the file."""
    for block in sorted(layout.blocks.values(), key=lambda block: block.offset):
        if block.offset < end or block.offset % WORD:
            raise LedgerError(f"its header places block {shown(block.name)} where it cannot be")
        end = block.offset + block.words * WORD
        if end - block.offset > MAX_BLOCK:
            raise LedgerError(f"its header gives block {shown(block.name)} too many words")
        # Beside an axis without entries another may have any length, and takes no space.
        for field in block.fields.values():
            if max(field.shape, default=0) * WORD > layout.size:
                raise LedgerError(f"its header gives field {shown(field.name)} too many entries")
    if end > layout.size or layout.size > MAX_SIZE:
        raise LedgerError(f"its header describes {end} bytes in a file of {layout.size}")


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
    """Build what a header describes; ValueError, KeyError or TypeError where that is nothing."""
    blocks = {entry["name"]: _block(entry) for entry in described["blocks"]}
    if len(blocks) < len(described["blocks"]):
        raise ValueError("two blocks have one name")
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
            raise ValueError(f"field {shown(field.name)} is there twice or is out of place")
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
        raise ValueError(f"{shown(value)} should be a whole number from 0 to {MAX_SIZE}")
    return value


def _string(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{shown(value)} should be a text")
    return value


def _strings(value: object) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError(f"{shown(value)} should be a list")
    return tuple(_string(item) for item in value)


def _mapping(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"{shown(value)} should be an object")
    return value


def _round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
