# SPDX-License-Identifier: GPL-2.0-only
"""Boot images whose kernel the host unpacks. Every test in tests/boots starts such a kernel."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soak.lab.cache import Cache
from soak.lab.host.machine import Machine
from soak.lab.host.scratch import Scratch
from soak.lab.kernels.store import Kernel
from soak.lab.kernels.unpacked import unpacked_image
from soak.lab.protocol import Order
from tests.lab.support import lab_request

if TYPE_CHECKING:
    from collections.abc import Callable

ENTRY: Final = 0x1000000
SEGMENTS: Final = ((ENTRY, b"text" * 2000), (ENTRY + 0x200000, b"data" * 100))
SETUP: Final = 4 * 512
LOADED_AT: Final = 0x100000
PACKERS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "gzip": gzip.compress,
    "xz": lambda data: lzma.compress(data, check=lzma.CHECK_CRC32),
    "lzma": lambda data: lzma.compress(data, format=lzma.FORMAT_ALONE),
    "bzip2": bz2.compress,
}


def elf(*segments: tuple[int, bytes], machine: int = 62) -> bytes:
    """Return an ELF file with these segments, by address."""
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    count = len(segments)
    header = struct.pack(
        "<16sHHIQQQIHHHHHH", ident, 2, machine, 1, ENTRY, 64, 0, 0, 64, 56, count, 0, 0, 0
    )
    headers, body = b"", b""
    start = 64 + 56 * count
    for address, data in segments:
        offset = start + len(body)
        headers += struct.pack(
            "<IIQQQQQQ", 1, 7, offset, address, address, len(data), 2 * len(data), 4096
        )
        body += data
    return header + headers + body


def boot_image(payload: bytes, *, version: int = 0x20F, start: int = LOADED_AT) -> bytes:
    """Return a bzImage with a packed kernel behind some code."""
    setup = bytearray(SETUP)
    setup[0x1F1] = SETUP // 512 - 1
    struct.pack_into("<H", setup, 0x1FE, 0xAA55)
    struct.pack_into("<4sH", setup, 0x202, b"HdrS", version)
    struct.pack_into("<I", setup, 0x214, start)
    struct.pack_into("<II", setup, 0x248, 700, len(payload) + 4)
    # Behind what is packed stands the unpacked size.
    return bytes(setup) + bytes(700) + payload + struct.pack("<I", 1 << 20) + b"end"


def unpacked(directory: Path, image: bytes) -> bytes | None:
    (directory / "bzImage").write_bytes(image)
    found = unpacked_image(Cache(directory / "cache"), directory / "bzImage")
    return None if found is None else found.read_bytes()


@pytest.mark.parametrize("packer", PACKERS)
def test_segments_lie_where_they_are_loaded(tmp_path: Path, packer: str) -> None:
    packed = boot_image(PACKERS[packer](elf(*SEGMENTS)))
    image = unpacked(tmp_path, packed)
    assert image is not None
    assert image[:SETUP] == packed[:SETUP]
    for address, data in SEGMENTS:
        place = SETUP + address - LOADED_AT
        assert image[place : place + len(data)] == data


def test_page_tables_map_four_gigabytes_to_themselves(tmp_path: Path) -> None:
    image = unpacked(tmp_path, boot_image(gzip.compress(elf(*SEGMENTS))))
    assert image is not None

    def entry(table: int, number: int) -> int:
        place = SETUP + table - LOADED_AT + 8 * number
        return int(struct.unpack_from("<Q", image, place)[0])

    (root,) = struct.unpack_from("<I", image, image.index(b"\xb8", SETUP) + 1)
    for address in range(0, 4 << 30, 2 << 20):
        pointers = entry(root, 0) & ~0xFFF
        directory = entry(pointers, address >> 30) & ~0xFFF
        assert entry(directory, address >> 21 & 511) == address | 0x83


@pytest.mark.parametrize(
    "image",
    [
        pytest.param(boot_image(b"\x28\xb5\x2f\xfd" + bytes(100)), id="zstd"),
        pytest.param(
            boot_image(gzip.compress(b"no ELF file, and long enough for its header")), id="no-elf"
        ),
        pytest.param(boot_image(gzip.compress(elf(*SEGMENTS, machine=3))), id="32-bit"),
        pytest.param(boot_image(gzip.compress(elf((0x102000, b"text")))), id="too-low"),
        pytest.param(boot_image(gzip.compress(elf())), id="empty"),
        pytest.param(boot_image(gzip.compress(elf(*SEGMENTS)), version=0x207), id="old"),
        pytest.param(boot_image(gzip.compress(elf(*SEGMENTS)), start=0x200000), id="elsewhere"),
        pytest.param(boot_image(gzip.compress(elf(*SEGMENTS)))[:-20], id="truncated"),
        pytest.param(b"short", id="short"),
    ],
)
def test_other_images_unpack_themselves(tmp_path: Path, image: bytes) -> None:
    assert unpacked(tmp_path, image) is None
    assert not (tmp_path / "cache/unpacked").exists()


def test_an_image_is_unpacked_once(tmp_path: Path) -> None:
    image = tmp_path / "bzImage"
    image.write_bytes(boot_image(gzip.compress(elf(*SEGMENTS))))
    cache = Cache(tmp_path / "cache")
    first = unpacked_image(cache, image)
    assert first is not None
    before = first.stat().st_mtime_ns
    assert unpacked_image(cache, image) == first
    assert first.stat().st_mtime_ns == before


@pytest.mark.parametrize(("accelerator", "booted"), [("tcg", "unpacked"), ("kvm", "bzImage")])
def test_only_emulated_machines_boot_it(tmp_path: Path, accelerator: str, booted: str) -> None:
    kernel = Kernel("stand-in", "6.1.0", tmp_path / "bzImage", None, tmp_path / "unpacked")
    request = lab_request(tmp_path, kernel=kernel)
    with Scratch(tmp_path, (), Order("run-1", {}, "ext4", [], 1.0)) as scratch:
        machine = Machine.of_boot(request, accelerator, scratch, 4096)
        assert machine.kernel == tmp_path / booted


@given(st.data())
def test_damage_leaves_an_image_to_itself(data: st.DataObject) -> None:
    image = bytearray(boot_image(PACKERS["xz"](elf(*SEGMENTS))))
    for _ in range(data.draw(st.integers(1, 5))):
        image[data.draw(st.integers(SETUP + 700, len(image) - 9))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as directory:
        found = unpacked(Path(directory), bytes(image))
    whole = bytes(image) == boot_image(PACKERS["xz"](elf(*SEGMENTS)))
    assert (found is not None) == whole
