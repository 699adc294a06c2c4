# SPDX-License-Identifier: GPL-2.0-only
"""The run directory: one owner at a time, and nothing of another user's in the way."""

from __future__ import annotations

import os
import signal
import stat
import time
from pathlib import Path

import pytest

from soak import run_directory
from soak.errors import UsageError
from soak.journal.writer import FileJournal
from soak.run_directory import RunDirectory
from tests.program.test_cli import left_behind
from tests.support.journal import valid_fields

SOMEBODY = 4242
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "runs"
    monkeypatch.setattr(run_directory, "runs_directory", lambda: directory)
    return directory


def begin(directory: Path) -> None:
    with FileJournal(directory / run_directory.JOURNAL) as journal:
        journal.write("run.started", **valid_fields("run.started"))


@pytest.mark.parametrize("wanted", ["{0}/file", "{0}/file/below", "{0}/link"])
def test_path_that_is_not_a_directory_is_refused(tmp_path: Path, wanted: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to("elsewhere")
    before = left_behind(tmp_path)
    with pytest.raises(UsageError, match="run directory"):
        RunDirectory.make(Path(wanted.format(tmp_path)), "run-1", 0)
    assert left_behind(tmp_path) == before


def test_run_without_disk_space_is_refused(runs: Path) -> None:
    with pytest.raises(UsageError, match="MiB and has"):
        RunDirectory.make(None, "run-1", 1 << 60)
    assert not runs.exists()


def test_modes_do_not_depend_on_the_umask(runs: Path, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        with (
            RunDirectory.make(None, "run-1", 0) as kept,
            RunDirectory.make(tmp_path / "above" / "own", "run-2", 0) as own,
        ):
            modes = {
                path: stat.S_IMODE(path.stat().st_mode)
                for path in (runs, kept.path, own.path.parent, own.path, own.path / run_directory.LOCK)
            }
    finally:
        os.umask(before)
    assert list(modes.values()) == [0o755, 0o755, 0o755, 0o750, 0o600]


def test_latest_names_the_newest_started_run(runs: Path) -> None:
    for name in ("run-1", "run-2"):
        with RunDirectory.make(None, name, 0) as made:
            begin(made.path)
            run_directory.note_begun(made.path)
            assert run_directory.find_run("latest") == run_directory.find_run(name) == made.path
    with RunDirectory.make(None, "run-3", 0) as refused:
        begin(refused.path)
        assert run_directory.find_run("latest") == runs / "run-2"
    run_directory.discard(runs / "run-2")
    with pytest.raises(UsageError, match="no run"):
        run_directory.find_run("latest")


def test_a_run_elsewhere_does_not_become_latest(runs: Path, tmp_path: Path) -> None:
    with RunDirectory.make(tmp_path / "own", "run-1", 0) as made:
        begin(made.path)
        run_directory.note_begun(made.path)
    assert left_behind(tmp_path) == {"own", "own/.lock", "own/journal.jsonl"}
    assert not runs.exists()


def test_a_run_has_one_owner(runs: Path) -> None:
    with RunDirectory.make(None, "run-1", 0) as made:
        with pytest.raises(UsageError, match=rf"run-1.* is still running .*process {os.getpid()}"):
            RunDirectory.take(made.path, "run-1")
        begin(made.path)
    with RunDirectory.take(runs / "run-1", "run-1"):
        pass


def test_forked_child_does_not_hold_the_lock(runs: Path) -> None:
    made = RunDirectory.make(None, "run-1", 0)
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    try:
        made.close()
        RunDirectory.take(runs / "run-1", "run-1").close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_run_writable_by_others_is_not_resumed(runs: Path, mode: int) -> None:
    RunDirectory.make(None, "run-1", 0).close()
    (runs / "run-1").chmod(mode)
    with pytest.raises(UsageError, match="may write to the directory"):
        RunDirectory.take(runs / "run-1", "run-1")


@as_root
@pytest.mark.parametrize(
    "theirs", ["run", "above", "link"], ids=["the directory", "one above", "a link on the way"]
)
def test_root_refuses_a_path_of_another_user(tmp_path: Path, theirs: str) -> None:
    above, wanted = tmp_path / "above", tmp_path / "above" / "run"
    wanted.mkdir(parents=True)
    (tmp_path / "link").symlink_to(above)
    given = {"run": wanted, "above": above, "link": tmp_path / "link"}[theirs]
    os.chown(given, SOMEBODY, SOMEBODY, follow_symlinks=False)
    path = tmp_path / "link" / "run" if theirs == "link" else wanted
    before = left_behind(tmp_path)
    with pytest.raises(UsageError, match=f"{given} belongs to user {SOMEBODY}"):
        RunDirectory.make(path, "run-1", 0)
    with pytest.raises(UsageError, match=f"{given} belongs to user {SOMEBODY}"):
        RunDirectory.take(path, "run-1")
    assert left_behind(tmp_path) == before


@as_root
def test_root_refuses_a_group_writable_parent(tmp_path: Path) -> None:
    os.chown(tmp_path, 0, SOMEBODY)
    tmp_path.chmod(0o770)
    with pytest.raises(UsageError, match=f"chmod go-w {tmp_path}"):
        RunDirectory.make(tmp_path / "run", "run-1", 0)
    # As in /tmp, where nobody can rename what is another's.
    tmp_path.chmod(0o1777)
    RunDirectory.make(tmp_path / "run", "run-1", 0).close()


def test_lock_that_is_not_a_file_is_refused(runs: Path) -> None:
    directory = runs / "run-1"
    RunDirectory.make(None, "run-1", 0).close()
    (directory / run_directory.LOCK).unlink()
    os.mkfifo(directory / run_directory.LOCK)
    with pytest.raises(UsageError, match="cannot be used: not a regular file"):
        RunDirectory.take(directory, "run-1")


def test_unstarted_runs_are_removed_later(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = [RunDirectory.make(None, "running", 0)]
    for name in ("began", "killed", ".bench-killed"):
        kept.append(RunDirectory.make(None, name, 0))
        kept.pop().close()
    begin(runs / "began")
    (runs / "somebody-else").mkdir()
    (runs / "killed" / run_directory.CONSOLE).write_text("booting\n")
    everything = {path.name for path in runs.iterdir()}
    assert run_directory.discard_unbegun() == []
    assert {path.name for path in runs.iterdir()} == everything
    later = time.time() + 3600
    monkeypatch.setattr("soak.run_directory.time.time", lambda: later)
    removed = {path.name for path in run_directory.discard_unbegun()}
    assert removed == {"killed", ".bench-killed"}
    assert {path.name for path in runs.iterdir()} == everything - removed
    kept[0].close()
