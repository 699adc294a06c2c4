# SPDX-License-Identifier: GPL-2.0-only
"""Writes the ledger: the state and the counts of a soak, in a file of fixed layout in shared memory.

A header describes the layout, so that a reader needs only the file. Blocks of 64-bit words follow. Each
block has one writer, and readers take no lock:

* One store writes a word: `memoryview.cast("Q")` does so, but `struct.pack_into` clears the word first.
* Words that must agree form a group, whose first word is its sequence number, named `sequence`. It is odd
  while the writer changes the group, and a reader retries. If it stays odd, the writer stopped in the
  middle, and readers report the group as torn.
* The file's space is allocated in advance: a store into a hole on a full disk raises SIGBUS.
"""

from __future__ import annotations

import mmap
import os
from typing import TYPE_CHECKING, Final, Self

from soak.errors import UsageError
from soak.files.regular import open_regular
from soak.ledger.layout import MAX_HEADER, MIRROR_WORD, WORD, Block, Layout, LedgerError

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

_READ_ATTEMPTS: Final = 64
_LARGEST: Final = (1 << 64) - 1


class Ledger:
    """A ledger that this process writes: a shared mapping of the whole file."""

    def __init__(self, layout: Layout, memory: mmap.mmap) -> None:
        self.layout = layout
        self._memory = memory
        self._words = memoryview(memory).cast("Q")

    @classmethod
    def create(cls, path: Path, layout: Layout) -> Self:
        """Create a ledger file, allocated in full and readable by its group.

        Raises:
            OSError: the file exists, or there is no space.
        """
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        try:
            os.fchmod(descriptor, 0o640)  # independent of the umask
            os.posix_fallocate(descriptor, 0, layout.size)
            ledger = cls(layout, mmap.mmap(descriptor, layout.size))
        except BaseException:
            path.unlink()
            raise
        finally:
            os.close(descriptor)
        head = layout.to_bytes()
        memoryview(ledger._memory)[: len(head)] = head
        return ledger

    @classmethod
    def open(cls, path: Path) -> Self:
        """Map an existing ledger (a file, or the guest's shared memory) for writing.

        Raises:
            LedgerError: the file is not a ledger.
            OSError: the file cannot be opened, or is not a regular file.
        """
        descriptor = open_regular(path, os.O_RDWR)
        try:
            size = os.fstat(descriptor).st_size
            if size == 0:
                raise LedgerError("the file is empty")
            memory = mmap.mmap(descriptor, size)
        finally:
            os.close(descriptor)
        layout = Layout.from_bytes(memory[:MAX_HEADER])
        layout.check_size(size)
        return cls(layout, memory)

    @classmethod
    def reopen(cls, path: Path, layout: Layout) -> Self:
        """Map the ledger of a resumed run for writing.

        Raises:
            UsageError: the ledger is missing or damaged, or has another configuration or version.
        """
        try:
            ledger = cls.open(path)
        except (OSError, LedgerError) as error:
            raise UsageError(
                f"The run cannot be resumed: its ledger {path} cannot be used ({error})."
            ) from None
        if ledger.layout.to_bytes() != layout.to_bytes():
            raise UsageError(
                f"The run cannot be resumed: another configuration or another version of dax-soak made "
                f"the ledger {path}. Start a new run."
            )
        return ledger

    def block(self, name: str) -> BlockWriter:
        """Return the writer of one block."""
        block = self.layout.blocks[name]
        first = block.offset // WORD
        return BlockWriter(block, self._words[first : first + block.words])

    def to_bytes(self) -> bytes:
        """Return a copy of the whole file. Only the writer of its groups may call this."""
        return bytes(self._memory)

    def copy_from(self, source: Ledger, kinds: Collection[str] | None = None) -> None:
        """Copy the blocks of these kinds, or all, from `source`, which must have the same layout."""
        # A killed copier may have left an odd number.
        self._words[MIRROR_WORD] |= 1
        for block in self.layout.blocks.values():
            if kinds is None or block.kind in kinds:
                first = block.offset // WORD
                last = first + block.words
                self._words[first:last] = source._words[first:last]
                for field in block.fields.values():
                    if field.is_group:
                        self._copy_group(source, first + field.offset, field.words)
        self._words[MIRROR_WORD] = _wrapped(self._words[MIRROR_WORD] + 1)

    def _copy_group(self, source: Ledger, first: int, length: int) -> None:
        """Copy a group; if it keeps changing, mark the copy as torn."""
        for _ in range(_READ_ATTEMPTS):
            sequence = source._words[first]
            self._words[first : first + length] = source._words[first : first + length]
            if sequence % 2 == 0 and source._words[first] == sequence:
                self._words[first] = sequence
                return
        self._words[first] = sequence | 1


