# SPDX-License-Identifier: GPL-2.0-only
"""One writer, many readers, no lock: readers see what was written, or that they cannot know.

Three kinds of test. In lock step, a writer process makes one store at a time, so every moment of a
change is looked at. In schedules, the writer's stores fall between any two words that a reader
loads. And free-running processes do it as they will on two processors.
"""

from __future__ import annotations

import ctypes
import itertools
import multiprocessing
import os
import struct
import tempfile
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from soak.ledger.layout import WORD, Block, Field, Layout
from soak.ledger.reader import LedgerReader
from soak.ledger.writer import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

    from soak.ledger.reader import BlockSnapshot

READING_SECONDS = 30.0
DEADLINE_SECONDS = 2 * READING_SECONDS
# Long enough that a writer is in the middle of a change most of the time.
VALUES = 24
GROUP_NAMES = ("sequence", *(f"value {number}" for number in range(VALUES)))
MASK = (1 << 64) - 1
# A word that is put together from two of these is none of these.
WORDS = (0, MASK, 0x5555_5555_5555_5555, 0x1234_5678_9ABC_DEF0)
TEXT = "é" * 20
MIRROR_WORD_OFFSET = 24
MIRROR_PAUSE_SECONDS = 0.0002
WORD_READS = 50_000
LONG_GROUP_WORDS = 1 << 14
PAGE = 4096

SPAWN = multiprocessing.get_context("spawn")

Values = tuple[int, ...]


def values_of(generation: int) -> Values:
    """Return the values that belong together; no two generations share one."""
    return tuple(generation << 8 | number for number in range(VALUES))


def changes(ledger: Ledger, generations: Iterator[int]) -> Generator[bool, None, None]:
    """Change the group by its protocol, one store at a time; yield whether it is whole."""
    group = ledger.block("writer").view("group")
    yield group[0] % 2 == 0
    for generation in generations:
        # A writer that was killed may have left the number odd.
        group[0] |= 1
        yield False
        for position, value in enumerate(values_of(generation), start=1):
            group[position] = value
            yield False
        group[0] += 1
        yield True


def create(path: Path) -> Ledger:
    fields = (
        Field("beats"),
        Field("word"),
        Field("group", (GROUP_NAMES,)),
        Field("quiet", (GROUP_NAMES,)),
        Field("text", (16,), text=True),
        Field("last"),
    )
    blocks = [
        Block(name, name, {each.name: each for each in fields}, {})
        for name in ("before", "writer", "after")
    ]
    ledger = Ledger.create(path, Layout.of(blocks, {}))
    for name in ledger.layout.blocks:
        block = ledger.block(name)
        for group in (block.view("group"), block.view("quiet")):
            for position, value in enumerate(values_of(0), start=1):
                group[position] = value
        block.set_text("text", TEXT)
        block.set("last", MASK)
    return ledger


def naive(reader: LedgerReader) -> Values:
    """Read the group as a reader would that ignores the sequence number."""
    return tuple(reader.block("writer").flat("group")[1:])


def is_whole(values: Values) -> bool:
    return values == values_of(values[0] >> 8)


# --- processes ---


def write_in_steps(path: Path, steps: Connection) -> None:
    """Make one store for each message; answer with whether the group is whole."""
    for whole in changes(Ledger.open(path), itertools.count(1)):
        steps.send(whole)
        steps.recv()


def write_freely(path: Path) -> None:
    """Change the group and the single word until killed; count the changes."""
    ledger = Ledger.open(path)
    block = ledger.block("writer")
    word, beats = block.view("word"), block.view("beats")
    for whole in changes(ledger, itertools.count(1)):
        # It is whole about as long as it is not.
        for value in WORDS * (2 * VALUES if whole else 1):
            word[0] = value
        beats[0] += whole


def write_words(path: Path) -> None:
    """Change a single word, as fast as that goes, until killed."""
    block = Ledger.open(path).block("writer")
    word, beats = block.view("word"), block.view("beats")
    while True:
        for value in WORDS * 50:
            word[0] = value
        beats[0] += 1


def mirror_freely(source: Path, target: Path) -> None:
    """Copy one ledger into another until killed."""
    original, mirror = Ledger.open(source), Ledger.open(target)
    while True:
        mirror.copy_from(original)
        time.sleep(MIRROR_PAUSE_SECONDS)


