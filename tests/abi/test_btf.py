# SPDX-License-Identifier: GPL-2.0-only
"""Type information: offsets are found in a blob made here, and in the running kernel's own."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

import pytest

from soak.abi.btf import VMLINUX, Btf, BtfError

if TYPE_CHECKING:
    from collections.abc import Iterable

MAGIC = 0xEB9F
INT, POINTER, ARRAY, STRUCT, UNION, ENUM, FORWARD, TYPEDEF, FLOAT, ENUM64 = (
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    8,
    16,
    19,
)


class Blob:
    """Assembles BTF (Documentation/bpf/btf.rst)."""

    def __init__(self) -> None:
        self._types = b""
        self._strings = b"\0"
        self._count = 0

    def add(
        self, kind: int, name: str, size: int, rest: bytes = b"", *, entries: int = 0, flag: int = 0
    ) -> int:
        """Add a type and return its number."""
        info = flag << 31 | kind << 24 | entries
        self._types += struct.pack("<III", self._name(name), info, size) + rest
        self._count += 1
        return self._count

    def integer(self, name: str = "int") -> int:
        return self.add(INT, name, 4, struct.pack("<I", 32))

    def aggregate(
        self,
        kind: int,
        name: str,
        size: int,
        members: Iterable[tuple[str, int, int]],
        *,
        bitfields: bool = False,
    ) -> int:
        """Add a struct or union; a member is its name, its type and its offset in bits."""
        packed = [struct.pack("<III", self._name(name), number, bits) for name, number, bits in members]
        return self.add(kind, name, size, b"".join(packed), entries=len(packed), flag=int(bitfields))

    def to_bytes(self) -> bytes:
        lengths = (0, len(self._types), len(self._types), len(self._strings))
        header = struct.pack("<HBBIIIII", MAGIC, 1, 0, 24, *lengths)
        return header + self._types + self._strings

    def _name(self, name: str) -> int:
        if not name:
            return 0
        offset = len(self._strings)
        self._strings += name.encode() + b"\0"
        return offset


def page_blob() -> Blob:
    """Return a blob with a `struct page` as the kernel has it: parts without names in each other."""
    blob = Blob()
    word = blob.integer("unsigned long")
    # Every kind that brings something along stands before what is looked for.
    blob.add(ARRAY, "", 0, struct.pack("<III", word, word, 4))
    blob.add(ENUM, "colour", 4, struct.pack("<IiIi", 0, 1, 0, 2), entries=2)
    blob.add(ENUM64, "wide", 8, struct.pack("<III", 0, 1, 2), entries=1)
    blob.add(POINTER, "", word)
    blob.add(TYPEDEF, "page", word)
    blob.add(FORWARD, "page", 0)
    blob.add(FLOAT, "double", 8)
    # The inner parts come behind the structure that has them.
    inner_number = 10
    blob.aggregate(
        STRUCT, "page", 64, [("flags", word, 0), ("", inner_number, 64), ("_refcount", word, 52 * 8)]
    )
    inner = blob.aggregate(UNION, "", 40, [("", inner_number + 1, 0), ("index", word, 8 * 8)])
    assert inner == inner_number
    blob.aggregate(STRUCT, "", 40, [("lru", word, 0), ("mapping", word, 16 * 8), ("", word, 24 * 8)])
    blob.aggregate(UNION, "page", 4, [("not_this", word, 0)])
    blob.aggregate(
        STRUCT, "packed", 8, [("low", word, 3 << 24 | 0), ("high", word, 5 << 24 | 35)], bitfields=True
    )
    return blob


def test_fields_of_anonymous_members_are_found() -> None:
    layout = Btf(page_blob().to_bytes()).structure("page")
    assert layout.size == 64
    assert layout.offsets == {"flags": 0, "lru": 8, "mapping": 24, "index": 16, "_refcount": 52}


def test_lookups_work_in_any_order() -> None:
    btf = Btf(page_blob().to_bytes())
    packed = btf.structure("packed")
    assert packed.offsets == {"low": 0, "high": 4}
    assert btf.structure("page").offsets["_refcount"] == 52
    assert btf.structure("packed") == packed


@pytest.mark.parametrize("name", ["nothing", "colour", "double", ""])
def test_only_structures_are_found(name: str) -> None:
    with pytest.raises(BtfError, match=f"no struct {name}"):
        Btf(page_blob().to_bytes()).structure(name)


def test_empty_btf_has_no_structure() -> None:
    with pytest.raises(BtfError, match="no struct page"):
        Btf(Blob().to_bytes()).structure("page")


@pytest.mark.parametrize("data", [b"", b"\x9f\xeb\x01", b"\x7fELF" + bytes(60), bytes(24)])
def test_data_without_btf_magic_is_refused(data: bytes) -> None:
    with pytest.raises(BtfError, match="BTF"):
        Btf(data)


def test_running_kernel_has_struct_page() -> None:
    """Where it has type information its own structure is found; where not, the error says so."""
    if not VMLINUX.exists():
        with pytest.raises(OSError, match="btf") as caught:
            Btf.of_running_kernel()
        assert caught.value.errno == errno.ENOENT
        return
    btf = Btf.of_running_kernel()
    page = btf.structure("page")
    assert page.size in {56, 64, 72, 80}
    assert page.offsets["flags"] == 0
    assert page.offsets["_refcount"] % 4 == 0
    assert 0 < page.offsets["_refcount"] < page.size
    assert page.offsets["mapping"] % 8 == 0
    with pytest.raises(BtfError):
        btf.structure("no_kernel_has_this")
