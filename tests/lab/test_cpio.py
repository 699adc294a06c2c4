# SPDX-License-Identifier: GPL-2.0-only
"""Archives in the "newc" format, read back by a parser that shares no code with the writer."""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from soak.lab.image.cpio import CpioWriter

HEADER_BYTES = 110
TRAILER = b"TRAILER!!!"
TOOL_SECONDS = 60

deterministic = settings(derandomize=True, database=None, deadline=None, max_examples=60)


@dataclass(frozen=True)
class Entry:
    """One member of an archive, as a kernel would unpack it."""

    mode: int
    data: bytes
    inode: int
    links: int


def parse(archive: bytes) -> dict[bytes, Entry]:
    """Read all archives that follow each other (buffer-format.rst), or fail."""
    members: dict[bytes, Entry] = {}
    while archive:
        archive = parse_one(archive, members)
    return members


def parse_one(archive: bytes, members: dict[bytes, Entry]) -> bytes:
    """Add the members of the first archive, and return what follows it."""
    place, inodes = 0, set()
    while True:
        assert archive[place : place + 6] == b"070701"
        digits = archive[place + 6 : place + HEADER_BYTES]
        assert len(digits) == HEADER_BYTES - 6
        numbers = [int(digits[start : start + 8], 16) for start in range(0, len(digits), 8)]
        inode, mode, uid, gid, links, time, size, *devices, name_size, check = numbers
        assert (uid, gid, time, check) == (0, 0, 0, 0)
        assert devices == [0, 0, 0, 0]
        end = place + HEADER_BYTES + name_size
        name = archive[place + HEADER_BYTES : end]
        assert name.endswith(b"\0")
        name = name[:-1]
        assert b"\0" not in name
        data_start = skip_zeros(archive, end, 4)
        data = archive[data_start : data_start + size]
        assert len(data) == size
        place = skip_zeros(archive, data_start + size, 4)
        if name == TRAILER:
            assert size == 0
            return archive[skip_zeros(archive, place, 512) :]
        # A kernel makes no directories on its own, and takes equal inodes for hard links.
        parent = name.rpartition(b"/")[0]
        assert parent == b"" or stat.S_ISDIR(members[parent].mode)
        assert inode not in inodes
        inodes.add(inode)
        members[name] = Entry(mode, data, inode, links)


