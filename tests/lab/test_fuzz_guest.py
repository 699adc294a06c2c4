# SPDX-License-Identifier: GPL-2.0-only
"""A hostile guest: whatever it sends, reading goes on, the journal knows, and no terminal obeys it."""

from __future__ import annotations

import io
import json
import os
from typing import TYPE_CHECKING, Any, Final

import pytest

from soak.journal.events import EVENTS, event_problem
from soak.journal.writer import FileJournal, Level, read_journal
from soak.lab import protocol
from soak.lab.progress import EventLines, Progress
from soak.model.vocabulary import VerdictWord
from soak.report.text import text_report
from soak.verdict import Judge, judge
from tests.journal.test_fuzz import LINES
from tests.lab.test_guest_messages import Host, as_lines
from tests.support.fuzz import ODD_JSON, damaged_bytes, damaged_json, fuzz, many_inputs
from tests.support.journal import valid_line

if TYPE_CHECKING:
    import random
    from collections.abc import Callable
    from pathlib import Path

GUESTS: Final = [
    {name: value for name, value in line.items() if name != "seq"}
    for line in LINES[VerdictWord.PASS]
    if not line["event"].startswith("lab.")
]
MESSAGES: Final[tuple[dict[str, Any], ...]] = (
    {"message": protocol.BOOTED, "release": "6.1.0-56-amd64", "uptime": 3.5},
    {"message": protocol.READY, "uptime": 4},
    {"message": protocol.ALIVE},
    {"message": protocol.FAULT, "name": "leak"},
    {"message": protocol.UNPLANTED, "name": "leak", "summary": "no such device"},
    {"message": protocol.FAILED, "summary": "there is no NVDIMM"},
    {"message": protocol.ANSWER, "answer": "paused"},
    {"message": protocol.EXITED, "code": 0},
)
LAST: Final = {"message": protocol.ALIVE, "last": True}
_MEGABYTES: Final = 0.002


class Recorder:
    """A host that writes a journal, judges it and shows events on a terminal, as the lab's does."""

    def __init__(self, path: Path) -> None:
        for left in path.parent.glob("journal*"):
            left.unlink()
        self.host = Host()
        self.shown = io.StringIO()
        self.judge = Judge()
        self._events = EventLines(Progress(self.shown))
        self.journal = FileJournal(path, on_line=self.judge.add)
        self.host.note = self._note  # type: ignore[method-assign, assignment]
        self.host.lines = _Sink(self._take)

    def _note(self, event: str, level: Level, **fields: Any) -> None:  # noqa: ANN401 - as the journal has it
        self.host.events.append({"event": event, "level": level, **fields})
        self.journal.write(event, level, **fields)

    def _take(self, line: dict[str, Any]) -> None:
        self.journal.append(line)
        self._events.show(line)


class _Sink(list[dict[str, Any]]):
    """A list that passes on what is appended."""

    def __init__(self, take: Callable[[dict[str, Any]], None]) -> None:
        super().__init__()
        self._take = take

    def append(self, line: dict[str, Any]) -> None:
        super().append(line)
        self._take(line)


def numbered(number: int, line: dict[str, Any]) -> bytes:
    return json.dumps({"number": number, **line}).encode()


def hostile(draw: random.Random, valid: dict[str, Any]) -> bytes:
    """Return a line, without its end, that may be anything."""
    match draw.randrange(6):
        case 0:
            text = damaged_bytes(draw, json.dumps(valid).encode())
        case 1:
            text = draw.choice(ODD_JSON).encode()
        case 2:
            text = draw.randbytes(draw.randrange(60))
        case 3 if draw.random() < _MEGABYTES:
            text = draw.choice((b"x", b'{"number":1', b"[", b"1e15,")) * (1 << 20)
        case _:
            text = damaged_json(draw, valid).encode()
    return text.replace(b"\n", b" ")


