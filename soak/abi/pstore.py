# SPDX-License-Identifier: GPL-2.0-only
"""What a kernel left of its last words: crash logs of earlier boots (fs/pstore).

systemd-pstore moves them out of the file system, so both places are looked at. They are only read: they
are the machine's.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PLACES: Final = (Path("/sys/fs/pstore"), Path("/var/lib/systemd/pstore"))

_RECORD: Final = "dmesg-*"
# The first line of a record, such as "Panic#1 Part2" (pstore_dump(), fs/pstore/platform.c).
_PART: Final = re.compile(r"\w+#\d+ Part(\d+)\n")


@dataclass(frozen=True)
class CrashRecord:
    """A part of a kernel's log at its death; `time` is that of the record, in seconds since the epoch.

    The log is cut from its end: part 1 is the newest.
    """

    path: Path
    time: float
    part: int
    text: str


def crash_records(since: float, places: tuple[Path, ...] = PLACES) -> list[CrashRecord]:
    """Return the records made after `since` (seconds since the epoch) in the order of what they say.

    Raises:
        OSError: a record is there and cannot be read.
    """
    records = []
    for place in places:
        for path in sorted(place.rglob(_RECORD)):
            made = path.stat().st_mtime
            if path.is_file() and made >= since:
                text = path.read_text(errors="replace")
                numbered = _PART.match(text)
                part = int(numbered[1]) if numbered else 1
                records.append(CrashRecord(path, made, part, text))
    return sorted(records, key=lambda record: (record.time, -record.part))