def skip_zeros(archive: bytes, place: int, alignment: int) -> int:
    end = -(-place // alignment) * alignment
    assert archive[place:end] == bytes(end - place)
    return end


def test_the_parser_reads_a_handwritten_archive() -> None:
    def member(numbers: str, rest: bytes) -> bytes:
        return b"070701" + numbers.replace(" ", "").encode() + rest

    zero = "00000000 "
    archive = member(
        "00000007 000081A4" + zero * 2 + "00000001" + zero + "00000003" + zero * 4 + "00000002" + zero,
        b"a\0xyz\0",
    ) + member(
        "00000008" + zero * 3 + "00000001" + zero * 6 + "0000000B" + zero, b"TRAILER!!!\0" + b"\0" * 3
    )
    archive += bytes(-len(archive) % 512)
    assert parse(archive) == {b"a": Entry(stat.S_IFREG | 0o644, b"xyz", 7, 1)}


# --- trees ---

# Any byte but two may be in a name; Python has those that are no UTF-8 as lone surrogates.
names = (
    st.binary(min_size=1, max_size=12)
    .filter(lambda name: b"/" not in name and b"\0" not in name and name not in {b".", b".."})
    .map(os.fsdecode)
)
targets = st.binary(min_size=1, max_size=30).filter(lambda target: b"\0" not in target).map(os.fsdecode)


@dataclass(frozen=True)
class File:
    data: bytes
    mode: int


@dataclass(frozen=True)
class Link:
    target: str


Tree = dict[str, "File | Link | Tree"]

# Tests run without privileges too: the owner must be able to read what is put into an archive.
modes = st.sampled_from([0o400, 0o444, 0o644, 0o700, 0o755, 0o4755, 0o777])
leaves = st.builds(File, st.binary(max_size=40), modes) | st.builds(Link, targets)
trees: st.SearchStrategy[Tree] = st.dictionaries(
    names,
    st.recursive(leaves, lambda children: st.dictionaries(names, children, max_size=4), max_leaves=12),
    max_size=5,
)


def plant(directory: Path, tree: Tree) -> None:
    for name, node in tree.items():
        path = directory / name
        if isinstance(node, File):
            path.write_bytes(node.data)
            path.chmod(node.mode)
        elif isinstance(node, Link):
            path.symlink_to(node.target)
        else:
            path.mkdir()
            plant(path, node)


def expected(tree: Tree, prefix: bytes) -> dict[bytes, tuple[int, bytes]]:
    members: dict[bytes, tuple[int, bytes]] = {}
    for name, node in tree.items():
        place = prefix + os.fsencode(name)
        if isinstance(node, File):
            members[place] = (stat.S_IFREG | node.mode, node.data)
        elif isinstance(node, Link):
            # The file system, and pathlib with it, may write a target shorter than it was given.
            members[place] = (stat.S_IFLNK | 0o777, os.fsencode(Path(node.target)))
        else:
            members[place] = (stat.S_IFDIR | 0o755, b"")
            members |= expected(node, place + b"/")
    return members


def archive_of(source: Path, prefix: str = "") -> bytes:
    out = io.BytesIO()
    writer = CpioWriter(out)
    writer.tree(source, prefix)
    writer.close()
    return out.getvalue()


@given(trees, st.sampled_from(["", "usr/", "usr/lib/"]))
@example({"caf\udce9": File(b"latin", 0o644), "link": Link("caf\udce9/..")}, "usr/")
@deterministic
def test_any_tree_round_trips(tree: Tree, prefix: str) -> None:
    with tempfile.TemporaryDirectory() as directory:
        plant(Path(directory), tree)
        archive = archive_of(Path(directory), prefix)
    assert len(archive) % 512 == 0
    members = parse(archive)
    parents = {
        parent: (stat.S_IFDIR | 0o755, b"")
        for parent in (b"usr", b"usr/lib")
        if tree and prefix.encode().startswith(parent + b"/")
    }
    found = {name: (entry.mode, entry.data) for name, entry in members.items()}
    assert found == expected(tree, prefix.encode()) | parents
    assert all(entry.links == 1 + stat.S_ISDIR(entry.mode) for entry in members.values())


@given(trees)
@deterministic
def test_equal_trees_make_equal_archives(tree: Tree) -> None:
    """An archive is cached by its contents: neither order, nor time, nor place show in it."""
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as other:
        plant(Path(one), tree)
        plant(Path(other), dict(reversed(tree.items())))
        for path in Path(other).rglob("*"):
            os.utime(path, (1, 1), follow_symlinks=False)
        archive = archive_of(Path(one))
        assert archive == archive_of(Path(other))
    # File systems list a directory in an order of their own.
    found = [os.fsdecode(name).split("/") for name in parse(archive)]
    assert found == sorted(found)


@given(st.lists(trees, max_size=4))
@deterministic
def test_concatenated_archives_are_read(several: list[Tree]) -> None:
    """A kernel unpacks layer upon layer, and a later one wins."""
    out = io.BytesIO()
    everything: dict[bytes, tuple[int, bytes]] = {}
    for number, tree in enumerate(several):
        with tempfile.TemporaryDirectory() as directory:
            plant(Path(directory), tree)
            writer = CpioWriter(out)
            writer.tree(Path(directory), f"{number}/")
            writer.file("last", b"%d" % number)
            writer.close()
        everything |= expected(tree, b"%d/" % number)
        everything[b"last"] = (stat.S_IFREG | 0o644, b"%d" % number)
        if tree:
            everything[b"%d" % number] = (stat.S_IFDIR | 0o755, b"")
    members = parse(out.getvalue())
    assert {name: (entry.mode, entry.data) for name, entry in members.items()} == everything


# --- single members ---


def test_missing_parents_are_made_once() -> None:
    out = io.BytesIO()
    writer = CpioWriter(out)
    writer.file("a/b/c", b"1", 0o600)
    writer.directory("a/b", 0o700)
    writer.directory("a/d", 0o1777)
    writer.symlink("a/d/e", "../b/c")
    writer.directory("a/d")
    writer.close()
    members = parse(out.getvalue())
    assert {name.decode(): oct(entry.mode) for name, entry in members.items()} == {
        "a": "0o40755",
        "a/b": "0o40755",
        "a/b/c": "0o100600",
        "a/d": "0o41777",
        "a/d/e": "0o120777",
    }
    assert out.getvalue().count(b"070701") == 1 + len(members)


def test_a_linked_directory_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_bytes(b"once")
    (tmp_path / "linked").symlink_to("real")
    (tmp_path / "loop").symlink_to(".")
    members = parse(archive_of(tmp_path))
    assert sorted(members) == [b"linked", b"loop", b"real", b"real/file"]
    assert stat.S_ISLNK(members[b"linked"].mode)
    assert members[b"linked"].data == b"real"
    assert stat.S_ISLNK(members[b"loop"].mode)


def test_special_files_are_omitted(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    assert sorted(parse(archive_of(tmp_path))) == [b"file"]


def test_an_empty_tree_makes_an_archive(tmp_path: Path) -> None:
    archive = archive_of(tmp_path)
    assert parse(archive) == {}
    assert archive.startswith(b"070701")


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 4095, 4096, 100_000])
def test_contents_of_any_length_are_padded(size: int) -> None:
    out = io.BytesIO()
    writer = CpioWriter(out)
    writer.file("x" * (size % 7 + 1), b"\xff" * size)
    writer.file("after", b"070701")
    writer.close()
    members = parse(out.getvalue())
    assert members[b"x" * (size % 7 + 1)].data == b"\xff" * size
    assert members[b"after"].data == b"070701"


def test_cpio_reads_the_archive(tmp_path: Path) -> None:
    """The parser above has judged already; where the machine has cpio, that must agree."""
    tree: Tree = {
        "bin": {"tool": File(b"#!/bin/sh\n", 0o755), "link": Link("tool"), "empty": {}},
        "data": File(bytes(range(256)) * 33, 0o640),
        "caf\udce9": File(b"latin", 0o600),
    }
    source, unpacked = tmp_path / "source", tmp_path / "unpacked"
    source.mkdir()
    plant(source, tree)
    archive = archive_of(source)
    assert sorted(parse(archive)) == sorted(expected(tree, b""))
    if shutil.which("cpio"):
        unpacked.mkdir()
        subprocess.run(
            ["cpio", "--extract", "--make-directories", "--quiet", "--no-preserve-owner"],
            cwd=unpacked,
            input=archive,
            check=True,
            timeout=TOOL_SECONDS,
        )
        assert archive_of(unpacked) == archive
