# SPDX-License-Identifier: GPL-2.0-only
"""The ledger round-trips: whatever is written by name is read back by the header alone."""

from __future__ import annotations

import itertools
import os
import stat
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from soak.ledger.layout import MAX_BLOCK, MAX_HEADER, WORD, Block, Field, Layout
from soak.ledger.reader import LedgerReader
from soak.ledger.writer import BlockWriter, Ledger

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = 4096
LARGEST = (1 << 64) - 1

deterministic = settings(derandomize=True, database=None, deadline=None, max_examples=100)

# JSON has no lone surrogates; names come from enumerations and from the configuration.
names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
name_lists = st.lists(names, max_size=4, unique=True).map(tuple)
axes = st.lists(st.integers(0, 4) | name_lists, max_size=3).map(tuple)
number_fields = st.builds(Field, names, axes, name_lists)
text_fields = st.builds(Field, names, st.tuples(st.integers(0, 6)), text=st.just(True))
labels = st.dictionaries(names, names | st.integers(), max_size=3)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | names,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(names, children, max_size=3),
    max_leaves=10,
)
runs = st.dictionaries(names, json_values, max_size=4)


def make_block(name: str, kind: str, fields: list[Field], labelled: dict[str, Any]) -> Block:
    return Block(name, kind, {field.name: field for field in fields}, labelled)


blocks = st.builds(
    make_block,
    names,
    names,
    st.lists(number_fields | text_fields, max_size=6, unique_by=lambda field: field.name),
    labels,
)
layouts = st.builds(Layout.of, st.lists(blocks, max_size=4, unique_by=lambda block: block.name), runs)


def block_of(*fields: Field) -> Layout:
    return Layout.of([make_block("block", "kind", list(fields), {})], {})


def entries(field: Field) -> Iterator[tuple[int, ...]]:
    """Yield the indices of all entries of a field."""
    return itertools.product(*(range(length) for length in field.shape))


def numbers() -> Iterator[int]:
    """Yield words that are all different and use every byte."""
    return (LARGEST - count * 0x0101_0101_0101_0101 % LARGEST for count in itertools.count())


@given(layouts)
@deterministic
def test_a_layout_is_read_back_from_its_header(layout: Layout) -> None:
    assert Layout.from_bytes(layout.to_bytes()) == layout
    padding = bytes(layout.size - len(layout.to_bytes()))
    assert Layout.from_bytes(layout.to_bytes() + padding) == layout


@given(layouts)
@deterministic
def test_blocks_do_not_overlap_or_exceed_the_file(layout: Layout) -> None:
    spans = [(0, len(layout.to_bytes()))]
    for block in layout.blocks.values():
        assert block.offset % PAGE == 0
        for field in block.fields.values():
            start = block.offset + field.offset * WORD
            spans.append((start, start + field.words * WORD))
            assert block.offset <= start
            assert start + field.words * WORD <= block.offset + block.words * WORD
    used = sorted(span for span in spans if span[0] < span[1])
    for (_, end), (start, _) in itertools.pairwise(used):
        assert end <= start
    assert used[-1][1] <= layout.size
    assert layout.size.bit_count() == 1


@given(layouts)
@deterministic
def test_numbers_are_read_back_by_header_alone(layout: Layout) -> None:
    written: dict[tuple[str, str, tuple[int, ...]], int] = {}
    words = numbers()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "ledger"
        ledger = Ledger.create(path, layout)
        for block in layout.blocks.values():
            writer = ledger.block(block.name)
            for field in block.fields.values():
                for indices in () if field.text else entries(field):
                    written[block.name, field.name, indices] = next(words)
                    writer.set(field.name, written[block.name, field.name, indices], *indices)
        with LedgerReader.open(path) as reader:
            assert reader.layout == layout
            snapshots = {name: reader.block(name) for name in reader.layout.blocks}
        for (block_name, field_name, indices), value in written.items():
            assert snapshots[block_name].get(field_name, *indices) == value
            assert ledger.block(block_name).get(field_name, *indices) == value
        for snapshot in snapshots.values():
            for field in snapshot.block.fields.values():
                if field.text:
                    assert snapshot.text(field.name) == ""
                else:
                    assert snapshot.flat(field.name) == [
                        written[snapshot.block.name, field.name, indices] for indices in entries(field)
                    ]


