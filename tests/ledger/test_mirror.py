# SPDX-License-Identifier: GPL-2.0-only
"""A ledger that is copied while others write it: each group of the copy is whole, or shown as torn."""

from __future__ import annotations

import itertools
import os
import struct
import time
from typing import TYPE_CHECKING

import pytest

from soak.ledger.layout import Block, Field, Layout
from soak.ledger.reader import LedgerReader
from soak.ledger.writer import Ledger
from tests.ledger.support import (
    LONG_GROUP_WORDS,
    MASK,
    MIRROR_PAUSE_SECONDS,
    MIRROR_WORD_OFFSET,
    READING_SECONDS,
    TEXT,
    VALUES,
    Processes,
    changes,
    check,
    create,
    mirror_freely,
    read_until,
    running_processes,
    values_of,
    write_freely,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def processes() -> Iterator[Processes]:
    with running_processes() as running:
        yield running


def test_a_mirror_is_never_torn(tmp_path: Path, processes: Processes) -> None:
    source, target, wanted = tmp_path / "source", tmp_path / "mirror", 100
    create(source)
    create(target)
    processes.start(write_freely, source)
    processes.start(mirror_freely, source, target)
    check(read_until(target, wanted), wanted)


def change_ends(path: Path) -> None:
    """Change the two ends of a long group until killed, and rest now and then."""
    group = Ledger.open(path).block("writer").view("group")
    last = len(group) - 1
    for generation in itertools.count(1):
        group[0] += 1
        group[last] = generation
        group[1] = generation
        group[0] += 1
        if generation % 200 == 0:
            time.sleep(MIRROR_PAUSE_SECONDS)


def test_slowly_copied_group_is_mirrored_whole(tmp_path: Path, processes: Processes) -> None:
    group = Field("group", (("sequence", *map(str, range(LONG_GROUP_WORDS))),))
    layout = Layout.of([Block("writer", "writer", {"group": group}, {})], {})
    source = Ledger.create(tmp_path / "source", layout)
    mirror = Ledger.create(tmp_path / "mirror", layout)
    processes.start(change_ends, tmp_path / "source")
    generations: set[int] = set()
    naive_tears = 0
    deadline = time.monotonic() + READING_SECONDS
    with (
        LedgerReader.open(tmp_path / "source") as original,
        LedgerReader.open(tmp_path / "mirror") as copy,
    ):
        while time.monotonic() < deadline and (len(generations) < 20 or naive_tears < 20):
            values = original.block("writer").flat("group")[1:]
            naive_tears += values[0] != values[-1]
            mirror.copy_from(source)
            mirrored = copy.block("writer").group("group")
            if mirrored is not None:
                assert mirrored[0] == mirrored[-1]
                generations.add(mirrored[0])
    assert len(generations) >= 20
    assert naive_tears >= 20


def test_mirror_survives_a_killed_copier(tmp_path: Path) -> None:
    source, mirror = create(tmp_path / "source"), create(tmp_path / "mirror")
    source.block("writer").set("beats", 5)
    with LedgerReader.open(tmp_path / "mirror") as reader:
        # What a copier leaves behind that is killed in the middle.
        with (tmp_path / "mirror").open("r+b") as file:
            os.pwrite(file.fileno(), struct.pack("<Q", 3), MIRROR_WORD_OFFSET)
        assert reader.block("writer").group("group") is None
        assert reader.block("writer").text("text") == TEXT
        assert reader.block("writer").get("last") == MASK
        mirror.copy_from(source)
        assert reader.block("writer").get("beats") == 5
        assert reader.block("writer").group("group") == values_of(0)


def test_group_that_keeps_changing_is_mirrored_torn(tmp_path: Path) -> None:
    source, mirror = create(tmp_path / "source"), create(tmp_path / "mirror")
    change = changes(source, iter([1]))
    for _ in range(VALUES // 2):
        next(change)
    mirror.copy_from(source)
    with LedgerReader.open(tmp_path / "mirror") as reader:
        assert reader.block("writer").group("group") is None
        assert reader.block("before").group("group") == values_of(0)
        for _ in change:
            pass
        mirror.copy_from(source)
        assert reader.block("writer").group("group") == values_of(1)
