# SPDX-License-Identifier: GPL-2.0-only
"""The journal: what was written is read back, and nothing that it runs into ends or holds up a run."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soak.journal import writer as journal_module
from soak.journal.reading import UNFINISHED
from soak.journal.writer import FileJournal, Level, PortJournal, read_journal
from tests.support.soak import DEADLINE, deterministic

if TYPE_CHECKING:
    from collections.abc import Iterator


STAMPS = {"format", "seq", "time", "monotonic", "boot_id", "event", "level", "crc32"}
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=9),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children),
    max_leaves=5,
)
field_names = st.text(max_size=5).filter(lambda name: name not in {*STAMPS, "self"})
events = st.tuples(
    st.from_regex(r"[a-z]{1,8}\.[a-z]{1,8}", fullmatch=True),
    st.sampled_from([Level.INFO, Level.WARNING]),
    st.dictionaries(field_names, values, max_size=3),
)
Event = tuple[str, Level, dict[str, Any]]


def write_all(path: Path, written: list[Event]) -> None:
    with FileJournal(path) as journal:
        for event, level, fields in written:
            journal.write(event, level, **fields)
        assert journal.errors == 0


def own(line: dict[str, Any]) -> Event:
    """Return what the writer gave, without what the journal added."""
    fields = {name: value for name, value in line.items() if name not in STAMPS}
    return line["event"], Level(line["level"]), fields


@given(st.lists(events, max_size=8))
@deterministic
def test_events_are_read_back_equal_and_numbered(written: list[Event]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "journal.jsonl"
        write_all(path, written)
        lines = list(read_journal(path))
        assert path.read_bytes().count(b"\n") == len(written)
    assert [own(line) for line in lines] == written
    assert [line["seq"] for line in lines] == list(range(1, len(written) + 1))
    for line in lines:
        assert set(line) >= STAMPS
        assert line["time"].endswith("Z")
    assert [line["monotonic"] for line in lines] == sorted(line["monotonic"] for line in lines)


@given(st.lists(events, max_size=5), st.lists(events, max_size=5))
@deterministic
def test_reopened_journal_continues(first: list[Event], second: list[Event]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "journal.jsonl"
        write_all(path, first)
        write_all(path, second)
        lines = list(read_journal(path))
    assert [own(line) for line in lines] == first + second
    assert [line["seq"] for line in lines] == list(range(1, len(lines) + 1))


def test_truncated_file_keeps_its_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    write_all(path, [("a.b", Level.INFO, {"text": "ü\n}", "n": [1, {"x": 2}]}), ("c.d", Level.INFO, {})])
    whole = path.read_bytes()
    ends = [index for index, byte in enumerate(whole) if byte == ord("\n")]
    for length in range(len(whole) + 1):
        path.write_bytes(whole[:length])
        # A line is whole with its last brace: the end of line adds nothing to it.
        kept = sum(end <= length for end in ends)
        # Of the next line there is a part, unless the file is cut where a line ends.
        rest = [UNFINISHED] if length not in {0, *ends, *(end + 1 for end in ends)} else []
        found = [line["event"] for line in read_journal(path)]
        assert found == [*["a.b", "c.d"][:kept], *rest]
        write_all(path, [("e.f", Level.INFO, {"after": length})])
        lines = list(read_journal(path))
        assert [line["event"] for line in lines] == [*["a.b", "c.d"][:kept], "e.f"]
        assert [line["seq"] for line in lines] == list(range(1, kept + 2))
        assert lines[-1]["after"] == length


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=6))
@deterministic
def test_damage_hides_no_other_line(rubbish: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "journal.jsonl"
        for piece in rubbish:
            with path.open("ab") as file:
                file.write(piece)
            write_all(path, [("still.here", Level.INFO, {})])
        found = [line for line in read_journal(path) if line.get("event") == "still.here"]
    assert len(found) == len(rubbish)


def test_an_error_is_on_disk_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[bytes] = []
    path = tmp_path / "journal.jsonl"
    monkeypatch.setattr(os, "fdatasync", lambda _file: synced.append(path.read_bytes()))
    with FileJournal(path) as journal:
        journal.write("some.news")
        journal.write("some.warning", Level.WARNING)
        assert synced == []
        journal.write("violation.found", Level.ERROR)
    assert [data.count(b"\n") for data in synced] == [3]


class Peer:
    """The host's end of the port: reads lines and acknowledges those that it is told to."""

    def __init__(self, end: socket.socket) -> None:
        self.lines: list[dict[str, Any]] = []
        self.acknowledges = True
        self.reads = threading.Event()
        self.reads.set()
        self._end = end
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        rest = b""
        while not self._over.is_set():
            self.reads.wait(0.01)
            if not self.reads.is_set() or not select.select([self._end], [], [], 0.01)[0]:
                continue
            data = self._end.recv(4096)
            if not data:
                return
            *texts, rest = (rest + data).split(b"\n")
            for text in texts:
                self.lines.append(json.loads(text))
                if self.acknowledges:
                    self._end.sendall(f"{self.lines[-1]['number']}\n".encode())

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()
        self._end.close()


