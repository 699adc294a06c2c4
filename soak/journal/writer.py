# SPDX-License-Identifier: GPL-2.0-only
"""Writers of the journal: the events of a run, one JSON object per line, append-only.

Each line has `format`, `seq`, `time` (UTC), `monotonic` (seconds), `boot_id`, `event` (noun.verb),
`level`, the event's own fields (soak.journal.events) and a checksum. The verdict follows from the journal
alone, and damage to the journal never improves it.

In the lab the guest sends its lines over a virtio-serial port. The host numbers, writes and acknowledges
them, so that no acknowledged line is lost with the guest.
"""

from __future__ import annotations

import json
import os
import select
import time
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol, Self

from soak.abi.procfs import boot_id
from soak.journal.backlog import Backlog, Line
from soak.journal.file import ROTATE_BYTES, JournalFile, Reserve
from soak.journal.line import encode_line
from soak.journal.reading import last_number, read_journal
from soak.model.vocabulary import Level

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["OWN_EVENTS", "FileJournal", "Journal", "Level", "PortJournal", "read_journal", "stamped"]

_HELD, _CAUGHT_UP, _GAP = "journal.held", "journal.caught-up", "journal.gap"
# Events about the journal itself.
OWN_EVENTS: Final = frozenset({_HELD, _CAUGHT_UP, _GAP})

_CHUNK: Final = 65536
_QUEUE_LINES: Final = 4096
_HELD_LINES: Final = 4096
_ACKNOWLEDGE_SECONDS: Final = 10.0
_HANG_UP_SECONDS: Final = 0.05


class Journal(Protocol):
    """A sink of events."""

    @property
    def errors(self) -> int:
        """The number of events that could not be written."""

    def write(self, event: str, level: Level = Level.INFO, **fields: Any) -> None:  # noqa: ANN401
        """Write an event.

        An event of level error is on disk when this returns, or counted in `errors`, or held in memory
        on a full disk, which an event `journal.held` reports.
        """

    def retry(self) -> None:
        """Try to write waiting lines, without blocking."""

    def close(self) -> None: ...


