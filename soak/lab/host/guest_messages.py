# SPDX-License-Identifier: GPL-2.0-only
"""What a guest sends, checked: it runs the kernel under test, may be dying, and is believed nothing.

What is odd is journalled with its beginning, and makes the verdict unknown, for it may have stood for
something else. Reading goes on with the next line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from soak.files.bounded_json import parse_json
from soak.journal.events import NUMBER, TEXT, Check, event_problem
from soak.journal.line import is_number
from soak.journal.writer import Level
from soak.lab import protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from soak.lab.host.port import Port

_SHOWN: Final = 200
# A guest that sends nothing else must not fill the journal.
_MOST_GARBLED: Final = 50
# What the host's journal says of each line by itself.
_HOSTS: Final = frozenset({"format", "seq", "crc32"})
# As Popen has it: the number of a signal is negative.
_EXIT_CODE: Final = Check("an exit code", lambda value: type(value) is int and -128 <= value < 256)  # noqa: PLR2004

# The fields of each message on the control port.
_MESSAGES: Final[Mapping[str, Mapping[str, Check]]] = {
    protocol.BOOTED: {"release": TEXT, "uptime": NUMBER},
    protocol.READY: {"uptime": NUMBER},
    protocol.ALIVE: {},
    protocol.FAULT: {"name": TEXT},
    protocol.UNPLANTED: {"name": TEXT, "summary": TEXT},
    protocol.FAILED: {"summary": TEXT},
    protocol.ANSWER: {"answer": TEXT},
    protocol.EXITED: {"code": _EXIT_CODE},
}


class GarbledError(ValueError):
    """The guest sent what it should not; the message says what is wrong with it."""


def parse_message(text: bytes) -> dict[str, Any]:
    """Return a message of the control port, which has all its fields.

    Raises:
        GarbledError: it is none.
    """
    message = _parse_object(text)
    fields = _MESSAGES.get(message["message"]) if _is_text(message.get("message")) else None
    if fields is None:
        raise GarbledError("it is no message that a guest sends")
    for field, check in fields.items():
        if field not in message:
            raise GarbledError(f"it has no field '{field}'")
        if not check.holds(message[field]):
            raise GarbledError(f"its field '{field}' is not {check.what}")
    return message


def parse_event(text: bytes) -> tuple[int, dict[str, Any]]:
    """Return the guest's number of a line of its journal, and the line without it.

    Raises:
        GarbledError: it is no event that the journal knows.
    """
    line = _parse_object(text)
    number = line.pop("number", None)
    if not is_number(number):
        raise GarbledError("it has no number")
    line = {name: value for name, value in line.items() if name not in _HOSTS}
    wrong = event_problem(line)
    if wrong is not None:
        raise GarbledError(wrong)
    return number, line


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _parse_object(text: bytes) -> dict[str, Any]:
    try:
        value = parse_json(text)
    except ValueError:
        raise GarbledError("it is no JSON, or nests too deeply") from None
    if not isinstance(value, dict):
        raise GarbledError("it is no JSON object")
    return value


class GuestListener:
    """Reads both ports of a guest, and passes on what is in order."""

    def __init__(
        self,
        journal_event: Callable[..., None],
        on_line: Callable[[dict[str, Any]], None],
        on_message: Callable[[dict[str, Any]], None],
    ) -> None:
        """Take how an event of the host is journalled, and what becomes of the guest's."""
        self._journal_event = journal_event
        self._on_line = on_line
        self._on_message = on_message
        self._garbled = 0

    async def read_journal(self, port: Port) -> None:
        """Pass on the guest's journal, and acknowledge each line; say where lines are missing."""
        expected = 1
        async for text in port.lines():
            try:
                number, line = parse_event(text)
            except GarbledError as error:
                self._note_garbled(protocol.JOURNAL_PORT, text, error)
                continue
            if number > expected:
                self._journal_event(
                    "guest.lines-lost",
                    Level.ERROR,
                    first=expected,
                    last=number - 1,
                    summary=f"lines {expected} to {number - 1} of the guest's journal did not come",
                )
            elif number < expected:
                wrong = GarbledError(f"its number is {number}, expected {expected}")
                self._note_garbled(protocol.JOURNAL_PORT, text, wrong)
            expected = number + 1
            self._on_line(line)
            port.send(str(number))

    async def read_control(self, port: Port) -> None:
        async for text in port.lines():
            try:
                message = parse_message(text)
            except GarbledError as error:
                self._note_garbled(protocol.CONTROL_PORT, text, error)
            else:
                self._on_message(message)

    def _note_garbled(self, port: str, text: bytes, error: GarbledError) -> None:
        self._garbled += 1
        if self._garbled > _MOST_GARBLED:
            return
        more = ", and no more of these are journalled" if self._garbled == _MOST_GARBLED else ""
        self._journal_event(
            "guest.garbled",
            Level.ERROR,
            port=port,
            text=repr(text[:_SHOWN]),
            summary=f"the guest sent something odd on port {port}: {error}{more}",
        )
