# SPDX-License-Identifier: GPL-2.0-only
"""A boot image whose kernel is unpacked: emulation takes seconds for what the host does in one.

The image keeps its real-mode part. A stub replaces the code that unpacks, and enters the kernel as
Documentation/arch/x86/boot.rst says ("64-bit Boot Protocol"). Such a kernel does not move to a random
address (KASLR), and has page tables of four levels.
"""

from __future__ import annotations

import bz2
import hashlib
import lzma
import struct
import zlib
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from soak.lab.cache import Cache

_NAME: Final = "image"

# Fields of the header (arch/x86/include/uapi/asm/bootparam.h, struct setup_header).
_SETUP_SECTORS: Final = 0x1F1
_VERSION: Final = 0x206
_CODE32_START: Final = 0x214
_PAYLOAD: Final = 0x248
_HEADER_END: Final = 0x250
_SECTOR: Final = 512
# The first protocol with a payload, and where a bzImage's protected mode begins.
_FIRST_VERSION: Final = 0x208
_LOADED_AT: Final = 0x100000

# How a kernel is packed, by its first bytes. One that zstd has packed unpacks itself in a second.
_UNPACKERS: Final[Mapping[bytes, Callable[[], _Unpacker]]] = {
    b"\x1f\x8b": lambda: zlib.decompressobj(16 + zlib.MAX_WBITS),
    b"\xfd7zXZ": lzma.LZMADecompressor,
    b"\x5d\0\0": lzma.LZMADecompressor,
    b"BZh": bz2.BZ2Decompressor,
}

# Fields of the kernel (include/uapi/linux/elf.h, struct elf64_hdr and elf64_phdr).
_ELF64: Final = b"\x7fELF\x02\x01"
_EM_X86_64: Final = 62
_PT_LOAD: Final = 1
_ELF_HEADER: Final = struct.Struct("<16sHHIQQQIHHHHHH")
_PROGRAM_HEADER: Final = struct.Struct("<IIQQQQQQ")

# The stub: a page with code and segment descriptors, then page tables that map 4 GiB to themselves.
_PAGE: Final = 4096
_TABLES: Final = _LOADED_AT + _PAGE
_DIRECTORIES: Final = 4
_STUB_SIZE: Final = _PAGE * (3 + _DIRECTORIES)
_PRESENT: Final = 0x3
_LARGE: Final = 0x80
_DESCRIPTORS_AT: Final = 0x100
_LONG_MODE_AT: Final = 0x40
# As the protocol demands: __BOOT_CS (0x10) is code of 64 bits, __BOOT_DS (0x18) data.
_DESCRIPTORS: Final = struct.pack("<4Q", 0, 0, 0x00AF9A000000FFFF, 0x00CF92000000FFFF)
_BOOT_CS: Final = 0x10
_BOOT_DS: Final = 0x18


class _Unpacker(Protocol):
    """What unpacks a stream; `eof` says whether the stream was whole."""

    @property
    def eof(self) -> bool: ...

    def decompress(self, data: bytes, /) -> bytes: ...


class _Kernel(NamedTuple):
    """A kernel as it lies in memory: the address to enter, and its segments in order of address."""

    entry: int
    segments: list[tuple[int, bytes]]


def unpacked_image(cache: Cache, image: Path) -> Path | None:
    """Return the unpacked image, which the cache keeps; None if this one has to unpack itself.

    Raises:
        UsageError: the cache cannot be used, or the image cannot be read.
    """
    try:
        packed = image.read_bytes()
    except OSError as error:
        raise cache.unusable(error) from error
    name = f"unpacked/{hashlib.sha256(packed).hexdigest()[:16]}"
    made = cache.root / name / _NAME
    if made.exists():
        return made
    kernel = _kernel(packed)
    if kernel is None:
        return None

    def build(directory: Path) -> None:
        setup = (packed[_SETUP_SECTORS] + 1) * _SECTOR
        with (directory / _NAME).open("wb") as out:
            out.write(packed[:setup])
            out.write(_stub(kernel.entry))
            for address, data in kernel.segments:
                out.seek(setup + address - _LOADED_AT)
                out.write(data)

    return cache.directory(name, build) / _NAME


