# SPDX-License-Identifier: GPL-2.0-only
"""One writer, many readers, no lock: readers see what was written, or that they cannot know.

Three kinds of test. In lock step, a writer process makes one store at a time, so every moment of a
change is looked at. In schedules, the writer's stores fall between any two words that a reader
loads. And free-running processes do it as they will on two processors.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
import threading
from collections import Counter, deque
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from soak.ledger.layout import WORD
from soak.ledger.reader import LedgerReader
from tests.ledger.support import (
    DEADLINE_SECONDS,
    GROUP_NAMES,
    MASK,
    PAGE,
    TEXT,
    VALUES,
    WORD_READS,
    WORDS,
    Processes,
    Seen,
    Values,
    changes,
    check,
    create,
    is_whole,
    naive,
    read_and_tell,
    read_until,
    receive,
    running_processes,
    values_of,
    wait_for,
    write_freely,
    write_in_steps,
    write_words,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from soak.ledger.reader import BlockSnapshot


@pytest.fixture
def processes() -> Iterator[Processes]:
    with running_processes() as running:
        yield running


# --- lock step ---


def test_reader_never_sees_a_partial_store(tmp_path: Path, processes: Processes) -> None:
    create(tmp_path / "ledger")
    ours, theirs = processes.pipe()
    processes.start(write_in_steps, tmp_path / "ledger", theirs)
    finished = 0
    naive_tears = 0
    with LedgerReader.open(tmp_path / "ledger") as reader:
        while finished < 4:
            whole = receive(ours)
            values = reader.block("writer").group("group")
            if whole:
                assert values == values_of(finished)
                finished += 1
            else:
                assert values is None
                naive_tears += not is_whole(naive(reader))
            ours.send(None)
    # Only the stores of the two numbers leave the values whole: all others are tears, and a reader
    # that ignored the number would take every one of them.
    assert naive_tears == 3 * (VALUES - 1)


def test_killed_writer_tears_only_its_open_group(tmp_path: Path, processes: Processes) -> None:
    ledger = create(tmp_path / "ledger")
    ours, theirs = processes.pipe()
    writer = processes.start(write_in_steps, tmp_path / "ledger", theirs)
    for _ in range(VALUES // 2):
        receive(ours)
        ours.send(None)
    assert receive(ours) is False
    processes.kill(writer)
    with LedgerReader.open(tmp_path / "ledger") as reader:
        assert not is_whole(naive(reader))
        for name in ("before", "writer", "after"):
            snapshot = reader.block(name)
            assert snapshot.group("group") == (None if name == "writer" else values_of(0))
            assert snapshot.group("quiet") == values_of(0)
            assert snapshot.text("text") == TEXT
            assert snapshot.get("last") == MASK
            assert snapshot.get("beats") == 0
        # The next writer of the block makes it whole again.
        for whole in changes(ledger, iter([7])):
            assert whole == (reader.block("writer").group("group") is not None)
        assert reader.block("writer").group("group") == values_of(7)


def test_block_of_a_killed_writer_can_be_cleared(tmp_path: Path) -> None:
    ledger = create(tmp_path / "ledger")
    change = changes(ledger, iter([1]))
    for _ in range(VALUES // 2):
        next(change)
    with LedgerReader.open(tmp_path / "ledger") as reader:
        assert reader.block("writer").group("group") is None
        ledger.block("writer").clear()
        assert reader.block("writer").group("group") == (0,) * VALUES


# --- schedules ---


class Interleaved:
    """Lets the writer make some stores before each word that a reader loads."""

    def __init__(self, writer: Generator[bool, None, None], schedule: list[int]) -> None:
        self._writer = writer
        self._schedule = iter(schedule)
        self._preadv = os.preadv

    def preadv(self, descriptor: int, buffers: list[memoryview], offset: int) -> int:
        (buffer,) = buffers
        count = 0
        for start in range(0, len(buffer), WORD):
            for _ in range(next(self._schedule, 0)):
                next(self._writer, None)
            word = buffer[start : start + WORD]
            count += self._preadv(descriptor, [word], offset + start)
        return count


GENERATIONS = 6


def read_interleaved(
    schedule: list[int], read: Callable[[LedgerReader, BlockSnapshot], Values | None]
) -> tuple[Values | None, Values | None]:
    """Return what is read while a writer follows the schedule, and after it has finished."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "ledger"
        writer = changes(create(path), iter(range(1, GENERATIONS + 1)))
        assert next(writer)
        with LedgerReader.open(path) as reader:
            snapshot = reader.block("writer")
            with mock.patch.object(os, "preadv", Interleaved(writer, schedule).preadv):
                during = read(reader, snapshot)
            for _ in writer:
                pass
            return during, read(reader, snapshot)


