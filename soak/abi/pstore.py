# SPDX-License-Identifier: GPL-2.0-only
"""Crash logs of earlier boots (fs/pstore).

systemd-pstore moves records out of pstore, so this module reads both directories. It never removes a
record: they belong to the machine.
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
    """One part of a kernel log at a crash; `time` is the record's, in seconds since the epoch.

    Parts count from the end of the log: part 1 is the newest.
    """

    path: Path
    time: float
    part: int
    text: str


def crash_records(since: float, places: tuple[Path, ...] = PLACES) -> list[CrashRecord]:
    """Return the records since `since` (seconds since the epoch), in the order of the log.

    Raises:
        OSError: a record cannot be read.
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
