"""The journal: everything that happened in a run, one JSON object a line, append-only.

Each line has `seq`, `time` (UTC), `monotonic` (seconds), `boot_id`, `event` (noun.verb), `level` and the
event's own fields. What a verdict says can be computed again from the journal alone.

In a lab the guest writes no file: it sends its lines over a virtio-serial port, where the host numbers
them, writes them and answers, so that a guest that dies takes nothing with it.
"""

from __future__ import annotations

import json
import os
import select
import time
from collections import deque
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from soak.abi.procfs import boot_id

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_CHUNK: Final = 65536
_QUEUE_LINES: Final = 4096
_ACKNOWLEDGE_SECONDS: Final = 10.0
_HANG_UP_SECONDS: Final = 0.05


class Level(StrEnum):
    """How much an event matters."""

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Journal(Protocol):
    """Where events go. `errors` counts those that could not be written."""

    errors: int

    def write(self, event: str, level: Level = Level.INFO, **fields: Any) -> None:  # noqa: ANN401
        """Write an event. One of level error is on disk when this returns, or counted in `errors`."""

    def close(self) -> None: ...


def stamped(event: str, level: Level, fields: dict[str, Any], boot: str) -> dict[str, Any]:
    """Return an event with the times of now."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "monotonic": round(time.monotonic(), 6),
        "boot_id": boot,
        "event": event,
        "level": str(level),
        **fields,
    }


class FileJournal:
    """The journal's file: numbers the lines and appends them."""

    def __init__(self, path: Path) -> None:
        """Open the journal, going on behind what is there; a line cut short by a crash is ended."""
        self._boot = boot_id()
        self._seq = 0
        self._cut = False
        self.errors = 0
        if path.exists():
            self._seq = max((line["seq"] for line in read_journal(path)), default=0)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        if path.stat().st_size and not path.read_bytes().endswith(b"\n"):
            os.write(self._file, b"\n")

    @property
    def seq(self) -> int:
        """The number of the newest line."""
        return self._seq

    def write(self, event: str, level: Level = Level.INFO, **fields: Any) -> None:  # noqa: ANN401
        self.append(stamped(event, level, fields, self._boot))

    def append(self, line: dict[str, Any]) -> int:
        """Number a line that is complete but for that, append it, and return its number."""
        self._seq += 1
        text = json.dumps({"seq": self._seq, **line}, separators=(",", ":"), default=str) + "\n"
        # What a full disk cut short must not swallow the line that comes when there is space again.
        data = (b"\n" if self._cut else b"") + text.encode()
        try:
            self._cut = True
            _write_all(self._file, data)
            self._cut = False
            if line["level"] == Level.ERROR:
                os.fdatasync(self._file)
        except OSError:
            # A full disk must not end the run; the count is exported and makes the verdict unknown.
            self.errors += 1
        return self._seq

    def close(self) -> None:
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class PortJournal:
    """The guest's end: sends lines through a port and waits for the answer where it matters.

    Lines wait in a bounded queue, so a host that does not read holds nobody up for longer than the
    deadline of one acknowledgement.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        os.set_blocking(port, False)
        self._boot = boot_id()
        self._queue: deque[bytes] = deque()
        self._number = 0
        self._acknowledged = 0
        self._received = b""
        self.errors = 0

    def write(self, event: str, level: Level = Level.INFO, **fields: Any) -> None:  # noqa: ANN401
        if len(self._queue) >= _QUEUE_LINES:
            self._exchange(time.monotonic(), 0)
        if len(self._queue) >= _QUEUE_LINES:
            self.errors += 1
            return
        self._number += 1
        line = {"number": self._number, **stamped(event, level, fields, self._boot)}
        self._queue.append(json.dumps(line, separators=(",", ":"), default=str).encode() + b"\n")
        if level is Level.ERROR:
            if not self._exchange(time.monotonic() + _ACKNOWLEDGE_SECONDS, self._number):
                self.errors += 1
        else:
            self._exchange(time.monotonic(), 0)

    def flush(self, seconds: float) -> bool:
        """Wait until the host has everything; False when it did not within `seconds`."""
        return self._exchange(time.monotonic() + seconds, self._number)

    def close(self) -> None:
        self.flush(_ACKNOWLEDGE_SECONDS)
        os.close(self._port)

    def _exchange(self, deadline: float, until: int) -> bool:
        """Send what waits and read answers, until line `until` is acknowledged."""
        while True:
            left = max(deadline - time.monotonic(), 0.0)
            waiting = self._acknowledged < until
            if not waiting and not self._queue:
                return True
            readable, writable, _ = select.select(
                [self._port], [self._port] if self._queue else [], [], left if waiting else 0
            )
            moved = bool(readable) and self._receive()
            moved = (bool(writable) and self._send()) or moved
            if not moved:
                if not waiting or left == 0:
                    return not waiting
                if readable or writable:
                    # The host has hung up, which is readable for ever.
                    time.sleep(min(left, _HANG_UP_SECONDS))

    def _send(self) -> bool:
        try:
            sent = os.write(self._port, self._queue[0])
        except OSError:
            return False
        if sent < len(self._queue[0]):
            self._queue[0] = self._queue[0][sent:]
        else:
            self._queue.popleft()
        return sent > 0

    def _receive(self) -> bool:
        try:
            data = os.read(self._port, _CHUNK)
        except OSError:
            return False
        *answers, self._received = (self._received + data).split(b"\n")
        if answers:
            self._acknowledged = int(answers[-1])
        return bool(data)


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a journal; one that was cut short by a crash is left out."""
    with path.open("rb") as file:
        for text in file:
            try:
                line = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and isinstance(line.get("seq"), int):
                yield line


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]
