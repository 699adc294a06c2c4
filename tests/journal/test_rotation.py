# SPDX-License-Identifier: GPL-2.0-only
"""A journal in several files: rotated by itself or by others, compressed, killed at any moment."""

from __future__ import annotations

import gzip
import json
import os
import random
import select
import shutil
import signal
import time
from typing import TYPE_CHECKING

import pytest

from soak import run_directory
from soak.journal import file as journal_file
from soak.journal.line import encode_line
from soak.journal.reading import journal_exists, last_number, rotated_files
from soak.journal.writer import FileJournal, Level, read_journal
from soak.verdict import judge
from tests.support.soak import DEADLINE

if TYPE_CHECKING:
    from pathlib import Path

SMALL = 1000
LINES = 60


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.jsonl"


def write_many(path: Path, count: int = LINES) -> None:
    with FileJournal(path, rotate_bytes=SMALL) as journal:
        for number in range(count):
            journal.write("some.news", number=number, text="x" * (number % 7) * 20)
        assert journal.errors == journal.waiting == 0


def seqs(path: Path) -> list[int]:
    return [line["seq"] for line in read_journal(path)]


def names(path: Path) -> list[str]:
    return sorted(other.name for other in path.parent.iterdir())


def compress(path: Path) -> None:
    path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()


def test_rotation_numbers_files_and_loses_no_line(path: Path) -> None:
    write_many(path)
    assert seqs(path) == list(range(1, LINES + 1))
    count = len(names(path)) - 1
    assert count > 5
    assert names(path) == [*(f"journal-{n:06}.jsonl" for n in range(1, count + 1)), path.name]
    for rotated in rotated_files(path):
        assert rotated.stat().st_size <= SMALL
        assert rotated.read_bytes().endswith(b"\n")
        assert rotated.stat().st_mode & 0o777 == 0o640


def test_line_longer_than_a_file_is_written(path: Path) -> None:
    with FileJournal(path, rotate_bytes=SMALL) as journal:
        for _ in range(3):
            journal.write("long.line", text="x" * SMALL * 3)
    assert seqs(path) == [1, 2, 3]


def test_resumed_journal_continues_the_numbering(path: Path) -> None:
    for round_ in range(1, 5):
        write_many(path)
        assert seqs(path) == list(range(1, round_ * LINES + 1))
    # Also where a crash came right behind a rotation, before and after the new file was there.
    for crash in (lambda: path.write_bytes(b""), path.unlink):
        newest = max(rotated_files(path))
        path.rename(newest.with_name(f"journal-{int(newest.stem[-6:]) + 1:06}.jsonl"))
        crash() if crash == path.unlink and path.exists() else None
        before = seqs(path)
        write_many(path)
        assert seqs(path) == list(range(1, len(before) + LINES + 1))