@pytest.fixture
def deadlines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let whoever waits in vain not wait long."""
    monkeypatch.setattr(journal_module, "_ACKNOWLEDGE_SECONDS", 0.1)


@contextlib.contextmanager
def port() -> Iterator[tuple[PortJournal, socket.socket]]:
    """Yield the guest's end of a port that holds a few lines only, and the host's end."""
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    journal = PortJournal(os.dup(ours.fileno()))
    ours.close()
    try:
        yield journal, theirs
    finally:
        with contextlib.suppress(OSError):
            journal.close()
        theirs.close()


def test_error_waits_for_the_acknowledgement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "_ACKNOWLEDGE_SECONDS", DEADLINE)
    with port() as (journal, end), Peer(end) as peer:
        for number in range(50):
            journal.write("some.news", number=-number, text="x" * 300)
            journal.write("violation.found", Level.ERROR, count=number)
            assert peer.lines[-1]["count"] == number
        assert journal.errors == 0
        assert journal.flush(DEADLINE)
        assert [line["event"] for line in peer.lines] == ["some.news", "violation.found"] * 50
        assert set(peer.lines[1]) == {*STAMPS - {"format", "seq", "crc32"}, "number", "count"}


@pytest.mark.usefixtures("deadlines")
def test_missing_acknowledgement_costs_one_deadline_per_error() -> None:
    with port() as (journal, end), Peer(end) as peer:
        peer.acknowledges = False
        for count in range(3):
            journal.write("violation.found", Level.ERROR, count=count)
        assert journal.errors == 3
        assert not journal.flush(0.05)
        # It was late, not lost: when the host is there again, everything is.
        peer.acknowledges = True
        journal.write("some.news")
        assert journal.flush(DEADLINE)
        assert [line["event"] for line in peer.lines] == ["violation.found"] * 3 + ["some.news"]


@pytest.mark.usefixtures("deadlines")
def test_host_that_stops_reading_does_not_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "_QUEUE_LINES", 20)
    with port() as (journal, end), Peer(end) as peer:
        peer.reads.clear()
        for count in range(200):
            journal.write("some.news", count=count, text="x" * 1000)
        lost = journal.errors
        assert 0 < lost < 180
        journal.write("violation.found", Level.ERROR, count=200)
        assert journal.errors == lost + 1
        # When it reads again, what waited arrives in order, and there is room for more.
        peer.reads.set()
        assert journal.flush(DEADLINE)
        arrived = [line["count"] for line in peer.lines if line["event"] == "some.news"]
        assert len(arrived) == 200 - lost
        assert arrived == sorted(arrived)
        monkeypatch.setattr(journal_module, "_ACKNOWLEDGE_SECONDS", DEADLINE)
        journal.write("violation.found", Level.ERROR, count=-1)
        assert peer.lines[-1]["count"] == -1
        assert journal.errors == lost + 1


@pytest.mark.usefixtures("deadlines")
def test_a_full_queue_drains_by_the_next_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "_QUEUE_LINES", 5)
    with port() as (journal, end), Peer(end) as peer:
        peer.reads.clear()
        while journal.errors == 0:
            journal.write("some.news", text="x" * 1000)
        peer.reads.set()
        limit = time.monotonic() + DEADLINE
        while peer.lines[-1:] == [] or peer.lines[-1]["event"] != "some.more":
            assert time.monotonic() < limit
            journal.write("some.more")
            time.sleep(0.01)


@pytest.mark.usefixtures("deadlines")
@pytest.mark.parametrize("level", [Level.INFO, Level.ERROR])
def test_vanished_host_raises_nothing(level: Level) -> None:
    with port() as (journal, end):
        journal.write("some.news")
        end.close()
        for _ in range(3):
            journal.write("more.news", level)
        assert journal.errors == (3 if level is Level.ERROR else 0)
        assert not journal.flush(0.05)


@pytest.mark.usefixtures("deadlines")
def test_a_slow_host_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_module, "_ACKNOWLEDGE_SECONDS", DEADLINE)
    with port() as (journal, end), Peer(end) as peer:
        for count in range(40):
            (peer.reads.set if count % 4 == 3 else peer.reads.clear)()
            level = Level.ERROR if count % 4 == 3 else Level.INFO
            journal.write("some.news", level, count=count, text="x" * 2000)
        assert journal.flush(DEADLINE)
        assert journal.errors == 0
        assert [line["count"] for line in peer.lines] == list(range(40))
