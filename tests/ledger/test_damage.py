# SPDX-License-Identifier: GPL-2.0-only
"""Whatever is in the file, a reader reads what was written or raises LedgerError, nothing else."""

from __future__ import annotations

import json
import math
import os
import resource
import struct
import tempfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from soak.ledger.layout import FORMAT, MAGIC, Block, Field, Layout, LedgerError
from soak.ledger.reader import LedgerReader
from soak.ledger.writer import Ledger

if TYPE_CHECKING:
    from collections.abc import Iterator

deterministic = settings(derandomize=True, database=None, deadline=None, max_examples=150)

PREFIX = struct.Struct("<8sQQQQ")
MIRROR_WORD_BYTES = range(24, 32)
GROUP = (1, 2)

Contents = dict[tuple[str, str], object]


def small_layout() -> Layout:
    fields = (
        Field("pid"),
        Field("state", values=("absent", "running")),
        Field("row", (("a", "b", "c"),)),
        Field("table", (("x", "y"), 3)),
        Field("group", (("sequence", "left", "right"),)),
        Field("name", (4,), text=True),
    )
    by_name = {field.name: field for field in fields}
    blocks = [Block("first", "worker", by_name, {"role": "mapper"}), Block("second", "x", by_name, {})]
    return Layout.of(blocks, {"seed": 1})


def create(path: Path) -> Ledger:
    """Make a ledger in which every word differs from its neighbours."""
    ledger = Ledger.create(path, small_layout())
    for number, name in enumerate(ledger.layout.blocks):
        block = ledger.block(name)
        block.set("pid", 1000 + number)
        block.set_word("state", "running")
        for field in ("row", "table"):
            view = block.view(field)
            for position in range(len(view)):
                view[position] = 100 * number + 10 * position + len(field)
        group = block.view("group")
        group[0], group[1], group[2] = 2, *GROUP
        block.set_text("name", "a name é")
    return ledger


def read_all(reader: LedgerReader) -> Contents:
    """Read everything that the header names, in every way that fits it."""
    contents: Contents = {}
    for block in reader.layout.blocks.values():
        snapshot = reader.block(block.name)
        for field in block.fields.values():
            contents[block.name, field.name] = snapshot.flat(field.name)
            if field.text:
                contents[block.name, field.name] = snapshot.text(field.name)
            elif not field.axes and field.values:
                contents[block.name, field.name] = snapshot.word(field.name)
            elif len(field.axes) == 1:
                contents[block.name, field.name] = snapshot.named(field.name)
            elif len(field.axes) == 2:
                contents[block.name, field.name] = snapshot.named_rows(field.name)
            if field.is_group:
                contents[block.name, field.name] = snapshot.group(field.name)
        assert len(reader.blocks(block.kind)) >= 1
    return contents


def contents_of(path: Path) -> Contents:
    with LedgerReader.open(path) as reader:
        return read_all(reader)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    create(tmp_path / "ledger")
    return tmp_path / "ledger"


@pytest.fixture
def descriptor(path: Path) -> Iterator[int]:
    opened = os.open(path, os.O_RDWR)
    yield opened
    os.close(opened)


def test_changed_header_byte_is_refused_or_harmless(path: Path, descriptor: int) -> None:
    undamaged = contents_of(path)
    length = len(small_layout().to_bytes())
    whole = os.pread(descriptor, length, 0)
    for position in range(length):
        for change in (0x01, 0x04, 0x10, 0x80, 0xFF):
            os.pwrite(descriptor, bytes([whole[position] ^ change]), position)
            if position not in MIRROR_WORD_BYTES:
                with pytest.raises(LedgerError):
                    LedgerReader.open(path)
                with pytest.raises(LedgerError):
                    Ledger.open(path)
                continue
            # An odd number there says that the file is half of a copy: groups are not known then.
            contents = contents_of(path)
            for key, value in undamaged.items():
                assert contents[key] == value or (key[1] == "group" and contents[key] is None)
        os.pwrite(descriptor, whole[position : position + 1], position)
    assert contents_of(path) == undamaged


def test_file_truncated_anywhere_is_refused(path: Path) -> None:
    first = small_layout().blocks["first"]
    header, blocks = range(len(small_layout().to_bytes()) + 9), range(path.stat().st_size)
    around = range(first.offset - 9, first.offset + first.words * 8 + 9)
    for length in sorted({*header, *around, *blocks[::31], blocks[-1]}, reverse=True):
        os.truncate(path, length)
        with pytest.raises(LedgerError):
            LedgerReader.open(path)
        if length % 64 == 0:
            with pytest.raises(LedgerError):
                Ledger.open(path)


