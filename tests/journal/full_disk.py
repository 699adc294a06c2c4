# SPDX-License-Identifier: GPL-2.0-only
"""A journal on a disk that gets full and has space again: run as a script with a directory on that disk.

It fills the disk, prints what it saw as JSON, and leaves nothing behind. It runs on this machine, on a
small tmpfs, and in the guest of a lab, on a real file system.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from soak.journal.writer import FileJournal, Level, read_journal

LINES = 40
VIOLATIONS = 25
TEXT = "x" * 500


def fill(path: Path) -> None:
    """Take all the space there is, down to the last block."""
    with path.open("ab", buffering=0) as filler:
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while filler.write(bytes(size)):
                    pass


def seqs(path: Path) -> list[int]:
    return [line["seq"] for line in read_journal(path)]


def scenario(directory: Path) -> dict[str, Any]:
    path, filler = directory / "journal.jsonl", directory / "filler"
    seen: dict[str, Any] = {}
    with FileJournal(path) as journal:
        journal.write("before.full")
        fill(filler)
        for _ in range(LINES):
            journal.write("some.news", text=TEXT)
        seen["waiting"] = journal.waiting
        on_disk = []
        for number in range(VIOLATIONS):
            journal.write("violation.found", Level.ERROR, number=number, text=TEXT)
            on_disk.append(seqs(path)[-1] == journal.seq)
        seen["violations_on_disk"] = sum(on_disk)
        for _ in range(LINES):
            journal.write("some.news", text=TEXT)
            journal.retry()
        seen["waiting_again"] = journal.waiting
        filler.unlink()
        os.sync()  # ext4 frees what is deleted with its next commit
        journal.retry()
        seen["waiting_at_last"] = journal.waiting
        journal.write("after.full")
        # Once more, as the reserve is there again.
        fill(filler)
        for _ in range(LINES):
            journal.write("some.news", text=TEXT)
        journal.write("violation.found", Level.ERROR, number=-1)
        seen["second_violation_on_disk"] = seqs(path)[-1] == journal.seq
        filler.unlink()
        os.sync()
        seen["flushed"] = journal.flush()
        seen["errors"] = journal.errors
        seen["seq"] = journal.seq
    lines = list(read_journal(path))
    seen["numbered"] = [line["seq"] for line in lines] == list(range(1, journal.seq + 1))
    seen["told"] = [line["event"] for line in lines if line["event"].startswith("journal.")]
    seen["left"] = sorted(file.name for file in directory.iterdir() if file.is_file())
    path.unlink()
    return seen


if __name__ == "__main__":
    sys.stdout.write(json.dumps(scenario(Path(sys.argv[1]))) + "\n")
