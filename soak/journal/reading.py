# SPDX-License-Identifier: GPL-2.0-only
"""Reading a journal: the current file and those that were rotated away, as one stream of lines.

The journal rotates to `journal-000001.jsonl` and so on. Tools of a system give a file away under names
of their own (`journal.jsonl.1`, `journal.jsonl-20260101`), and compress what is old: all of it is read,
in the order of the numbers that the lines bear, and never by what a file is called.
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

# The events that stand for damage, and for a line without an end behind all others; they are in no file.
DAMAGED: Final = "journal.damaged"
UNFINISHED: Final = "journal.unfinished"

_GZIP: Final = ".gz"
_CHUNK: Final = 65536
_LONGEST: Final = 16 << 20
# What reading a compressed file raises that is cut short or damaged.
_DAMAGE: Final = (EOFError, gzip.BadGzipFile, zlib.error)


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a journal by number, those of its rotated files first, none of them twice.

    In the place of damage that is no line any more stands a line of the event `DAMAGED`, which is in no
    file. One that a crash cut short, and whose number the next line bears, is no damage; where no line
    follows, one of the event `UNFINISHED` stands in its place. What is missing altogether, with a file or
    within a damaged one, shows as a gap in the numbers.

    Raises:
        FileNotFoundError: there is neither a current nor a rotated file.
        UsageError: one of the files cannot be read, or the current one is compressed or no file.
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
        # Opened before the others are listed: rotated meanwhile, it is read all the same.
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
    """Yield the lines of the journal of a run that somebody named, as `read_journal` does.

    Raises:
        UsageError: it is not there, or cannot be read.
    """
    try:
        yield from read_journal(path)
    except OSError as error:
        raise UsageError(f"The journal {error.filename or path} cannot be read: {why(error)}.") from None


class Damage(NamedTuple):
    """Something in a journal's file that is no line."""

    file: str
    place: int
    error: LineError

    @property
    def may_be_cut(self) -> bool:
        return isinstance(self.error, CutLineError)

    def as_line(self, last: int, event: str = DAMAGED) -> dict[str, Any]:
        """Return it as an event that follows line `last`."""
        return {"seq": last, "event": event, "summary": f"line {self.place} of {self.file}: {self.error}"}


def journal_exists(path: Path) -> bool:
    """Say whether there is a journal: between two steps of a rotation only the old file is there."""
    return path.exists() or bool(rotated_files(path))


def has_begun(path: Path) -> bool:
    """Say whether a run began to soak: its journal says so among its first lines."""
    return journal_exists(path) and any(line["event"] == "run.started" for line in read_journal(path))


def rotated_files(path: Path) -> list[Path]:
    """Return the files that held the journal before the current one, in no particular order.

    Raises:
        OSError: the directory is there and cannot be read.
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
    """Return the number of the journal's last line, 0 where there is none, from the files' ends."""
    current = _last_number(path) if path.exists() else 0
    if current:
        return current
    firsts = {other: first for other in rotated_files(path) if (first := _first_number(other))}
    # A file and its compressed copy begin alike, and one of the two may be half written.
    newest = [other for other, first in firsts.items() if first == max(firsts.values())]
    return max((_last_number(other) for other in newest), default=0)


def _by_number(rotated: list[Path], current: IO[bytes] | None, name: str) -> Iterator[tuple[str, _File]]:
    """Open one file after the other; each line was written by one writer, so they do not mix."""
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
    """Yield the lines of a file as they are, up to where it cannot be read any more."""
    try:
        # One without an end comes in parts, and none of them is a line.
        yield from iter(partial(file.readline, _LONGEST), b"")
    except _DAMAGE:
        return  # the numbers that are missing now tell it


def _lines(file: _File) -> Iterator[dict[str, Any]]:
    """Yield the whole lines of a file."""
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
        return LineError(f"its event is {line['event']}, which is in no file")
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
    """Yield the lines of a file, the last one first: a journal may have gigabytes."""
    position, rest, chunk = file.seek(0, os.SEEK_END), b"", _CHUNK
    while position:
        size = min(chunk, position)
        position -= size
        file.seek(position)
        rest, *texts = (file.read(size) + rest).split(b"\n")
        yield from reversed(texts)
        chunk *= 2  # a line that is longer than all that was read is not searched again and again
    yield rest
