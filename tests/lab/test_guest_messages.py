# SPDX-License-Identifier: GPL-2.0-only
"""What a guest sends over its ports: read line by line, believed nothing, and no end of reading."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soak.lab import protocol
from soak.lab.host.guest_messages import GarbledError, GuestListener, parse_event, parse_message
from soak.lab.host.port import Port
from soak.verdict import judge
from tests.support.journal import valid_line
from tests.support.soak import DEADLINE, deterministic

if TYPE_CHECKING:
    from collections.abc import Sequence

NESTED = b"[" * 100_000
ESCAPES = "\u001b[2Jowned\u0007"
ODD_MESSAGES = [
    b'{"x":1}',
    b'{"message":"exited"}',
    b'{"message":"exited","code":"0"}',
    b'{"message":[]}',
    b'{"message":"exited","code":true}',
    b"",
    b"\xff",
    b"[]",
    NESTED,
    b'{"message":"nonsense"}',
]
ODD_LINES = [
    b'{"x":1}',
    b'{"number":1,"event":"x"}',
    b'{"number":"1"}',
    b'{"number":0}',
    b"null",
    NESTED,
    b'{"number":1,"event":[]}',
    b"x" * (5 << 20),
]


def event_text(number: int, event: str = "run.ended", **fields: object) -> bytes:
    line = valid_line(1, event, **fields)
    return json.dumps({"number": number, **{k: v for k, v in line.items() if k != "seq"}}).encode()


class Host:
    """A host that listens to ports whose other ends are here."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.lines: list[dict[str, Any]] = []
        self.messages: list[dict[str, Any]] = []
        self.answers = b""

    def note(self, event: str, level: str, **fields: object) -> None:
        self.events.append({"event": event, "level": level, **fields})

    def hear(self, sent: bytes, *, control: bool = False, keep: bool = False) -> Host:
        """Send bytes to a port, hang up, and read until the host has read all; `keep` does not read."""
        asyncio.run(asyncio.wait_for(self._hear(sent, control=control, keep=keep), DEADLINE))
        return self

    async def _hear(self, sent: bytes, *, control: bool, keep: bool) -> None:
        port, end = Port.pair()
        listener = GuestListener(self.note, self.lines.append, self.messages.append)
        reading = listener.read_control(port) if control else listener.read_journal(port)
        task = asyncio.create_task(reading)
        end.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(end, sent)
        if keep:
            # Ends with something unread, as QEMU does that is killed.
            port.send("something that it never reads")
        end.shutdown(1)
        if not keep:
            await task
            port.close()
            while data := await loop.sock_recv(end, 1 << 16):
                self.answers += data
        end.close()
        await task
        port.close()

    @property
    def troubles(self) -> list[str]:
        return [f"{event['event']}: {event['summary']}" for event in self.events]


def test_valid_messages_are_passed_on_and_acknowledged() -> None:
    host = Host().hear(event_text(1) + b"\n" + event_text(2) + b"\n")
    assert [line["event"] for line in host.lines] == ["run.ended"] * 2
    assert host.answers == b"1\n2\n"
    assert host.events == []
    heard = Host().hear(b'{"message":"alive"}\n{"message":"exited","code":-9}\n', control=True)
    assert [message["message"] for message in heard.messages] == ["alive", "exited"]


@pytest.mark.parametrize("odd", ODD_MESSAGES, ids=range(len(ODD_MESSAGES)))
def test_odd_control_message_is_reported_and_skipped(odd: bytes) -> None:
    exited = json.dumps({"message": protocol.EXITED, "code": 0}).encode()
    host = Host().hear(odd + b"\n" + exited + b"\n", control=True)
    assert host.messages == [{"message": protocol.EXITED, "code": 0}]
    (trouble,) = host.troubles
    assert trouble.startswith("guest.garbled: the guest sent something odd on port dax-soak.control: ")