@given(name_lists, name_lists | st.integers(0, 4))
@deterministic
def test_arrays_are_accessed_by_name(rows: tuple[str, ...], columns: tuple[str, ...] | int) -> None:
    layout = block_of(Field("before"), Field("row", (rows,)), Field("table", (rows, columns)))
    column_names = [str(n) for n in range(columns)] if isinstance(columns, int) else list(columns)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "ledger"
        writer = Ledger.create(path, layout).block("block")
        words = numbers()
        expected = {row: dict(zip(column_names, words, strict=False)) for row in rows}
        for row, cells in expected.items():
            writer.set_at("row", rows.index(row), row)
            writer.add_at("row", 5, row)
            for column, value in cells.items():
                if isinstance(columns, int):
                    writer.set("table", value, rows.index(row), int(column))
                else:
                    writer.set_at("table", value, row, column)
        with LedgerReader.open(path) as reader:
            snapshot = reader.block("block")
    assert snapshot.named("row") == {row: 5 + number for number, row in enumerate(rows)}
    assert snapshot.named_rows("table") == expected
    assert snapshot.rows("table") == [list(cells.values()) for cells in expected.values()]
    assert snapshot.get("before") == 0


# Python hands out lone surrogates for file names that are not UTF-8; characters() has them too.
@given(st.text(st.characters()), st.text(st.characters()), st.integers(0, 8))
@example("", "caf\udce9", 2)
@example("longer", "\U0001f600" * 3, 1)
@deterministic
def test_text_is_truncated_to_whole_characters(first: str, value: str, room: int) -> None:
    layout = block_of(Field("before"), Field("text", (room,), text=True), Field("after"))
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "ledger"
        writer = Ledger.create(path, layout).block("block")
        writer.set("before", LARGEST)
        writer.set("after", LARGEST)
        writer.set_text("text", first)
        writer.set_text("text", value)
        with LedgerReader.open(path) as reader:
            snapshot = reader.block("block")
    whole = value.encode(errors="replace").decode()
    fitting = itertools.takewhile(
        lambda end: len(whole[:end].encode()) <= room * WORD, range(len(whole) + 1)
    )
    assert snapshot.text("text") == whole[: max(fitting)]
    assert snapshot.get("before") == snapshot.get("after") == LARGEST


def test_add_to_an_overwritten_word_wraps(tmp_path: Path) -> None:
    layout = block_of(Field("count"), Field("group", (("sequence", "value"),)))
    ledger = Ledger.create(tmp_path / "ledger", layout)
    writer = ledger.block("block")
    writer.set("count", LARGEST)
    writer.add("count", 3)
    assert writer.get("count") == 2
    writer.add("count", -3)
    assert writer.get("count") == LARGEST
    writer.view("group")[0] = LARGEST
    writer.set_group("group", [7])
    # Whoever knows the layout reads on without the header.
    with (tmp_path / "ledger").open("r+b") as file:
        file.write(b"\xff" * 4096)
    with LedgerReader.open(tmp_path / "ledger", layout=layout) as reader:
        assert reader.block("block").get("count") == LARGEST


def test_words_stand_for_numbers(tmp_path: Path) -> None:
    layout = block_of(Field("state", values=("absent", "running", "ended")))
    writer = Ledger.create(tmp_path / "ledger", layout).block("block")
    with LedgerReader.open(tmp_path / "ledger") as reader:
        assert reader.block("block").word("state") == "absent"
        writer.set_word("state", "ended")
        assert reader.block("block").word("state") == "ended"
        assert reader.block("block").get("state") == 2
        with pytest.raises(ValueError, match="not in"):
            writer.set_word("state", "flying")
        assert reader.block("block").word("state") == "ended"


def test_the_flat_view_is_the_field(tmp_path: Path) -> None:
    layout = block_of(Field("before"), Field("table", (2, ("a", "b", "c"))), Field("after"))
    writer = Ledger.create(tmp_path / "ledger", layout).block("block")
    view = writer.view("table")
    for position in range(6):
        view[position] = position + 1
    assert len(view) == 6
    assert writer.get("table", 1, 0) == 4
    with LedgerReader.open(tmp_path / "ledger") as reader:
        snapshot = reader.block("block")
    assert snapshot.rows("table") == [[1, 2, 3], [4, 5, 6]]
    assert snapshot.get("before") == snapshot.get("after") == 0


@pytest.mark.parametrize("indices", [(2, 0), (0, 3), (-1, 0), (0, -1), (5, 5)])
def test_index_outside_a_field_is_refused(tmp_path: Path, indices: tuple[int, int]) -> None:
    layout = block_of(Field("before"), Field("table", (2, 3)), Field("after", (9,)))
    writer = Ledger.create(tmp_path / "ledger", layout).block("block")
    with LedgerReader.open(tmp_path / "ledger") as reader:
        with pytest.raises(IndexError, match="table"):
            writer.set("table", 1, *indices)
        with pytest.raises(IndexError, match="table"):
            reader.block("block").get("table", *indices)
        assert not any(reader.block("block").flat("before"))
        assert not any(reader.block("block").flat("after"))


def test_names_along_a_counted_axis_are_refused(tmp_path: Path) -> None:
    layout = block_of(Field("table", (2, ("a", "b"))))
    writer = Ledger.create(tmp_path / "ledger", layout).block("block")
    with pytest.raises(KeyError, match="table"):
        writer.set_at("table", 1, "0", "a")


