# SPDX-License-Identifier: GPL-2.0-only
"""Reads a ledger while its writers run; `soak.ledger.writer` documents the guarantees.

Readers use `preadv`: unlike a mapping, it raises no SIGBUS when the file shrinks. The buffer's offset
within its page matters, because a bytewise copy in the kernel tears words (see `LedgerReader._load`).
"""

from __future__ import annotations

import mmap
import os
import struct
import threading
from typing import TYPE_CHECKING, Final, Self

from soak.files.regular import open_regular
from soak.ledger.layout import MIRROR_WORD, WORD, Block, Layout, LedgerError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_PAGE: Final = 4096
_READ_ATTEMPTS: Final = 64


class LedgerReader:
    """Reads a ledger without blocking its writers."""

    def __init__(self, descriptor: int, layout: Layout | None = None) -> None:
        self._descriptor = descriptor
        self.layout = layout or Layout.read(descriptor)
        self.layout.check_size(os.fstat(descriptor).st_size)
        longest = max((block.words for block in self.layout.blocks.values()), default=0)
        self._buffer = memoryview(mmap.mmap(-1, _PAGE + max(1, longest) * WORD))
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path, directory: int | None = None, *, layout: Layout | None = None) -> Self:
        """Open a ledger by path, relative to the descriptor `directory` if given.

        With a `layout`, do not read the file's header, which a guest may have overwritten.

        Raises:
            LedgerError: the file is not a ledger.
            OSError: the file cannot be opened, or is not a regular file.
        """
        descriptor = open_regular(path, directory=directory)
        try:
            return cls(descriptor, layout)
        except BaseException:
            os.close(descriptor)
            raise

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def blocks(self, kind: str) -> list[BlockSnapshot]:
        """Read all blocks of a kind."""
        return [self.block(block.name) for block in self.layout.blocks.values() if block.kind == kind]

    def block(self, name: str) -> BlockSnapshot:
        """Read one block in a single system call.

        Raises:
            LedgerError: the file has shrunk since it was opened.
        """
        block = self.layout.blocks[name]
        length = block.words * WORD
        for _ in range(_READ_ATTEMPTS):
            before = self._mirror_sequence()
            data = self._load(length, block.offset)
            if before % 2 == 0 and before == self._mirror_sequence():
                break
        return BlockSnapshot(block, memoryview(data).cast("Q"), self)

    def group(self, snapshot: BlockSnapshot, name: str) -> tuple[int, ...] | None:
        """Return the words of a group without its sequence number; None if the group stays torn.

        Raises:
            LedgerError: the file has shrunk since it was opened.
        """
        field = snapshot.block.fields[name]
        offset = snapshot.block.offset + field.offset * WORD
        for _ in range(_READ_ATTEMPTS):
            mirror = self._mirror_sequence()
            sequence = self._word(offset)
            if mirror % 2 or sequence % 2:
                continue
            data = self._load(field.words * WORD, offset)
            if sequence == self._word(offset) and mirror == self._mirror_sequence():
                return struct.unpack(f"<{field.words}Q", data)[1:]
        return None

    def _mirror_sequence(self) -> int:
        return self._word(MIRROR_WORD * WORD)

    def _word(self, offset: int) -> int:
        return int.from_bytes(self._load(WORD, offset), "little")

    def _load(self, length: int, offset: int) -> bytes:
        """Read words without tearing any.

        The kernel copies with `rep movsb` on CPUs with fast `rep movsb`. An AMD EPYC copies bytewise if
        the target lies 1 to 31 bytes behind the source (addresses modulo the page size), and then tore
        up to half of the reads of a changing word; at other distances it tore none. This buffer is half
        a page away from the source.
        """
        start = (offset + _PAGE // 2) % _PAGE
        target = self._buffer[start : start + length]
        with self._lock:
            count = os.preadv(self._descriptor, [target], offset)
            data = target.tobytes()
        if count < length:
            raise LedgerError("the file has shrunk since it was opened")
        return data


class BlockSnapshot:
    """The words of a block at one moment."""

    def __init__(self, block: Block, words: memoryview[int], reader: LedgerReader) -> None:
        self.block = block
        self._words = words
        self._reader = reader

    def get(self, name: str, *indices: int) -> int:
        return self._words[self.block.fields[name].position(indices)]

    def word(self, name: str) -> str:
        """Return the word that the field's number stands for.

        Raises:
            LedgerError: the number stands for no word.
        """
        number, words = self.get(name), self.block.fields[name].values
        if number >= len(words):
            raise LedgerError(f"bad value {number} of {name} (expected below {len(words)})")
        return words[number]

    def flat(self, name: str) -> list[int]:
        field = self.block.fields[name]
        return list(self._words[field.offset : field.offset + field.words])

    def rows(self, name: str) -> list[list[int]]:
        """Return the rows of a two-dimensional field."""
        flat, (count, width) = self.flat(name), self.block.fields[name].shape
        return [flat[row * width : (row + 1) * width] for row in range(count)]

    def named(self, name: str) -> dict[str, int]:
        """Return a one-dimensional field by the names along its axis."""
        return dict(zip(self._names(name, 0), self.flat(name), strict=True))

    def named_rows(self, name: str) -> dict[str, dict[str, int]]:
        """Return a two-dimensional field by the names along both axes."""
        columns = self._names(name, 1)
        return {
            row: dict(zip(columns, values, strict=True))
            for row, values in zip(self._names(name, 0), self.rows(name), strict=True)
        }

    def text(self, name: str) -> str:
        words = self.flat(name)
        data = b"".join(word.to_bytes(WORD, "little") for word in words[1:])
        return data[: min(words[0], len(data))].decode(errors="replace")

    def group(self, name: str) -> tuple[int, ...] | None:
        """Read a group again until it is whole; None if its writer stopped in the middle."""
        return self._reader.group(self, name)

    def _names(self, name: str, axis: int) -> Sequence[str]:
        names = self.block.fields[name].axes[axis]
        return [str(number) for number in range(names)] if isinstance(names, int) else names