@dataclass
class Seen:
    """What a reader came across."""

    generations: set[int] = field(default_factory=set)
    torn: list[Values] = field(default_factory=list)
    backwards: list[int] = field(default_factory=list)
    foreign_words: list[int] = field(default_factory=list)
    naive_tears: int = 0


def read_until(path: Path, wanted: int) -> Seen:
    """Read until so many generations, and a tear that a naive reader would take, were seen."""
    seen, newest = Seen(), 0
    deadline = time.monotonic() + READING_SECONDS
    with LedgerReader.open(path) as reader:
        while time.monotonic() < deadline:
            snapshot = reader.block("writer")
            if snapshot.get("word") not in WORDS:
                seen.foreign_words.append(snapshot.get("word"))
            seen.naive_tears += not is_whole(tuple(snapshot.flat("group")[1:]))
            values = snapshot.group("group")
            if values is not None and not is_whole(values):
                seen.torn.append(values)
            elif values is not None:
                generation = values[0] >> 8
                if generation < newest:
                    seen.backwards.append(generation)
                newest = generation
                seen.generations.add(generation)
            if len(seen.generations) >= wanted and seen.naive_tears:
                break
    return seen


def read_and_tell(path: Path, wanted: int, result: Connection) -> None:
    result.send(read_until(path, wanted))


@dataclass
class Processes:
    """Starts processes, and ends each of them by its own id."""

    started: list[SpawnProcess] = field(default_factory=list)
    pipes: list[tuple[Connection, Connection]] = field(default_factory=list)

    def start(self, target: Callable[..., None], *arguments: object) -> SpawnProcess:
        process = SPAWN.Process(target=target, args=arguments, daemon=True)
        process.start()
        self.started.append(process)
        return process

    def pipe(self) -> tuple[Connection, Connection]:
        """Return our end and theirs; both stay open until the processes are gone."""
        self.pipes.append(SPAWN.Pipe())
        return self.pipes[-1]

    def kill(self, process: SpawnProcess) -> None:
        process.kill()
        process.join(DEADLINE_SECONDS)
        assert process.exitcode is not None


@pytest.fixture
def processes() -> Iterator[Processes]:
    running = Processes()
    yield running
    for process in running.started:
        running.kill(process)
    for end in itertools.chain.from_iterable(running.pipes):
        end.close()


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.001)


def receive(connection: Connection) -> object:
    assert connection.poll(DEADLINE_SECONDS), "the other process did not answer"
    return connection.recv()


# --- lock step ---


def test_no_moment_of_a_change_is_ever_read_as_a_value(tmp_path: Path, processes: Processes) -> None:
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


def test_a_killed_writer_leaves_everything_but_its_group_readable(
    tmp_path: Path, processes: Processes
) -> None:
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


def test_a_killed_writer_s_block_can_be_cleared(tmp_path: Path) -> None:
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
def test_no_order_of_loads_and_stores_tears_a_group(schedule: list[int]) -> None:
    during, afterwards = read_interleaved(schedule, read_group)
    assert during is None or is_whole(during)
    assert afterwards == values_of(GENERATIONS)


def test_a_reader_without_the_protocol_is_torn_by_such_an_order() -> None:
    during, afterwards = read_interleaved([0, 0, 0, 0, *MIDDLE, WHOLE_CHANGE], read_naively)
    assert during is not None
    assert not is_whole(during)
    assert afterwards == values_of(GENERATIONS)


# --- free-running ---


def check(seen: Seen, wanted: int) -> None:
    assert seen.torn == []
    assert seen.backwards == []
    assert seen.foreign_words == []
    assert len(seen.generations) >= wanted, "the writer made no progress that a reader could see"
    assert seen.naive_tears > 0, "the writer was never met in the middle: this proves nothing"


def test_readers_in_processes_and_threads_never_see_a_torn_group(
    tmp_path: Path, processes: Processes
) -> None:
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


def test_words_are_whole_wherever_the_memory_of_a_reader_lies(
    tmp_path: Path, processes: Processes
) -> None:
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


def test_no_word_is_read_to_where_processors_copy_byte_by_byte(tmp_path: Path) -> None:
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


def test_a_group_that_takes_long_to_copy_is_mirrored_whole(tmp_path: Path, processes: Processes) -> None:
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


def test_a_mirror_survives_its_copier(tmp_path: Path) -> None:
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


def test_a_group_that_changes_while_it_is_mirrored_is_torn_in_the_copy(tmp_path: Path) -> None:
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