def test_last_number_needs_only_the_files_end(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "x" * 1000
    lines = [encode_line({"seq": seq, "event": "a.b", "text": text}) for seq in range(1, 3001)]
    path.write_bytes(b"".join(lines) + b'{"seq":3001,"te')
    parsed: list[bytes] = []
    loads = json.loads

    def counting(text: bytes) -> object:
        parsed.append(text)
        return loads(text)

    monkeypatch.setattr(json, "loads", counting)
    assert last_number(path) == 3000
    assert len(parsed) < 5


@pytest.mark.parametrize("length", [0, 1, 65535, 65536, 65537, 400_000])
def test_last_number_is_found_before_any_rubbish(path: Path, length: int) -> None:
    lines = [encode_line({"seq": seq, "event": "a.b"}) for seq in (1, 41)]
    path.write_bytes(b"".join(lines) + b"\0" * length)
    assert last_number(path) == 41


def test_compressed_files_are_read_and_continued(path: Path) -> None:
    write_many(path)
    for rotated in rotated_files(path)[::2]:
        compress(rotated)
    assert seqs(path) == list(range(1, LINES + 1))
    for rotated in rotated_files(path):
        if rotated.suffix == ".jsonl":
            compress(rotated)
    path.unlink()
    here = seqs(path)
    numbers = len(rotated_files(path))
    with FileJournal(path, rotate_bytes=SMALL) as journal:
        assert journal.seq == here[-1]
        for _ in range(20):
            journal.write("more.news", text="x" * 100)
    assert seqs(path) == list(range(1, here[-1] + 21))
    assert path.with_name(f"journal-{numbers + 1:06}.jsonl").exists()


def test_file_with_a_compressed_copy_is_read_once(path: Path) -> None:
    write_many(path)
    for position, rotated in enumerate(rotated_files(path)):
        whole = gzip.compress(rotated.read_bytes())
        # gzip may be half through when somebody reads.
        data = whole if position % 2 else whole[: len(whole) // 2]
        rotated.with_name(f"{rotated.name}.gz").write_bytes(data)
    assert seqs(path) == list(range(1, LINES + 1))


def test_verdict_reports_damaged_and_missing_rotated_files(path: Path) -> None:
    write_many(path)
    third = path.with_name("journal-000003.jsonl")
    first, *_, last = [json.loads(text)["seq"] for text in third.read_bytes().splitlines()]
    compress(third)
    damaged = third.with_name(f"{third.name}.gz")
    assert not any("missing" in reason for reason in judge(read_journal(path)).reasons)
    damaged.write_bytes(damaged.read_bytes()[:12])
    expected = f"lines of the journal are missing: {first}-{last}"
    assert expected in judge(read_journal(path)).reasons
    damaged.unlink()
    assert expected in judge(read_journal(path)).reasons
    path.with_name("journal-000001.jsonl").unlink()
    assert any("missing: 1-" in reason for reason in judge(read_journal(path)).reasons)


@pytest.mark.parametrize("name", ["journal.jsonl.1", "journal.jsonl-20260101", "journal-old.jsonl"])
@pytest.mark.parametrize("create", [False, True], ids=["", "create"])
def test_externally_renamed_file_is_left_alone(path: Path, name: str, *, create: bool) -> None:
    with FileJournal(path) as journal:
        for number in range(3):
            journal.write("some.news", number=number)
        away = path.with_name(name)
        path.rename(away)
        if create:
            path.touch()
        # Until it is noticed, lines go where the file is now.
        journal.write("some.news", number=3)
        journal.retry()
        journal.write("some.news", number=4)
        assert away.read_bytes().count(b"\n") == 4
        assert path.read_bytes().count(b"\n") == 1
        compress(away)
        journal.write("some.news", number=5)
    assert [line["number"] for line in read_journal(path)] == list(range(6))


def test_append_notices_a_renamed_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal_file, "_CHECK_SECONDS", 0.0)
    with FileJournal(path) as journal:
        journal.write("some.news")
        path.rename(path.with_name("journal.jsonl.1"))
        journal.write("some.news")
        assert path.read_bytes().count(b"\n") == 1
    assert seqs(path) == [1, 2]


def test_journal_follows_its_moved_directory(path: Path) -> None:
    directory, elsewhere = path.parent / "run", path.parent / "elsewhere"
    directory.mkdir()
    with FileJournal(directory / path.name, rotate_bytes=SMALL) as journal:
        journal.write("some.news")
        directory.rename(elsewhere)
        (elsewhere / path.name).unlink()
        for _ in range(LINES):
            journal.write("some.news")
    assert len(list(elsewhere.iterdir())) > 1
    assert not directory.exists()


def test_removed_directory_raises_nothing(path: Path) -> None:
    """Another that comes to have its name is another run's."""
    directory = path.parent / "run"
    directory.mkdir()
    journal = FileJournal(directory / path.name, most_held=10)
    journal.write("some.news")
    shutil.rmtree(directory)
    journal.retry()
    for _ in range(20):
        journal.write("more.news")
    assert journal.errors > 0
    directory.mkdir()
    journal.retry()
    journal.write("more.news")
    journal.close()
    assert list(directory.iterdir()) == []


def test_rotated_file_alone_identifies_a_run(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(read_journal(path))
    assert not journal_exists(path)
    write_many(path)
    path.unlink()
    assert journal_exists(path)
    assert run_directory.find_run(str(path.parent)) == path.parent.resolve()


def test_reading_during_rotation_misses_nothing(path: Path) -> None:
    with FileJournal(path, rotate_bytes=SMALL) as journal:
        for _ in range(200):
            journal.write("some.news", text="x" * 300)
            reading = read_journal(path)
            first = next(reading)["seq"]
            journal.write("some.news", text="x" * 300)
            rest = [line["seq"] for line in reading]
            assert [first, *rest] == list(range(1, len(rest) + 2))
            assert len(rest) + 2 >= journal.seq


def write_until_killed(path: Path, acknowledged: int) -> None:
    """Write for ever, and tell each number that was written."""
    journal = FileJournal(path, rotate_bytes=20_000)
    sizes = random.Random(os.getpid())  # noqa: S311 - any sizes will do
    while True:
        level = Level.ERROR if sizes.random() < 0.01 else Level.INFO
        journal.write("some.news", level, text="x" * sizes.randrange(2000))
        os.write(acknowledged, b"%d\n" % journal.seq)


def acknowledged_before_death(path: Path, seconds: float) -> list[int]:
    """Have a process write, kill it, and return the numbers that it acknowledged."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            write_until_killed(path, writing)
        finally:
            os._exit(1)
    os.close(writing)
    data = b""
    end = time.monotonic() + DEADLINE
    try:
        # It runs from its first word on.
        while b"\n" not in data:
            assert select.select([reading], [], [], max(end - time.monotonic(), 0))[0]
            chunk = os.read(reading, 65536)
            assert chunk, "the writer died by itself"
            data += chunk
        killing = time.monotonic() + seconds
        while (left := killing - time.monotonic()) > 0:
            if select.select([reading], [], [], left)[0]:
                data += os.read(reading, 65536)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    while chunk := os.read(reading, 65536):
        data += chunk
    os.close(reading)
    return [int(text) for text in data.split(b"\n")[:-1]]


def test_killed_writer_loses_no_acknowledged_line(path: Path) -> None:
    moments = random.Random(1)  # noqa: S311 - any moments will do
    acknowledged: list[int] = []
    for _ in range(60):
        acknowledged += acknowledged_before_death(path, moments.random() * 0.02)
    assert len(acknowledged) == len(set(acknowledged))
    found = seqs(path)
    assert found == list(range(1, len(found) + 1))
    assert set(acknowledged) <= set(found)
    # Each is in the files once, not only in what the reader makes of them.
    whole = [
        text
        for file in [*rotated_files(path), path]
        for text in file.read_bytes().split(b"\n")
        if text.startswith(b'{"format":1,"seq":') and text.endswith(b'"}')
    ]
    assert len(whole) == len(found)
    assert len(rotated_files(path)) > 3