@pytest.mark.parametrize("odd", ODD_LINES, ids=range(len(ODD_LINES)))
def test_odd_journal_line_is_reported_and_skipped(odd: bytes) -> None:
    host = Host().hear(odd + b"\n" + event_text(1) + b"\n")
    assert [line["event"] for line in host.lines] == ["run.ended"]
    assert host.answers == b"1\n"
    (trouble,) = host.troubles
    assert trouble.startswith("guest.garbled: the guest sent something odd on port dax-soak.journal: ")


def test_missing_journal_lines_are_reported() -> None:
    host = Host().hear(b"".join(event_text(number) + b"\n" for number in (1, 4, 5)))
    assert len(host.lines) == 3
    assert host.troubles == ["guest.lines-lost: lines 2 to 3 of the guest's journal did not come"]


def test_line_number_jump_affects_one_line() -> None:
    host = Host().hear(b"".join(event_text(number) + b"\n" for number in (10**9, 2, 3)))
    assert len(host.lines) == 3
    assert len(host.troubles) == 2


def test_fields_of_the_host_are_dropped() -> None:
    text = event_text(1)[:-1] + b',"seq":1000000000,"format":9,"crc32":"x"}'
    (line,) = Host().hear(text + b"\n").lines
    assert line.keys().isdisjoint({"seq", "format", "crc32", "number"})


def test_unfinished_last_line_is_ignored() -> None:
    host = Host().hear(event_text(1) + b"\n" + event_text(2)[:-9])
    assert (len(host.lines), host.events) == (1, [])


def test_port_is_read_to_its_end_after_qemu() -> None:
    """A write to a port whose other end has gone must not cost what is still to be read there."""
    host = Host()

    async def hear() -> None:
        port, end = Port.pair()
        end.sendall(b'{"message":"alive"}\n{"message":"exited","code":0}\n')
        end.close()
        port.send("stop")
        await GuestListener(host.note, host.lines.append, host.messages.append).read_control(port)
        port.close()

    asyncio.run(asyncio.wait_for(hear(), DEADLINE))
    assert [message["message"] for message in host.messages] == ["alive", "exited"]
    heard = Host().hear(b'{"message":"alive"}\n' * 9, control=True, keep=True)
    assert len(heard.messages) == 9


def test_guest_that_reads_nothing_blocks_no_send() -> None:
    port, end = Port.pair()
    for number in range(30_000):
        port.send(str(number))
    end.setblocking(False)
    received = b""
    for _ in range(100):
        with contextlib.suppress(BlockingIOError):
            received += end.recv(1 << 20)
        port.send("x")
    numbers = received.split(b"\n")[:-1]
    whole = [int(text) for text in numbers if text != b"x"]
    assert whole == list(range(30_000))
    port.close()
    end.close()


def test_number_of_garbled_events_is_bounded() -> None:
    host = Host().hear(b"rubbish\n" * 5000)
    assert len(host.events) == 50
    assert host.troubles[-1].endswith("no more of these are journalled")


def test_odd_text_is_escaped_and_makes_verdict_unknown() -> None:
    host = Host().hear(event_text(1, "guest.silent", level=ESCAPES) + b"\n")
    (event,) = host.events
    assert event["text"].isprintable()
    assert event["summary"].isprintable()
    line = valid_line(1, **{name: value for name, value in event.items() if name != "level"})
    assert event["summary"] in judge([line]).reasons


def as_lines(texts: Sequence[bytes]) -> bytes:
    return b"".join(text + b"\n" for text in texts)


json_texts = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["message", "number", "event", "level", "x"]), inner)
    ),
    max_leaves=5,
).map(lambda value: json.dumps(value).encode())


@given(json_texts | st.binary(max_size=60))
@deterministic
def test_any_text_parses_or_is_garbled(text: bytes) -> None:
    for parse in (parse_message, parse_event):
        with contextlib.suppress(GarbledError):
            parse(text)


@given(st.lists(st.binary(max_size=40) | json_texts, max_size=6))
@deterministic
def test_reading_continues_after_any_input(texts: list[bytes]) -> None:
    host = Host().hear(as_lines(texts) + b"\n" + event_text(7) + b"\n")
    assert host.lines[-1]["event"] == "run.ended"
    assert host.answers.endswith(b"7\n")