def read_group(_: LedgerReader, snapshot: BlockSnapshot) -> Values | None:
    return snapshot.group("group")


def read_naively(reader: LedgerReader, _: BlockSnapshot) -> Values | None:
    return naive(reader)


# A reader of the group loads the mirror's number and the group's own, then the group. A naive one
# loads the mirror's number and the block, in which two words come before the group.
WHOLE_CHANGE = VALUES + 2
MIDDLE = [0] * (VALUES // 2)


@given(st.lists(st.integers(0, 3), min_size=20, max_size=200))
@example([0, 0, 0, *MIDDLE, WHOLE_CHANGE])
@example([0, 0, 0, *MIDDLE, WHOLE_CHANGE - 1])
@example([0, 0, 0, *MIDDLE, 2 * WHOLE_CHANGE])
@example([0, 1, 0, *MIDDLE, WHOLE_CHANGE])
@example([1] * 200)
@example([0] * len(GROUP_NAMES) + [1] * 200)
@settings(derandomize=True, database=None, deadline=None, max_examples=150)
def test_no_interleaving_tears_a_group(schedule: list[int]) -> None:
    during, afterwards = read_interleaved(schedule, read_group)
    assert during is None or is_whole(during)
    assert afterwards == values_of(GENERATIONS)


def test_reader_without_the_protocol_is_torn() -> None:
    during, afterwards = read_interleaved([0, 0, 0, 0, *MIDDLE, WHOLE_CHANGE], read_naively)
    assert during is not None
    assert not is_whole(during)
    assert afterwards == values_of(GENERATIONS)


# --- free-running ---


def test_concurrent_readers_never_see_a_torn_group(tmp_path: Path, processes: Processes) -> None:
    path, wanted = tmp_path / "ledger", 100
    create(path)
    pipes = [processes.pipe() for _ in range(3)]
    for _, theirs in pipes:
        processes.start(read_and_tell, path, wanted, theirs)
    writer = processes.start(write_freely, path)
    results: list[Seen] = []
    threads = [
        threading.Thread(target=lambda: results.append(read_until(path, wanted))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for ours, _ in pipes:
        seen = receive(ours)
        assert isinstance(seen, Seen)
        results.append(seen)
    for thread in threads:
        thread.join(DEADLINE_SECONDS)
    assert len(results) == len(pipes) + len(threads)
    for seen in results:
        check(seen, wanted)
    processes.kill(writer)
    with LedgerReader.open(path) as reader:
        snapshot = reader.block("writer")
        last = snapshot.group("group")
        assert last is None or is_whole(last)
        assert snapshot.get("beats") >= wanted
        assert snapshot.get("word") in WORDS


def test_words_are_whole_at_any_buffer_offset(tmp_path: Path, processes: Processes) -> None:
    """Some processors copy byte by byte where target and source lie badly to each other."""
    path = tmp_path / "ledger"
    create(path)
    processes.start(write_words, path)
    with LedgerReader.open(path) as reader:
        wait_for(lambda: reader.block("writer").get("beats") > 0, "the writer did not start")
        # Those that are kept push the next ones to other places.
        kept: deque[BlockSnapshot] = deque(maxlen=500)
        seen: Counter[int] = Counter()
        for _ in range(WORD_READS):
            kept.append(reader.block("writer"))
            seen[kept[-1].get("word")] += 1
    assert set(seen) == set(WORDS)


def test_reads_avoid_bytewise_copies(tmp_path: Path) -> None:
    create(tmp_path / "ledger")
    places: list[int] = []
    preadv = os.preadv

    def spy(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        for buffer in buffers:
            address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
            places.append((address - offset) % PAGE)
        return preadv(descriptor, buffers, offset)

    with (
        LedgerReader.open(tmp_path / "ledger") as reader,
        mock.patch.object(os, "preadv", spy),
        mock.patch.object(os, "pread", None),
    ):
        for name in reader.layout.blocks:
            assert reader.block(name).group("group") == values_of(0)
            assert reader.block(name).group("quiet") == values_of(0)
    assert places
    # Seen from 1 to 31 bytes on an AMD EPYC; a cache line or two to either side is nearby.
    assert all(128 <= place <= PAGE - 128 for place in places)
