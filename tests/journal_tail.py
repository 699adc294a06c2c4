"""Following a journal while it grows, without reading it again and again. Hosts and guests do it."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path


class JournalTail:
    """The journal of a run as it grows: each line is read once, by whoever asks next."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read = 0
        self._lines: list[dict[str, Any]] = []

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    def lines(self) -> list[dict[str, Any]]:
        if self.size > self._read:
            with self.path.open("rb") as file:
                file.seek(self._read)
                whole, newline, _ = file.read().rpartition(b"\n")
            self._read += len(whole) + len(newline)
            for line in whole.splitlines():
                # One that a killed writer left unfinished is none.
                with contextlib.suppress(ValueError):
                    self._lines.append(json.loads(line))
        return self._lines
