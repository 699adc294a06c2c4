# SPDX-License-Identifier: GPL-2.0-only
"""Reads the reference counts of physical pages from the kernel's `struct page` array."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from soak.abi.bpf import KernelReader, KernelSummer
from soak.abi.btf import Btf
from soak.abi.procfs import symbol_address

if TYPE_CHECKING:
    from collections.abc import Iterator

    from soak.regions.pages import PageSpan

_CHUNK_PAGES: Final = 512


@dataclass(frozen=True)
class PageLayout:
    """The size of `struct page` and the offset of its reference count, in bytes."""

    size: int
    refcount: int

    @classmethod
    def of_running_kernel(cls) -> PageLayout:
        """Read the layout from the kernel's BTF.

        Raises:
            OSError, BtfError: the kernel has no BTF, or it lacks the structure.
        """
        page = Btf.of_running_kernel().structure("page")
        return cls(page.size, page.offsets["_refcount"])


class StructPages:
    """Reads `_refcount` of any page through BPF; raises OSError if there is no such page."""

    def __init__(self) -> None:
        """Find the array of `struct page`.

        Raises:
            OSError, BtfError, LookupError: the kernel does not allow to find or read it.
        """
        self.layout = PageLayout.of_running_kernel()
        # KASLR randomises the array's address, and it differs with five-level page tables: x86 keeps it
        # in a variable (arch/x86/mm/kaslr.c).
        with KernelReader(8) as word:
            self._base = struct.unpack("<Q", word.read(symbol_address("vmemmap_base")))[0]
        self._chunk = KernelReader(_CHUNK_PAGES * self.layout.size)
        self._single = KernelReader(self.layout.size)
        self._summer = KernelSummer(self.layout.size, self.layout.refcount)

    def counts(self, span: PageSpan) -> Iterator[list[int]]:
        """Yield the reference counts of a span in chunks, as unsigned 32-bit numbers."""
        frame, end = span.first, span.first + span.count
        while frame < end:
            reader, pages = (
                (self._chunk, _CHUNK_PAGES) if end - frame >= _CHUNK_PAGES else (self._single, 1)
            )
            words = reader.read(self._base + frame * self.layout.size).cast("I")
            yield words[self.layout.refcount // 4 :: self.layout.size // 4].tolist()
            frame += pages

    def totals(self, span: PageSpan) -> tuple[int, int]:
        """Return the sum and the maximum of a span's reference counts; BPF adds them up."""
        total = largest = 0
        for first in range(0, span.count, KernelSummer.MOST):
            address = self._base + (span.first + first) * self.layout.size
            piece, top = self._summer.add(address, min(span.count - first, KernelSummer.MOST))
            total += piece
            largest = max(largest, top)
        return total, largest

    def close(self) -> None:
        self._summer.close()
        self._chunk.close()
        self._single.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