def test_shrinking_file_is_detected(path: Path, descriptor: int) -> None:
    undamaged = contents_of(path)
    second = small_layout().blocks["second"]
    with LedgerReader.open(path) as reader:
        snapshot = reader.block("second")
        for length in reversed(range(second.offset - 16, second.offset + second.words * 8)):
            os.ftruncate(descriptor, length)
            with pytest.raises(LedgerError):
                reader.block("second")
            if length < second.offset + 8:
                with pytest.raises(LedgerError):
                    snapshot.group("group")
            first = reader.block("first")
            assert first.named("row") == undamaged["first", "row"]
            assert first.group("group") == GROUP
        # What was read is kept.
        assert snapshot.named("row") == undamaged["second", "row"]
        for length in (4096, 40, 32, 8, 0):
            os.ftruncate(descriptor, length)
            with pytest.raises(LedgerError):
                reader.blocks("worker")
            with pytest.raises(LedgerError):
                snapshot.group("group")


@pytest.mark.parametrize("number", [0, FORMAT + 1, 1 << 63])
def test_unsupported_format_is_refused_by_number(path: Path, descriptor: int, number: int) -> None:
    os.pwrite(descriptor, struct.pack("<Q", number), len(MAGIC))
    with pytest.raises(LedgerError, match=rf"format {number}\b.* {FORMAT}\b"):
        LedgerReader.open(path)


@given(st.binary(max_size=5000), st.booleans())
@example(b"", False)
@example(MAGIC, False)
@deterministic
def test_random_bytes_are_not_a_ledger(data: bytes, sparse: bool) -> None:  # noqa: FBT001 - drawn
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "ledger"
        path.write_bytes(data)
        if sparse:
            os.truncate(path, 1 << 20)
        with pytest.raises(LedgerError):
            LedgerReader.open(path)
        with pytest.raises(LedgerError):
            Ledger.open(path)
        with pytest.raises(LedgerError):
            Layout.from_bytes(data)