def send_journal(draw: random.Random, path: Path) -> None:
    """Send the lines of a good run, some of them odd, lost, doubled, or of another kind."""
    sent: list[bytes] = []
    expected: list[dict[str, Any]] = []
    lost = odd = False
    numbers = 0
    for line in GUESTS:
        numbers += 1
        if draw.random() > 0.15:
            sent.append(numbered(numbers, line))
            expected.append(line)
            continue
        match draw.randrange(4):
            case 0:
                lost = True
            case 1:
                # One that is there already.
                number = draw.randrange(1, numbers + 1)
                sent += [numbered(numbers, line), numbered(number, line)]
                numbers = number
                odd = True
            case 2:
                forged = valid_line(1, draw.choice(list(EVENTS)))
                sent.append(hostile(draw, {"number": numbers, **forged}))
                odd = True
            case _:
                sent.append(hostile(draw, {"number": numbers, **line}))
                odd = True
    numbers = 1 << 40
    sent.append(numbered(numbers, {**GUESTS[-1], "last": True}))
    recorder = Recorder(path)
    with recorder.journal:
        recorder.host.hear(as_lines(sent))
        assert recorder.host.lines[-1]["last"]
    assert recorder.host.answers.endswith(b"%d\n" % numbers)
    check_journal(recorder, path, expected if not odd else [])
    # The jump to the last number stands for lines that did not come.
    assert any(event["event"] == "guest.lines-lost" for event in recorder.host.events)
    assert lost or odd or len(recorder.host.lines) == len(GUESTS) + 1


def check_journal(recorder: Recorder, path: Path, expected: list[dict[str, Any]]) -> None:
    """Check that the journal can be read, is judged as it was heard, and makes no run better."""
    lines = list(read_journal(path))
    assert [line["seq"] for line in lines] == list(range(1, len(lines) + 1))
    assert all(event_problem(line) is None for line in lines)
    contents = [
        {name: value for name, value in line.items() if name not in {"format", "seq", "crc32"}}
        for line in lines
    ]
    assert all(line in contents for line in expected)
    verdict = judge(lines)
    assert verdict.verdict is recorder.judge.verdict().verdict
    assert verdict.verdict is not VerdictWord.PASS
    if recorder.host.events:
        told = {event["summary"] for event in recorder.host.events}
        assert told <= set(verdict.reasons)
    for text in (recorder.shown.getvalue(), text_report(verdict, path.parent)):
        assert "".join(text.split("\n")).isprintable()


def send_messages(draw: random.Random, path: Path) -> None:
    """Send messages on the other port, some of them odd."""
    valid = [dict(draw.choice(MESSAGES)) for _ in range(4)]
    odd = [hostile(draw, draw.choice(MESSAGES)) for _ in range(draw.randrange(1, 4))]
    sent = [json.dumps(message).encode() for message in valid] + odd
    draw.shuffle(sent)
    recorder = Recorder(path)
    with recorder.journal:
        recorder.host.hear(as_lines([*sent, json.dumps(LAST).encode()]), control=True)
    assert recorder.host.messages[-1] == LAST
    assert all(message in recorder.host.messages for message in valid)
    assert len(recorder.host.messages) + len(recorder.host.events) == len(sent) + 1
    check_journal(recorder, path, [])


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # What is durable is no matter here, and waiting for a disk takes most of the time.
    monkeypatch.setattr(os, "fdatasync", lambda _: None)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    return tmp_path / "journal.jsonl"


def test_run_without_odd_messages_passes(path: Path) -> None:
    recorder = Recorder(path)
    with recorder.journal:
        recorder.host.hear(as_lines([numbered(n, line) for n, line in enumerate(GUESTS, 1)]))
    assert recorder.host.events == []
    assert judge(read_journal(path)).verdict is VerdictWord.PASS


@many_inputs
def test_host_survives_any_guest_message(path: Path, count: int) -> None:
    def try_input(draw: random.Random) -> None:
        send = send_messages if draw.random() < 0.3 else send_journal
        send(draw, path)

    fuzz("guest", count, try_input)