def _kernel(packed: bytes) -> _Kernel | None:
    """Return the kernel of an image; None if it is packed, or has to be entered, in another way."""
    payload = _payload(packed)
    make = next((make for magic, make in _UNPACKERS.items() if payload.startswith(magic)), None)
    if make is None:
        return None
    unpacker = make()
    try:
        unpacked = unpacker.decompress(payload)
        kernel = _read_elf(unpacked) if unpacker.eof else None
    except (EOFError, OSError, ValueError, struct.error, lzma.LZMAError, zlib.error):
        # It is damaged, which the machine that boots it will say.
        return None
    if kernel is None or not kernel.segments or kernel.segments[0][0] < _LOADED_AT + _STUB_SIZE:
        return None
    return kernel


def _payload(packed: bytes) -> bytes:
    """Return the packed kernel; nothing if the header has none."""
    if len(packed) < _HEADER_END:
        return b""
    (version,) = struct.unpack_from("<H", packed, _VERSION)
    (start,) = struct.unpack_from("<I", packed, _CODE32_START)
    if version < _FIRST_VERSION or start != _LOADED_AT:
        return b""
    offset, length = struct.unpack_from("<II", packed, _PAYLOAD)
    first = (packed[_SETUP_SECTORS] + 1) * _SECTOR + offset
    return packed[first : first + length]


def _read_elf(data: bytes) -> _Kernel | None:
    """Read the segments of an ELF file; None if it is none for x86-64."""
    ident, _, machine, _, entry, headers, _, _, _, size, count, *_ = _ELF_HEADER.unpack_from(data)
    if not ident.startswith(_ELF64) or machine != _EM_X86_64:
        return None
    segments = []
    for number in range(count):
        kind, _, offset, _, address, length, *_ = _PROGRAM_HEADER.unpack_from(
            data, headers + number * size
        )
        if kind == _PT_LOAD and length:
            segments.append((address, data[offset : offset + length]))
    return _Kernel(entry, sorted(segments))


def _stub(entry: int) -> bytes:
    """Return the code that enters the kernel, and its tables; %esi points to struct boot_params."""
    table = struct.pack("<HI", len(_DESCRIPTORS) - 1, _LOADED_AT + _DESCRIPTORS_AT)
    descriptors = _DESCRIPTORS + table
    pointer = _LOADED_AT + _DESCRIPTORS_AT + len(_DESCRIPTORS)
    enter = b"".join(
        (
            b"\xfa",  # cli
            b"\x0f\x01\x15" + struct.pack("<I", pointer),  # lgdt
            b"\x0f\x20\xe0\x83\xc8\x20\x0f\x22\xe0",  # %cr4 |= PAE
            b"\xb8" + struct.pack("<I", _TABLES) + b"\x0f\x22\xd8",  # %cr3 = the tables
            b"\xb9\x80\x00\x00\xc0\x0f\x32\x0d\x00\x01\x00\x00\x0f\x30",  # EFER |= LME
            b"\x0f\x20\xc0\x0d\x01\x00\x00\x80\x0f\x22\xc0",  # %cr0 |= PG | PE
            b"\xea" + struct.pack("<IH", _LOADED_AT + _LONG_MODE_AT, _BOOT_CS),  # ljmp
        )
    )
    in_long_mode = b"".join(
        (
            b"\x66\xb8" + struct.pack("<H", _BOOT_DS),  # mov ..., %ax
            b"\x8e\xd8\x8e\xc0\x8e\xd0",  # %ds = %es = %ss = %ax
            b"\x89\xf6",  # %esi with zeros above it
            b"\x48\xb8" + struct.pack("<Q", entry) + b"\xff\xe0",  # jmp to the kernel
        )
    )
    code = enter.ljust(_LONG_MODE_AT, b"\x90") + in_long_mode
    return (code.ljust(_DESCRIPTORS_AT, b"\0") + descriptors).ljust(_PAGE, b"\0") + _page_tables()


def _page_tables() -> bytes:
    """Return tables of pages of 2 MiB, each of which is at the address that it is mapped to."""
    directories = [_TABLES + (2 + number) * _PAGE for number in range(_DIRECTORIES)]
    root = struct.pack("<Q", _TABLES + _PAGE | _PRESENT)
    pointers = struct.pack(f"<{_DIRECTORIES}Q", *(place | _PRESENT for place in directories))
    pages = (number << 21 | _PRESENT | _LARGE for number in range(_DIRECTORIES * _PAGE // 8))
    return (
        root.ljust(_PAGE, b"\0")
        + pointers.ljust(_PAGE, b"\0")
        + struct.pack(f"<{_DIRECTORIES * _PAGE // 8}Q", *pages)
    )