@given(st.data())
@deterministic
def test_random_block_contents_read_or_raise(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "ledger"
        create(path)
        undamaged = contents_of(path)
        first, second = small_layout().blocks.values()
        sequence = second.fields["group"].offset * 8
        garbage = data.draw(st.binary(min_size=second.words * 8, max_size=second.words * 8))
        with path.open("r+b") as file:
            os.pwrite(file.fileno(), garbage, second.offset)
        with LedgerReader.open(path) as reader:
            snapshot = reader.block("second")
            assert isinstance(snapshot.text("name"), str)
            assert snapshot.group("group") is None or garbage[sequence] % 2 == 0
            number = snapshot.get("state")
            if number < 2:
                assert snapshot.word("state") == ("absent", "running")[number]
            else:
                with pytest.raises(LedgerError, match="state"):
                    snapshot.word("state")
            for field in first.fields:
                assert reader.block("first").flat(field)
            assert reader.block("first").text("name") == undamaged["first", "name"]


# --- headers whose checksum fits ---


def with_header(path: Path, described: str | dict[str, Any]) -> None:
    """Write a header that is intact, whatever it describes, into a file that is large enough."""
    text = (described if isinstance(described, str) else json.dumps(described)).encode()
    path.write_bytes(PREFIX.pack(MAGIC, FORMAT, len(text), 0, zlib.crc32(text)) + text)
    os.truncate(path, 1 << 20)


def description() -> dict[str, Any]:
    """Return what the small ledger's header says, as JSON."""
    described = json.loads(small_layout().to_bytes()[PREFIX.size :])
    assert isinstance(described, dict)
    return described


def places(value: Any) -> Iterator[tuple[Any, Any]]:  # noqa: ANN401 - any JSON
    """Yield every container of a JSON value with every key or index in it."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


def test_undamaged_description_is_read(tmp_path: Path) -> None:
    with_header(tmp_path / "ledger", description())
    with LedgerReader.open(tmp_path / "ledger") as reader:
        assert reader.layout == small_layout()


STRANGE_VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    7,
    1 << 70,
    0.5,
    float("inf"),
    "",
    "pid",
    [],
    [1, 2],
    ["a"],
    {},
    {"a": 1},
)


def test_strange_description_raises_documented_errors_only(tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    refused = 0
    for number in range(len(list(places(description())))):
        for value in STRANGE_VALUES:
            described = description()
            container, key = list(places(described))[number]
            container[key] = value
            refused += _refused(path, described)
        described = description()
        container, key = list(places(described))[number]
        del container[key]
        refused += _refused(path, described)
    assert refused > 1000


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{",
        "\ud7ff",
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"blocks":[],"run":{},"size":1e400}',
        '{"blocks":[],"run":{},"size":' + "9" * 10_000 + "}",
        '{"blocks":{},"run":{},"size":65536,"size":-1}',
        '{"blocks":[],"run":[],"size":65536}',
        '{"blocks":"first","run":{},"size":65536}',
    ],
    ids=range(12),
)
def test_invalid_description_is_refused(tmp_path: Path, text: str) -> None:
    assert _refused(tmp_path / "ledger", text)


def test_overlapping_blocks_and_fields_are_refused(tmp_path: Path) -> None:
    for first, second in ((4096, 4096), (4096, 4104), (8192, 4096), (4096, 1 << 16), (8, 8192)):
        described = description()
        described["blocks"][0]["offset"] = first
        described["blocks"][1]["offset"] = second
        assert _refused(tmp_path / "ledger", described) == ((first, second) != (8192, 4096))
    for offset in (0, 2, 3, 1 << 20):
        described = description()
        described["blocks"][0]["fields"][1]["offset"] = offset
        assert _refused(tmp_path / "ledger", described)
    for name in ("blocks", "fields"):
        described = description()
        entries = described["blocks"] if name == "blocks" else described["blocks"][0]["fields"]
        entries[1]["name"] = entries[0]["name"]
        assert _refused(tmp_path / "ledger", described)


def test_entries_without_space_are_bounded(tmp_path: Path) -> None:
    """Whoever reads them by their names would make as many texts."""
    for axes in ([10**12, 0], [0, 10**12], [[], 10**12]):
        described = description()
        # The block's first field, whose place no other depends on.
        described["blocks"][0]["fields"].append(
            {**described["blocks"][0]["fields"][0], "name": "many", "axes": axes, "values": []}
        )
        last = described["blocks"][0]["fields"][-2]
        described["blocks"][0]["fields"][-1]["offset"] = last["offset"] + words_of(last)
        assert _refused(tmp_path / "ledger", described)


def words_of(field: dict[str, Any]) -> int:
    lengths = [axis if isinstance(axis, int) else len(axis) for axis in field["axes"]]
    return math.prod(lengths) + bool(field["text"])


def _refused(path: Path, described: str | dict[str, Any]) -> bool:
    """Say whether the reader refuses; otherwise all that the header names must be readable."""
    with_header(path, described)
    try:
        reader = LedgerReader.open(path)
    except LedgerError:
        return True
    with reader:
        read_all(reader)
    return False


# --- creating ---


def test_existing_file_is_not_overwritten(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(FileExistsError):
        Ledger.create(path, Layout.of([], {}))
    assert path.read_bytes() == before
    other = path.with_name("other")
    other.write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        Ledger.create(other, small_layout())
    assert other.read_bytes() == b"mine"


def test_a_dangling_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "ledger").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        Ledger.create(tmp_path / "ledger", small_layout())
    assert not (tmp_path / "elsewhere").exists()


def test_space_is_allocated_before_any_store(tmp_path: Path) -> None:
    numbers = Field("numbers", (1 << 17,))
    layout = Layout.of([Block("block", "kind", {"numbers": numbers}, {})], {})
    Ledger.create(tmp_path / "ledger", layout)
    status = (tmp_path / "ledger").stat()
    assert status.st_size == layout.size >= 1 << 20
    assert status.st_blocks * 512 >= layout.size


def test_full_disk_leaves_no_partial_ledger(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            Ledger.create(tmp_path / "ledger", small_layout())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
    create(tmp_path / "ledger")


@pytest.mark.parametrize("open_ledger", [LedgerReader.open, Ledger.open])
def test_nonregular_file_raises_os_error(tmp_path: Path, open_ledger: Any) -> None:  # noqa: ANN401 - either
    with pytest.raises(FileNotFoundError):
        open_ledger(tmp_path / "missing")
    with pytest.raises(IsADirectoryError):
        open_ledger(tmp_path)


def test_refused_ledger_leaves_no_open_descriptor(tmp_path: Path) -> None:
    (tmp_path / "ledger").write_bytes(b"x" * 5000)
    (tmp_path / "empty").touch()
    before = sorted(Path("/proc/self/fd").iterdir())
    for name in ("ledger", "empty", "missing"):
        for open_ledger in (LedgerReader.open, Ledger.open):
            with pytest.raises((LedgerError, OSError)):
                open_ledger(tmp_path / name)
    assert sorted(Path("/proc/self/fd").iterdir()) == before
