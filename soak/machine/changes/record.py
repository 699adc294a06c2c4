# SPDX-License-Identifier: GPL-2.0-only
"""The write-ahead record of changes that the soak has not yet undone.

A change is on disk before it is made, and leaves the record after it is undone. The file is replaced as a
whole, so a power cut leaves the old one or the new one.
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
    """The entries, in the order of the changes. The holder of the machine's lock owns it."""

    def __init__(self, state: Path, kinds: Mapping[str, Kind]) -> None:
        """Read the record in the directory `state`. A damaged one is renamed and kept.

        Raises:
            UsageError: it cannot be read, or another version of this program wrote it.
        """
        self._path = state / _NAME
        self._state = state
        self.entries: list[Entry] = []
        # Where a damaged record is kept, and what is wrong with it; empty if it is intact.
        self.damage = ""
        try:
            text = self._read()
        except FileNotFoundError:
            return
        except OSError as error:
            raise UsageError(
                f"The record of changes {self._path} cannot be read: {error.strerror}."
            ) from None
        self.entries, wrong = _parsed(text, self._path, kinds)
        if wrong:
            aside = self._set_aside()
            self.damage = (
                f"The record of changes is damaged ({wrong}) and kept as {aside}: look there for "
                f"changes of an earlier soak, and undo them by hand."
            )

    def add(self, entry: Entry) -> None:
        """Add an entry. On return it is on disk.

        Raises:
            OSError: the file could not be written; the record is unchanged.
        """
        self._save([*self.entries, entry])

    def remove(self, number: int) -> None:
        """Remove an entry.

        Raises:
            OSError: the file could not be written; the record is unchanged.
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
        # flush and fsync report every write error before the rename.
        with os.fdopen(os.open(unfinished, flags, 0o600), "w") as file:
            json.dump(content, file, indent=1)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(self._path)
        sync_directory(self._state)
        self.entries = entries

    def _set_aside(self) -> Path:
        """Keep the damaged file under another name; the readable entries stay recorded."""
        stamp = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
        names = (f"{_NAME}.damaged-{stamp}{more}" for more in ("", *(f"-{n}" for n in range(1, 100))))
        aside = next(path for name in names if not (path := self._state / name).exists())
        # Link before replacing, so that a crash in between loses neither file.
        aside.hardlink_to(self._path)
        self._save(self.entries)
        return aside


def sync_directory(path: Path) -> None:
    """Write the names in a directory to disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _parsed(text: bytes, path: Path, kinds: Mapping[str, Kind]) -> tuple[list[Entry], str]:
    """Return the readable entries, and what is wrong with the others."""
    try:
        content = json.loads(text)
    except ValueError:
        return [], "it is not JSON"
    if not isinstance(content, dict) or not isinstance(content.get("entries"), list):
        return [], "it has no list of entries"
    if content.get("format") != _FORMAT:
        raise UsageError(
            f"{path} has format {content.get('format')!r}, and this dax-soak reads format {_FORMAT}: "
            f"run 'dax-soak restore' of the version that wrote it."
        )
    good = [Entry(**item) for item in content["entries"] if _is_entry(item, kinds)]
    bad = len(content["entries"]) - len(good)
    if len({entry.number for entry in good}) < len(good):
        return [], "two entries have the same number"
    return good, f"{bad} of its {bad + len(good)} entries are malformed" if bad else ""


def _is_entry(item: Any, kinds: Mapping[str, Kind]) -> bool:  # noqa: ANN401 - any JSON value
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
