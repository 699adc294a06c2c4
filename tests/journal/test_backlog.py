# SPDX-License-Identifier: GPL-2.0-only
"""What a journal holds while its disk is full, what it gives up, and what it says of both."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from soak.journal.reading import DAMAGED, UNFINISHED
from soak.journal.writer import OWN_EVENTS, FileJournal, Level, read_journal
from soak.process.helper import in_helper
from tests.journal import full_disk
from tests.support.program import ROOT
from tests.support.soak import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Callable

BOUND: Final = 8
LEVELS: Final = list(Level)


def limit_files(size: int | None) -> None:
    """Let no file of this process get longer: what stands for a full disk; None takes it away."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if size is None else size, hard))


def own_lines(path: Path) -> list[dict[str, Any]]:
    return [line for line in read_journal(path) if line["event"] in OWN_EVENTS]


def test_lines_wait_for_disk_space_in_order(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"

    def fill() -> list[int]:
        with FileJournal(path) as journal:
            journal.write("before.full")
            limit_files(path.stat().st_size + 100)
            for level in (Level.INFO, Level.ERROR, Level.WARNING):
                journal.write("while.full", level, text="x" * 200)
            waiting, cut = journal.waiting, path.stat().st_size
            limit_files(None)
            journal.write("after.full")
            journal.write("after.full", Level.ERROR)
            return [waiting, journal.waiting, journal.errors, cut]

    waiting, after, errors, cut = in_helper(fill, DEADLINE)
    assert (waiting, after, errors) == (4, 0, 0)  # with the line that says so
    assert cut > len(path.read_bytes().split(b"\n")[0]) + 1  # a line was begun, and cut short
    assert [line["seq"] for line in read_journal(path)] == list(range(1, 9))
    assert [line["event"] for line in read_journal(path)] == [
        "before.full",
        "while.full",
        "journal.held",
        "while.full",
        "while.full",
        "after.full",
        "journal.caught-up",
        "after.full",
    ]
    held, caught_up = own_lines(path)
    assert held["error"] == os.strerror(errno.EFBIG)
    assert caught_up["lines"] == 3
    assert caught_up["seconds"] >= 0


def test_least_important_lines_are_dropped_and_reported(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"

    def fill() -> int:
        with FileJournal(path, most_held=BOUND) as journal:
            limit_files(0)
            for round_ in range(6):
                for level in LEVELS:
                    journal.write("while.full", level, round=round_)
            limit_files(None)
            journal.retry()
            return journal.errors

    errors = in_helper(fill, DEADLINE)
    kept = [(line["level"], line["round"]) for line in read_journal(path) if "round" in line]
    # One place is taken by the line that says so.
    assert kept == [("warning", 5), *(("error", round_) for round_ in range(6))] or kept == [
        *(("error", round_) for round_ in range(5)),
        ("warning", 5),
        ("error", 5),
    ]
    assert errors == 18 - len(kept)
    gap = next(line for line in own_lines(path) if line["event"] == "journal.gap")
    assert gap["given_up"] == {"info": 6, "warning": 5, "error": 0}
    assert gap["level"] == "warning"
    assert (gap["first"], gap["last"]) == (1, 17)


def test_partly_written_line_is_never_dropped(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"

    def fill() -> int:
        with FileJournal(path, most_held=2) as journal:
            limit_files(20)
            for number in range(20):
                journal.write("while.full", number=number)
            limit_files(None)
            journal.retry()
            return journal.errors

    assert in_helper(fill, DEADLINE) > 0
    assert next(read_journal(path))["number"] == 0
    assert all(json.loads(text) for text in path.read_bytes().splitlines())


def test_unwritten_lines_count_as_lost(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"

    def fill() -> list[int]:
        journal = FileJournal(path)
        limit_files(0)
        for _ in range(3):
            journal.write("while.full")
        flushed, before = journal.flush(), journal.errors
        journal.close()
        return [flushed, before, journal.errors]

    assert in_helper(fill, DEADLINE) == [False, 0, 4]


def check_scenario(seen: dict[str, Any]) -> None:
    """What a journal must have done on a disk with room for the reserve."""
    assert seen["waiting"] > 0
    assert seen["violations_on_disk"] == full_disk.VIOLATIONS
    assert seen["waiting_again"] > 0
    assert seen["waiting_at_last"] == 0
    assert seen["second_violation_on_disk"]
    assert seen["flushed"]
    assert seen["errors"] == 0
    assert seen["numbered"]
    assert seen["told"] == ["journal.held", "journal.caught-up"] * 2
    assert seen["left"] == ["journal.jsonl"]


def on_a_small_tmpfs(size: str) -> dict[str, Any]:
    """Run the scenario in a mount namespace of its own, which needs no root where users may have one."""
    whose = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    mount = f'mount -t tmpfs -o size={size} none "$1" && shift && exec "$0" "$@"'
    with tempfile.TemporaryDirectory() as directory:
        command = [
            "unshare",
            *whose,
            "--mount",
            "sh",
            "-ec",
            mount,
            sys.executable,
            directory,
            "-m",
            "tests.journal.full_disk",
            directory,
        ]
        tried = [*command[: command.index("sh")], "true"]
        if subprocess.run(tried, check=False, capture_output=True, timeout=DEADLINE).returncode:
            pytest.skip("no mount namespaces for this user: the lab's test of this covers it")
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, cwd=ROOT, timeout=DEADLINE
        )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_the_reserve_lets_violations_through() -> None:
    check_scenario(on_a_small_tmpfs("8m"))


def test_full_disk_without_reserve_loses_nothing() -> None:
    seen = on_a_small_tmpfs("512k")
    assert seen["violations_on_disk"] == 0
    assert (seen["waiting_at_last"], seen["errors"], seen["numbered"]) == (0, 0, True)


class JournalMachine(RuleBasedStateMachine):
    """Any order of writes, full disks, rotations, crashes and resumes.

    Beside the journal stands a model of what it may give up: no more than is too much, the lowest level
    first and of that the oldest, but nothing that it says of itself, and no line that was begun.
    """

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name) / "journal.jsonl"
        self.heard: dict[int, dict[str, Any]] = {}
        self.given_up: set[int] = set()
        self.given_up_before = 0  # by those writers that crashed
        self.room: int | None = None
        self.renames = 0
        self.left_by_crash: tuple[int, int] | None = None
        self.journal = self.open()

    def teardown(self) -> None:
        self.room = None
        self.do(self.journal.flush)
        assert self.journal.waiting == 0
        told: Counter[str] = Counter()
        for line in own_lines(self.path):
            told.update(line.get("given_up", {}))
        if not self.given_up_before:
            levels = Counter(self.heard[seq]["level"] for seq in self.given_up)
            assert +told == +levels
        self.journal.close()
        assert not (self.path.parent / ".journal.reserve").exists()
        self.directory.cleanup()

    def hear(self, line: dict[str, Any]) -> None:
        assert line["seq"] == max(self.heard, default=0) + 1
        self.heard[line["seq"]] = line

    def open(self) -> FileJournal:
        return FileJournal(self.path, rotate_bytes=1500, most_held=BOUND, on_line=self.hear)

    def do(self, work: Callable[[], object]) -> None:
        """Do something while files may only get so long, and see that the journal is as it must be."""
        size = self.path.stat().st_size if self.path.exists() else 0
        limit_files(None if self.room is None else size + self.room)
        try:
            work()
        finally:
            limit_files(None)
        self.check()

    def fragment(self) -> tuple[int, int] | None:
        """Return which file ends in the middle of a line, and where; None where it does not."""
        status = self.path.stat()
        whole = status.st_size == 0 or self.path.read_bytes().endswith(b"\n")
        return None if whole else (status.st_ino, status.st_size)

    def is_whole(self) -> bool:
        """Say whether the last line of the file lacks nothing but its end."""
        try:
            json.loads(self.path.read_bytes().rpartition(b"\n")[2])
        except ValueError:
            return False
        return True

    def there(self) -> list[int]:
        """Return the numbers in the files; a line that a crash cut short may be the last thing there."""
        lines = read_journal(self.path)
        return [line["seq"] for line in lines if line["event"] not in {DAMAGED, UNFINISHED}]

    def check(self) -> None:
        there = self.there()
        assert there == sorted(set(there))
        begun = self.fragment() not in {None, self.left_by_crash}
        if begun and self.is_whole():
            there.pop()  # all of it can be read, but its end is yet to come
        waiting = sorted(set(self.heard) - set(there) - self.given_up)
        if self.journal.errors + self.given_up_before > len(self.given_up):
            dispensable = sorted(
                (seq for seq in waiting[begun:] if self.heard[seq]["event"] not in OWN_EVENTS),
                key=lambda seq: (LEVELS.index(self.heard[seq]["level"]), seq),
            )
            too_many = dispensable[: len(waiting) - BOUND]
            self.given_up.update(too_many)
            waiting = sorted(set(waiting) - set(too_many))
        assert self.journal.errors == len(self.given_up) - self.given_up_before
        assert self.journal.waiting == len(waiting)
        # Order is kept: what waits comes after all that is there.
        assert not waiting or not there or waiting[0] > there[-1]
        assert not self.given_up & set(there)

    @rule(level=st.sampled_from(LEVELS), length=st.integers(0, 400), times=st.integers(1, 6))
    def write(self, level: Level, length: int, times: int) -> None:
        for _ in range(times):
            self.do(lambda: self.journal.write("some.event", level, text="x" * length))

    @rule(room=st.sampled_from([0, 1, 150, 151, 300, 700]) | st.integers(0, 900))
    def get_full(self, room: int) -> None:
        self.room = room

    @rule()
    def have_space(self) -> None:
        self.room = None

    @rule(flush=st.booleans())
    def retry(self, *, flush: bool) -> None:
        self.do(self.journal.flush if flush else self.journal.retry)
        assert self.room is not None or self.journal.waiting == 0

    @rule()
    def rename_away(self) -> None:
        whole = self.path.exists() and self.path.read_bytes().endswith(b"\n")
        if whole:  # a line that was begun would be written anew, to the new file
            self.renames += 1
            self.path.rename(self.path.with_name(f"journal.jsonl.{self.renames}"))
            self.do(self.journal.retry)

    @rule()
    def crash_and_resume(self) -> None:
        """Leave everything as it is, as SIGKILL does, and open it again."""
        for link in Path("/proc/self/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if str(link.readlink()).startswith(self.directory.name):
                    os.close(int(link.name))
        there = self.there()
        last = max(there, default=0)
        # What waited is gone, and its numbers are given again.
        self.heard = {seq: line for seq, line in self.heard.items() if seq <= last}
        self.given_up = {seq for seq in self.given_up if seq <= last}
        self.given_up_before = len(self.given_up)
        self.journal = self.open()
        # What the dead writer began is no line of this one, though it may have the same number.
        self.left_by_crash = self.fragment()
        assert self.journal.seq == last
        self.do(self.journal.retry)


JournalMachine.TestCase.settings = settings(
    derandomize=True, database=None, deadline=None, max_examples=100, stateful_step_count=40
)
TestJournal = pytest.mark.takes(seconds=20)(JournalMachine.TestCase)
