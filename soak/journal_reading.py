"""Reading a journal: the current file and those that were rotated away, as one stream of lines.

The journal rotates to `journal-000001.jsonl` and so on. Tools of a system give a file away under names
of their own (`journal.jsonl.1`, `journal.jsonl-20260101`), and compress what is old: all of it is read,
in the order of the numbers that the lines bear, and never by what a file is called.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from contextlib import ExitStack
from typing import IO, TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    _File = IO[bytes] | gzip.GzipFile

_GZIP: Final = ".gz"
_CHUNK: Final = 65536
# What reading a compressed file raises that is cut short or damaged.
_DAMAGE: Final = (EOFError, gzip.BadGzipFile, zlib.error)


def read_journal(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a journal by number, those of its rotated files first, none of them twice.

    A line that a crash cut short is left out. What is missing altogether, with a file or within a
    damaged one, shows as a gap in the numbers, which the verdict tells.

    Raises:
        FileNotFoundError: there is neither a current nor a rotated file.
    """
    last = 0
    with ExitStack() as stack:
        # Opened before the others are listed: rotated meanwhile, it is read all the same.
        current = stack.enter_context(path.open("rb")) if path.exists() else None
        rotated = rotated_files(path)
        if current is None and not rotated:
            raise FileNotFoundError(f"There is no journal {path}.")
        for file in _by_number(rotated, current):
            for line in _lines(file):
                if line["seq"] > last:
                    last = line["seq"]
                    yield line


def journal_exists(path: Path) -> bool:
    """Say whether there is a journal: between two steps of a rotation only the old file is there."""
    return path.exists() or bool(rotated_files(path))


def rotated_files(path: Path) -> list[Path]:
    """Return the files that held the journal before the current one, in no particular order."""
    beginnings = (f"{path.stem}-", f"{path.name}.", f"{path.name}-")
    return [
        other
        for other in path.parent.glob("*")
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


def _by_number(rotated: list[Path], current: IO[bytes] | None) -> Iterator[_File]:
    """Open one file after the other; each line was written by one writer, so they do not mix."""
    firsts = sorted((first, other) for other in rotated if (first := _first_number(other)))
    for _, other in firsts:
        with _open(other) as file:
            yield file
    if current is not None:
        yield current


def _open(path: Path) -> _File:
    return gzip.open(path, "rb") if path.name.endswith(_GZIP) else path.open("rb")


def _lines(file: _File) -> Iterator[dict[str, Any]]:
    """Yield the whole lines of a file, up to where it is damaged."""
    try:
        for text in file:
            line = _parse(text)
            if line is not None:
                yield line
    except _DAMAGE:
        return  # the numbers that are missing now tell it


def _parse(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("seq"), int) else None


def _first_number(path: Path) -> int:
    with _open(path) as file:
        return next((int(line["seq"]) for line in _lines(file)), 0)


def _last_number(path: Path) -> int:
    with _open(path) as file:
        if path.name.endswith(_GZIP):
            return max((int(line["seq"]) for line in _lines(file)), default=0)
        for text in _backwards(file):
            line = _parse(text)
            if line is not None:
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
