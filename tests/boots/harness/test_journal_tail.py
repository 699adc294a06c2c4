# SPDX-License-Identifier: GPL-2.0-only
"""Following a journal: it grows, rotates, and begins anew where a boot was tried again."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

from tests.boots.harness.journal_tail import JournalTail

if TYPE_CHECKING:
    from pathlib import Path


def add(path: Path, *numbers: int, end: str = "\n") -> None:
    with path.open("a") as file:
        file.writelines(json.dumps({"seq": number}) + end for number in numbers)


def numbers(tail: JournalTail) -> list[int]:
    return [line["seq"] for line in tail.lines()]


def test_new_lines_are_read_incrementally(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    tail = JournalTail(path)
    assert numbers(tail) == []
    add(path, 1, 2)
    assert numbers(tail) == [1, 2]
    add(path, 3, end="")
    assert numbers(tail) == [1, 2]
    path.write_text(f"{path.read_text()}\n")
    add(path, 4)
    assert numbers(tail) == [1, 2, 3, 4]


def test_tail_follows_rotation(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    tail = JournalTail(path)
    add(path, 1, 2, 3)
    assert numbers(tail) == [1, 2, 3]
    path.rename(tmp_path / "journal.1.jsonl")
    add(path, 4)
    assert numbers(tail) == [1, 2, 3, 4]
    assert tail.beginnings == 1


def test_new_journal_replaces_the_old(tmp_path: Path) -> None:
    path = tmp_path / "run/journal.jsonl"
    tail = JournalTail(path)
    for length in (3, 9):
        path.parent.mkdir()
        add(path, *range(1, length + 1))
        assert numbers(tail) == list(range(1, length + 1))
        shutil.rmtree(path.parent)
    assert tail.beginnings == 2
