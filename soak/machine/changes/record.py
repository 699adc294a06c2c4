# SPDX-License-Identifier: GPL-2.0-only
"""The write-ahead record: what the soak has changed on this machine and not yet put back.

A change is on disk here before it is made, and leaves the record after it was undone. The file is
replaced as a whole, so that a power cut leaves the old one or the new one.
"""

from __future__ import annotations

import json
import os
from dataclasses import fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from soak.errors import UsageError
from soak.machine.changes.entry import Entry

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from soak.machine.changes.entry import Kind

_NAME: Final = "changes.json"
_FORMAT: Final = 1
_TYPES: Final = {"number": int, "kind": str, "target": str, "facts": dict, "boot_id": str, "run_id": str}


class Record:
    """The entries, in the order in which the changes were made. Whoever has the lock owns it."""

    def __init__(self, state: Path, kinds: Mapping[str, Kind]) -> None:
        """Read the record in the directory `state`. A damaged one is kept under another name.

        Raises:
            UsageError: it cannot be read, or a later version of this program wrote it.
        """
        self._path = state / _NAME
        self._state = state
        self.entries: list[Entry] = []
        # Where a damaged record was set aside, and what is wrong with it: a sentence, or nothing.
        self.damage = ""
        try:
            text = self._read()
        except FileNotFoundError:
            return
        except OSError as error:
            raise UsageError(
                f"The record of what is to be put back, {self._path}, cannot be read: {error.strerror}."
            ) from None
        self.entries, wrong = _parsed(text, self._path, kinds)
        if wrong:
            aside = self._set_aside()
            self.damage = (
                f"The record of what is to be put back was damaged ({wrong}); it is kept as {aside}: "
                f"look there for what an earlier soak changed on this machine and could not put back."
            )

    def add(self, entry: Entry) -> None:
        """Write an entry down. When this returns it outlives a power cut.

        Raises:
            OSError: it could not be written; the record is as it was.
        """
        self._save([*self.entries, entry])

    def remove(self, number: int) -> None:
        """Take an entry out.

        Raises:
            OSError: it could not be written; the record is as it was.
        """
        self._save([entry for entry in self.entries if entry.number != number])

    def next_number(self) -> int:
        return max((entry.number for entry in self.entries), default=0) + 1

    def _read(self) -> bytes:
        descriptor = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            return file.read()

    def _save(self, entries: list[Entry]) -> None:
        unfinished = self._path.with_suffix(".json.new")
        unfinished.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        content = {"format": _FORMAT, "entries": [entry.to_json() for entry in entries]}
        # No byte can be left to a write that fails later: closing flushes, then comes fsync.
        with os.fdopen(os.open(unfinished, flags, 0o600), "w") as file:
            json.dump(content, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self._path)
        sync_directory(self._state)
        self.entries = entries

    def _set_aside(self) -> Path:
        """Keep the damaged file under a name of its own; what could be read of it stays recorded."""
        stamp = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
        names = (f"{_NAME}.damaged-{stamp}{more}" for more in ("", *(f"-{n}" for n in range(1, 100))))
        aside = next(path for name in names if not (path := self._state / name).exists())
        # A second name first: whatever happens in between, one of both is there.
        aside.hardlink_to(self._path)
        self._save(self.entries)
        return aside


def sync_directory(path: Path) -> None:
    """Have the names in a directory outlive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _parsed(text: bytes, path: Path, kinds: Mapping[str, Kind]) -> tuple[list[Entry], str]:
    """Return the entries that can be read, and what is wrong with the rest."""
    try:
        content = json.loads(text)
    except ValueError:
        return [], "it is no JSON"
    if not isinstance(content, dict) or not isinstance(content.get("entries"), list):
        return [], "it has no list of entries"
    if content.get("format") != _FORMAT:
        raise UsageError(
            f"{path} has format {content.get('format')!r} and this dax-soak writes format {_FORMAT}: "
            f"run 'dax-soak restore' of the version that wrote it."
        )
    good = [Entry(**item) for item in content["entries"] if _is_entry(item, kinds)]
    bad = len(content["entries"]) - len(good)
    if len({entry.number for entry in good}) < len(good):
        return [], "two entries have one number"
    return good, f"{bad} of its {bad + len(good)} entries make no sense" if bad else ""


def _is_entry(item: Any, kinds: Mapping[str, Kind]) -> bool:  # noqa: ANN401 - whatever JSON has
    if not isinstance(item, dict) or set(item) != {field.name for field in fields(Entry)}:
        return False
    if not all(isinstance(item[name], kind) for name, kind in _TYPES.items()):
        return False
    if item["kind"] not in kinds:
        return False
    wanted = kinds[item["kind"]].facts
    return set(item["facts"]) == set(wanted) and all(
        isinstance(item["facts"][name], kind) for name, kind in wanted.items()
    )
