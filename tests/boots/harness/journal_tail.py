# SPDX-License-Identifier: GPL-2.0-only
"""Following a journal while it grows, without reading it again and again. Hosts and guests do it."""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from pathlib import Path


class JournalTail:
    """The journal of a run as it grows: each line is read once, by whoever asks next.

    A lab whose boot is tried again begins its journal anew, and so does this; `beginnings` counts that.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.beginnings = 0
        # Kept open, so that no other file gets its number.
        self._file: BinaryIO | None = None
        self._read = 0
        self._lines: list[dict[str, Any]] = []

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def lines(self) -> list[dict[str, Any]]:
        with contextlib.suppress(FileNotFoundError):
            status = self.path.stat()
            if self._file is None or status.st_ino != os.fstat(self._file.fileno()).st_ino:
                if self._file is not None:
                    self._file.close()
                self._file, self._read = self.path.open("rb"), 0
            if status.st_size > self._read:
                self._file.seek(self._read)
                whole, newline, _ = self._file.read().rpartition(b"\n")
                self._read += len(whole) + len(newline)
                for line in whole.splitlines():
                    self._take(line)
        return self._lines

    def _take(self, line: bytes) -> None:
        # One that a killed writer left unfinished is none.
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            if event["seq"] == 1:
                self._lines = []
                self.beginnings += 1
            self._lines.append(event)

    def __del__(self) -> None:
        if self._file is not None:
            self._file.close()