class BlockWriter:
    """Writes the fields of a block. For speed, call `view` once and index the result."""

    def __init__(self, block: Block, words: memoryview[int]) -> None:
        self.block = block
        self._words = words

    def view(self, name: str) -> memoryview[int]:
        """Return the words of a field, flat, for reading and writing."""
        field = self.block.fields[name]
        return self._words[field.offset : field.offset + field.words]

    def set(self, name: str, value: int, *indices: int) -> None:
        self._words[self.block.fields[name].position(indices)] = value

    def add(self, name: str, amount: int, *indices: int) -> None:
        """Add to a word, modulo 2^64.

        No count overflows by itself, but in the lab a dying kernel may overwrite the ledger.
        """
        position = self.block.fields[name].position(indices)
        self._words[position] = _wrapped(self._words[position] + amount)

    def get(self, name: str, *indices: int) -> int:
        return self._words[self.block.fields[name].position(indices)]

    def index(self, name: str, *labels: str) -> tuple[int, ...]:
        """Return the indices of the entry with these names."""
        axes = self.block.fields[name].axes
        found = []
        for axis, label in zip(axes, labels, strict=True):
            if isinstance(axis, int):
                raise KeyError(f"{name} has no names along this axis")
            found.append(axis.index(label))
        return tuple(found)

    def names(self, name: str) -> tuple[str, ...]:
        """Return the names along the first axis of a field."""
        axis = self.block.fields[name].axes[0]
        if isinstance(axis, int):
            raise KeyError(f"{name} has no names along this axis")
        return axis

    def add_at(self, name: str, amount: int, *labels: str) -> None:
        self.add(name, amount, *self.index(name, *labels))

    def set_at(self, name: str, value: int, *labels: str) -> None:
        self.set(name, value, *self.index(name, *labels))

    def set_word(self, name: str, word: str) -> None:
        """Store the number that stands for a word of the field's list."""
        self.set(name, self.block.fields[name].values.index(word))

    def set_group(self, name: str, values: Sequence[int]) -> None:
        """Write the words of a group after its sequence number, which is odd meanwhile.

        A killed writer may have left the number odd.
        """
        words = self.view(name)
        if len(values) != len(words) - 1:
            raise ValueError(f"{name} has {len(words) - 1} words, not {len(values)}")
        words[0] |= 1
        for position, value in enumerate(values, start=1):
            words[position] = value
        words[0] = _wrapped(words[0] + 1)

    def set_text(self, name: str, value: str) -> None:
        """Write a text, truncated to whole characters; store its length last."""
        field = self.block.fields[name]
        words = self._words[field.offset : field.offset + field.words]
        room = (field.words - 1) * WORD
        data = value.encode(errors="replace")[:room].decode(errors="ignore").encode()
        words[0] = 0
        padded = data + b"\0" * (-len(data) % WORD)
        for position in range(len(padded) // WORD):
            words[1 + position] = int.from_bytes(padded[position * WORD :][:WORD], "little")
        words[0] = len(data)

    def text(self, name: str) -> str:
        """Return the text of a field."""
        words = self.view(name)
        data = b"".join(word.to_bytes(WORD, "little") for word in words[1:])
        return data[: min(words[0], len(data))].decode(errors="replace")

    def clear(self) -> None:
        """Set all words to zero, except the sequence numbers of groups, which advance."""
        sequences = {field.offset for field in self.block.fields.values() if field.is_group}
        for position in sequences:
            self._words[position] |= 1
        for position in range(len(self._words)):
            if position not in sequences:
                self._words[position] = 0
        for position in sequences:
            self._words[position] = _wrapped(self._words[position] + 1)


def _wrapped(value: int) -> int:
    """Return a number modulo 2^64."""
    return value & _LARGEST
