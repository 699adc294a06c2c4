# SPDX-License-Identifier: GPL-2.0-only
"""A ledger with groups and words whose values tell which belong together, and processes that use it."""

from __future__ import annotations

import itertools
import multiprocessing
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from soak.ledger.layout import Block, Field, Layout
from soak.ledger.reader import LedgerReader
from soak.ledger.writer import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess
    from pathlib import Path


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


@contextmanager
def running_processes() -> Iterator[Processes]:
    """Yield what starts processes; all of them are gone afterwards."""
    running = Processes()
    try:
        yield running
    finally:
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


def check(seen: Seen, wanted: int) -> None:
    assert seen.torn == []
    assert seen.backwards == []
    assert seen.foreign_words == []
    assert len(seen.generations) >= wanted, "the writer made no progress that a reader could see"
    assert seen.naive_tears > 0, "the writer was never met in the middle: this proves nothing"