def test_blocks_are_found_by_kind(tmp_path: Path) -> None:
    field = Field("number")
    layout = Layout.of(
        [
            make_block("w0", "worker", [field], {"role": "mapper"}),
            make_block("s", "supervisor", [field], {}),
            make_block("w1", "worker", [field], {"role": "invalidator"}),
        ],
        {},
    )
    ledger = Ledger.create(tmp_path / "ledger", layout)
    for number, name in enumerate(layout.blocks):
        ledger.block(name).set("number", number)
    with LedgerReader.open(tmp_path / "ledger") as reader:
        workers = reader.blocks("worker")
        assert [(found.block.name, found.get("number")) for found in workers] == [("w0", 0), ("w1", 2)]
        assert [found.block.labels["role"] for found in workers] == ["mapper", "invalidator"]
        assert reader.blocks("host") == []


def test_duplicate_block_names_are_refused() -> None:
    with pytest.raises(ValueError, match="'same'"):
        Layout.of([make_block("same", "a", [], {}), make_block("same", "b", [], {})], {})


def test_oversized_header_is_refused() -> None:
    with pytest.raises(ValueError, match="header"):
        Layout.of([], {"long": "x" * MAX_HEADER})


def test_oversized_blocks_are_refused() -> None:
    large = Field("large", (MAX_BLOCK // 8,))
    with pytest.raises(ValueError, match="the ledger would have"):
        Layout.of([make_block(f"block-{n}", "a", [large], {}) for n in range(16)], {})
    with pytest.raises(ValueError, match="block 'one'"):
        Layout.of([make_block("one", "a", [large, Field("more")], {})], {})


def test_ledger_opens_relative_to_a_directory(tmp_path: Path) -> None:
    Ledger.create(tmp_path / "ledger", block_of(Field("number"))).block("block").set("number", 7)
    directory = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with LedgerReader.open(Path("ledger"), directory) as reader:
            assert reader.block("block").get("number") == 7
    finally:
        os.close(directory)


def test_created_ledger_opens_for_writing(tmp_path: Path) -> None:
    layout = block_of(Field("number"), Field("other"))
    created = Ledger.create(tmp_path / "ledger", layout)
    opened = Ledger.open(tmp_path / "ledger")
    assert opened.layout == layout
    created.block("block").set("number", 1)
    opened.block("block").add("number", 2)
    opened.block("block").set("other", 4)
    assert created.block("block").get("number") == 3
    assert created.block("block").get("other") == 4


def test_clearing_a_block_keeps_its_neighbours(tmp_path: Path) -> None:
    fields = [Field("numbers", (600,)), Field("group", (("sequence", "value"),))]
    layout = Layout.of([make_block(name, "kind", fields, {}) for name in "abc"], {})
    ledger = Ledger.create(tmp_path / "ledger", layout)
    for name in "abc":
        _fill(ledger.block(name))
    ledger.block("b").clear()
    with LedgerReader.open(tmp_path / "ledger") as reader:
        assert reader.block("a").flat("numbers") == reader.block("c").flat("numbers")
        assert reader.block("a").flat("numbers") == [*range(1, 601)]
        assert reader.block("b").flat("numbers") == [0] * 600
        assert reader.block("b").group("group") == (0,)


def test_a_mirror_is_a_copy(tmp_path: Path) -> None:
    fields = [Field("numbers", (600,)), Field("group", (("sequence", "value"),))]
    layout = Layout.of([make_block(name, "kind", fields, {}) for name in "abc"], {"seed": 1})
    source = Ledger.create(tmp_path / "source", layout)
    mirror = Ledger.create(tmp_path / "mirror", layout)
    for name in "abc":
        _fill(source.block(name))
    mirror.copy_from(source)
    with (
        LedgerReader.open(tmp_path / "source") as original,
        LedgerReader.open(tmp_path / "mirror") as copy,
    ):
        assert copy.layout == original.layout
        for name in "abc":
            for field in ("numbers", "group"):
                assert copy.block(name).flat(field) == original.block(name).flat(field)
            assert copy.block(name).group("group") == (9,)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_only_owner_and_group_may_read(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        Ledger.create(tmp_path / "ledger", block_of(Field("number")))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "ledger").stat().st_mode) == 0o640


def test_layout_ignores_given_offsets() -> None:
    stray = replace(Field("number"), offset=99)
    assert block_of(stray) == block_of(Field("number"))


def _fill(writer: BlockWriter) -> None:
    numbers_ = writer.view("numbers")
    for position in range(len(numbers_)):
        numbers_[position] = position + 1
    group = writer.view("group")
    group[0] += 1
    group[1] = 9
    group[0] += 1
