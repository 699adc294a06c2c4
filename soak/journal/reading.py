# SPDX-License-Identifier: GPL-2.0-only
"""Read a journal, the current file and rotated ones, as one stream of lines.

The journal rotates to `journal-000001.jsonl` and so on. Tools such as logrotate use other names
(`journal.jsonl.1`, `journal.jsonl-20260101`) and compress old files. This module reads all of them, in
the order of the lines' `seq`, whatever the names of the files.
"""

from __future__ import annotations

import gzip
import os
import zlib
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple

from soak.errors import UsageError, why
from soak.files.regular import open_plain, open_to_read
from soak.journal.line import CutLineError, LineError, decode_line

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    _File = IO[bytes] | gzip.GzipFile

# Events that represent damage, and an incomplete last line. They never appear in a file.
DAMAGED: Final = "journal.damaged"
UNFINISHED: Final = "journal.unfinished"

_GZIP: Final = ".gz"
_CHUNK: Final = 65536
_LONGEST: Final = 16 << 20
# Errors of reading a truncated or damaged gzip file.
_DAMAGE: Final = (EOFError, gzip.BadGzipFile, zlib.error)


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a journal in the order of their `seq`, each once, rotated files first.

    An event `DAMAGED` replaces text that is not a line. A line that a crash cut, and whose `seq` the next
    line repeats, is not damage; if no line follows, an event `UNFINISHED` replaces it. Lines that are
    missing, with their file or within a damaged one, show as a gap in `seq`.

    Raises:
        FileNotFoundError: there is neither a current nor a rotated file.
        UsageError: a file cannot be read, or the current one is compressed or not a regular file.
    """
    try:
        yield from _lines_of_all(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UsageError(
            f"The journal {error.filename or path} cannot be read: {error.strerror}."
        ) from None


def _lines_of_all(path: Path) -> Iterator[dict[str, Any]]:
    last = 0
    with ExitStack() as stack:
        # Open the current file before listing the others, in case it is rotated in between.
        current = stack.enter_context(open_plain(path)) if path.exists() else None
        rotated = rotated_files(path)
        if current is None and not rotated:
            raise FileNotFoundError(f"There is no journal {path}.")
        for name, file in _by_number(rotated, current, path.name):
            cut: Damage | None = None
            for place, text in enumerate(_texts(file), 1):
                line = _parse(text)
                if isinstance(line, LineError):
                    damage = Damage(name, place, line)
                    if damage.may_be_cut:
                        if cut is not None:
                            yield cut.as_line(last)
                        cut = damage
                    else:
                        yield damage.as_line(last)
                    continue
                if line["seq"] <= last:
                    continue
                if cut is not None and line["seq"] > last + 1:
                    yield cut.as_line(last)
                cut, last = None, line["seq"]
                yield line
            if cut is not None:
                yield cut.as_line(last, DAMAGED if text.endswith(b"\n") else UNFINISHED)


def read_given_journal(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines like `read_journal`, for a run that the user named.

    Raises:
        UsageError: the journal does not exist or cannot be read.
    """
    try:
        yield from read_journal(path)
    except OSError as error:
        raise UsageError(f"The journal {error.filename or path} cannot be read: {why(error)}.") from None


class Damage(NamedTuple):
    """Text in a journal's file that is not a line; `place` is its line number there."""

    file: str
    place: int
    error: LineError

    @property
    def may_be_cut(self) -> bool:
        return isinstance(self.error, CutLineError)

    def as_line(self, last: int, event: str = DAMAGED) -> dict[str, Any]:
        """Return the damage as an event with the `seq` of the line before it."""
        return {"seq": last, "event": event, "summary": f"line {self.place} of {self.file}: {self.error}"}


def journal_exists(path: Path) -> bool:
    """Return whether a journal exists; during a rotation only a rotated file may."""
    return path.exists() or bool(rotated_files(path))


def has_begun(path: Path) -> bool:
    """Return whether the journal has a `run.started`."""
    return journal_exists(path) and any(line["event"] == "run.started" for line in read_journal(path))


def rotated_files(path: Path) -> list[Path]:
    """Return the rotated files of a journal, in no particular order.

    Raises:
        OSError: the directory exists and cannot be read.
    """
    beginnings = (f"{path.stem}-", f"{path.name}.", f"{path.name}-")
    try:
        others = list(path.parent.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [
        other
        for other in others
        if other.name.startswith(beginnings) and path.suffix in other.name and other.is_file()
    ]


def last_number(path: Path) -> int:
    """Return the `seq` of the journal's last line, or 0; reads only the ends of plain files."""
    current = _last_number(path) if path.exists() else 0
    if current:
        return current
    firsts = {other: first for other in rotated_files(path) if (first := _first_number(other))}
    # A file and its compressed copy start with the same line, and the copy may be incomplete.
    newest = [other for other, first in firsts.items() if first == max(firsts.values())]
    return max((_last_number(other) for other in newest), default=0)


def _by_number(rotated: list[Path], current: IO[bytes] | None, name: str) -> Iterator[tuple[str, _File]]:
    """Open the files in the order of their first lines; one writer at a time, so they do not overlap."""
    firsts = sorted((first, other) for other in rotated if (first := _first_number(other)))
    for _, other in firsts:
        with _opened(other) as file:
            yield other.name, file
    if current is not None:
        yield name, current


@contextmanager
def _opened(path: Path) -> Iterator[_File]:
    with open_to_read(path) as file:
        if path.name.endswith(_GZIP):
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield unpacked
        else:
            yield file


def _texts(file: _File) -> Iterator[bytes]:
    """Yield the raw lines of a file, up to damaged compression."""
    try:
        # An overlong line comes in pieces, none of which decodes.
        yield from iter(partial(file.readline, _LONGEST), b"")
    except _DAMAGE:
        return  # the gap in `seq` reveals the missing lines


def _lines(file: _File) -> Iterator[dict[str, Any]]:
    """Yield the valid lines of a file."""
    for text in _texts(file):
        line = _parse(text)
        if not isinstance(line, LineError):
            yield line


def _parse(text: bytes) -> dict[str, Any] | LineError:
    try:
        line = decode_line(text)
    except LineError as error:
        return error
    if line["event"] in {DAMAGED, UNFINISHED}:
        return LineError(f"its event {line['event']} is reserved, no file has it")
    return line


def _first_number(path: Path) -> int:
    with _opened(path) as file:
        return next((int(line["seq"]) for line in _lines(file)), 0)


def _last_number(path: Path) -> int:
    with _opened(path) as file:
        if path.name.endswith(_GZIP):
            return max((int(line["seq"]) for line in _lines(file)), default=0)
        for text in _backwards(file):
            line = _parse(text)
            if not isinstance(line, LineError):
                return int(line["seq"])
    return 0


def _backwards(file: _File) -> Iterator[bytes]:
    """Yield the lines of a file, last one first, without reading it all: it may have gigabytes."""
    position, rest, chunk = file.seek(0, os.SEEK_END), b"", _CHUNK
    while position:
        size = min(chunk, position)
        position -= size
        file.seek(position)
        rest, *texts = (file.read(size) + rest).split(b"\n")
        yield from reversed(texts)
        chunk *= 2  # keeps the cost of a long line linear
    yield rest