def stamped(event: str, level: Level, fields: dict[str, Any], boot: str) -> dict[str, Any]:
    """Return an event with the current times."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "monotonic": round(time.monotonic(), 6),
        "boot_id": boot,
        "event": event,
        "level": str(level),
        **fields,
    }


class FileJournal:
    """Numbers lines and appends them to the journal's file.

    On a full disk, lines wait in memory, in order, until there is space. A violation is written at once
    with space from the reserve, together with all lines before it, because the file is in the order of
    `seq`. If too many lines wait, the journal drops the least important and reports the gap.
    """

    def __init__(
        self,
        path: Path,
        *,
        rotate_bytes: int = ROTATE_BYTES,
        most_held: int = _HELD_LINES,
        on_line: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        """Open the journal to append, and terminate a line that a crash cut.

        Rotate a file at `rotate_bytes`; let at most `most_held` lines wait. Pass each numbered line to
        `on_line`, including events about the journal itself.

        Raises:
            OSError: the file cannot be created.
        """
        self._boot = boot_id()
        self._on_line = on_line
        self._seq = last_number(path)
        self._file = JournalFile(path, rotate_bytes)
        self._reserve = Reserve(path)
        self._backlog = Backlog(most_held)
        self._held_since: float | None = None
        self._waited = 0
        self._lost = 0

    @property
    def seq(self) -> int:
        """The `seq` of the newest line."""
        return self._seq

    @property
    def errors(self) -> int:
        """The number of lost lines; waiting lines do not count."""
        return self._lost + self._file.sync_errors

    @property
    def waiting(self) -> int:
        """The number of lines that wait for disk space."""
        return len(self._backlog)

    def write(self, event: str, level: Level = Level.INFO, **fields: Any) -> None:  # noqa: ANN401
        self.append(stamped(event, level, fields, self._boot))

    def append(self, line: dict[str, Any]) -> int:
        """Number a stamped line, append it, and return its `seq`."""
        seq = self._push(line)
        self._drain()
        self._lost += self._backlog.give_up(begun=self._file.cut)
        self._waited += bool(self._backlog)
        return seq

    def retry(self) -> None:
        """Write waiting lines if there is space again, and reopen a renamed file."""
        try:
            self._file.follow()
        except OSError as error:
            self._hold(error)
        self._drain()

    def flush(self) -> bool:
        """Write waiting lines, using the reserve; return whether all are written."""
        self._drain(spend=True)
        return not self._backlog

    def close(self) -> None:
        """Close the file; count lines that still wait as lost."""
        self.flush()
        self._lost += len(self._backlog)
        self._reserve.close()
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _push(self, line: dict[str, Any], *, kept: bool = False) -> int:
        self._seq += 1
        numbered = {"seq": self._seq, **line}
        text = encode_line(numbered)
        self._backlog.push(Line(self._seq, Level(line["level"]), text, kept))
        seq = self._seq
        if self._on_line is not None:
            self._on_line(numbered)
        return seq

    def _report(self, event: str, level: Level, **fields: Any) -> None:  # noqa: ANN401
        """Queue an event about the journal itself."""
        self._push(stamped(event, level, fields, self._boot), kept=True)

    def _drain(self, *, spend: bool = False) -> None:
        """Write waiting lines; use the reserve only for violations, or with `spend`."""
        scarce = self._held_since is not None and self._reserve.spent
        if scarce and not (spend or self._backlog.urgent) and not self._reserve.take():
            return
        while self._write_waiting(spend=spend) and self._held_since is not None:
            gap = self._backlog.take_gap()
            if gap is not None:
                self._report_gap(gap)
            elif self._reserve.take() or not self._reserve.spent:
                self._catch_up(time.monotonic() - self._held_since)
            else:
                break
        self._file.sync()

    def _write_waiting(self, *, spend: bool) -> bool:
        """Write until no line waits; return False if a write failed."""
        while (line := self._backlog.first) is not None:
            try:
                self._file.append(line.data, durable=line.level is Level.ERROR)
            except OSError as error:
                # A full disk must not end the run.
                began = self._hold(error)
                if (began or spend or self._backlog.urgent) and self._reserve.give_back():
                    continue
                return False
            self._backlog.pop()
        return True

    def _hold(self, error: OSError) -> bool:
        """Report that lines wait from now on; return False if they did already."""
        if self._held_since is not None:
            return False
        self._held_since = time.monotonic()
        self._waited = 0
        self._report(
            _HELD,
            Level.WARNING,
            error=error.strerror,
            summary=f"the journal cannot be written ({error.strerror}): lines wait in memory",
        )
        return True

    def _catch_up(self, seconds: float) -> None:
        self._held_since = None
        self._report(
            _CAUGHT_UP,
            Level.WARNING,
            seconds=round(seconds, 3),
            lines=self._waited,
            summary=f"the journal can be written again: wrote {self._waited} waiting lines",
        )

    def _report_gap(self, gap: dict[str, Any]) -> None:
        given_up = gap["given_up"]
        worst = Level.ERROR if given_up[Level.ERROR] else Level.WARNING
        levels = ", ".join(f"{count} of level {level}" for level, count in given_up.items() if count)
        self._report(
            _GAP,
            worst,
            **gap,
            summary=f"the journal dropped lines between {gap['first']} and {gap['last']}: {levels}",
        )


class PortJournal:
    """The guest's side: sends lines through a port, and waits for the acknowledgement of an error.

    The queue is bounded, so a host that stops reading delays a caller by at most one acknowledgement
    deadline.
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

    def retry(self) -> None:
        """Send as much as the port accepts."""
        self._exchange(time.monotonic(), 0)

    def flush(self, seconds: float) -> bool:
        """Wait up to `seconds` for the host to acknowledge every line; return whether it did."""
        return self._exchange(time.monotonic() + seconds, self._number)

    def close(self) -> None:
        self.flush(_ACKNOWLEDGE_SECONDS)
        os.close(self._port)

    def _exchange(self, deadline: float, until: int) -> bool:
        """Send queued lines and read acknowledgements, until line `until` is acknowledged."""
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
                    # After the host hung up, the port stays readable.
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
