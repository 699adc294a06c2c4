# SPDX-License-Identifier: GPL-2.0-only
"""Run directories: the files of one run, and the directory of all runs."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from soak.errors import UsageError, why
from soak.files.own_directory import check_path, check_private, open_own
from soak.files.process_lock import LockedError, ProcessLock
from soak.files.user_directories import user_directory
from soak.journal.reading import has_begun, journal_exists

if TYPE_CHECKING:
    from typing import Self

LEDGER: Final = "ledger"
JOURNAL: Final = "journal.jsonl"
VERDICT: Final = "verdict.json"
CONFIG: Final = "run.toml"
CONSOLE: Final = "console.log"
REPORT: Final = "report.txt"
LATEST: Final = "latest"
LOCK: Final = ".lock"
# A younger directory without a journal may belong to a starting run.
_SETTLED_SECONDS: Final = 60.0
READABLE: Final = 0o644  # mode of verdict and report; the directory's mode restricts access


def new_run_id() -> str:
    """Return a new run id; ids sort by time."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"


def runs_directory() -> Path:
    """Return the directory of all runs: as root one that the exporter's user can read.

    Raises:
        UsageError: the user has no home directory, or it is not an absolute path.
    """
    if os.geteuid() == 0:
        return Path("/var/lib/dax-soak/runs")
    return user_directory("XDG_STATE_HOME", ".local/state") / "dax-soak" / "runs"


class RunDirectory:
    """The directory of a run, locked for this process as its only writer.

    For root, no other user can replace a component of its path.
    """

    def __init__(self, path: Path, lock: ProcessLock) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def make(cls, given: Path | None, run_id: str, space: int) -> Self:
        """Create and lock the directory of a new run, which needs `space` bytes.

        Raises:
            UsageError: the directory is not empty, unsafe, not writable, or lacks space.
        """
        path = (given or runs_directory() / run_id).absolute()
        try:
            check_new(path)
            check_path(path)
            parent = next(parent for parent in (path, *path.parents) if parent.exists())
            free = shutil.disk_usage(parent).free
            if free < space:
                raise UsageError(
                    f"The run directory {path} needs {space >> 20} MiB and has {free >> 20} MiB free: "
                    f"free some space or choose another one with --run-dir."
                )
            for missing in reversed([one for one in (path, *path.parents) if not one.exists()]):
                # mkdir() applies the umask; this mode keeps others from writing whatever it is.
                missing.mkdir(mode=0o755, exist_ok=True)
            _set_mode(path, 0o750 if given else 0o755)
            check_new(path)
            return cls._locked(path, run_id)
        except OSError as error:
            raise UsageError(f"The run directory {path} cannot be created: {error.strerror}.") from None

    @classmethod
    def take(cls, path: Path, run_id: str) -> Self:
        """Lock the directory of a run to resume.

        Raises:
            UsageError: another process holds the lock, or other users may write to the directory.
        """
        try:
            check_path(path)
            check_private(path)
            return cls._locked(path, run_id)
        except OSError as error:
            raise UsageError(f"The run directory {path} cannot be used: {error.strerror}.") from None

    @classmethod
    def _locked(cls, path: Path, run_id: str) -> Self:
        try:
            return cls(path, ProcessLock(path / LOCK, run_id))
        except LockedError as error:
            raise UsageError(
                f"The run in {path} is still running ({error}), and a run directory has one writer: "
                f"'dax-soak stop {path}' ends it."
            ) from None

    def close(self) -> None:
        """Release the lock. Its file stays, because another process may be waiting for it."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_new(path: Path) -> None:
    """Refuse a run directory that is not empty.

    Raises:
        UsageError: it is not empty, not a directory, a link, or not accessible.
    """
    try:
        if path.is_symlink():
            raise UsageError(f"The run directory {path} is a symbolic link: name its target instead.")
        used = path.exists() and (not path.is_dir() or any(path.iterdir()))
    except OSError as error:
        raise UsageError(
            f"The run directory {path} is not accessible ({error.strerror}): choose a writable one."
        ) from None
    if used:
        raise UsageError(f"The run directory {path} is not empty: choose a new one.")


def _set_mode(path: Path, mode: int) -> None:
    """Set the mode of a new directory that this user owns."""
    directory = open_own(path)
    try:
        # Keep the inherited setgid bit. A service with RestrictSUIDSGID= may not set it, but inherits
        # the right mode, so do not call fchmod() without need.
        current = stat.S_IMODE(os.fstat(directory).st_mode)
        target = mode | (current & stat.S_ISGID)
        if current != target:
            os.fchmod(directory, target)
    finally:
        os.close(directory)


def note_begun(path: Path) -> None:
    """Point the link `latest` at this run, if it is in the directory of all runs."""
    try:
        runs = runs_directory()
    except UsageError:  # no home directory, so no directory of runs
        return
    if path.parent.resolve() != runs.resolve():
        return
    unfinished = path.parent / f".{LATEST}.{os.getpid()}"
    # A full disk must not end the run: `latest` then still names the previous run.
    with contextlib.suppress(OSError):
        unfinished.unlink(missing_ok=True)
        unfinished.symlink_to(path.name)
        unfinished.rename(path.parent / LATEST)


def begun_runs() -> list[Path]:
    """Return the runs with a journal in the directory of all runs, newest first."""
    return sorted(
        (path for path in _directories() if journal_exists(path / JOURNAL)),
        key=lambda path: path.name,
        reverse=True,
    )


def _directories() -> list[Path]:
    """Return the subdirectories of the directory of all runs, without the link `latest`."""
    try:
        return [path for path in runs_directory().iterdir() if not path.is_symlink() and path.is_dir()]
    except FileNotFoundError:
        return []


def find_run(name: str) -> Path:
    """Return the directory of the run that `name` means: a path, a run id, or `latest`.

    Raises:
        UsageError: no such run exists, or it is not accessible.
    """
    path = Path(name)
    try:
        if journal_exists(path / JOURNAL):
            return path.resolve()
        path = runs_directory() / name
        if journal_exists(path / JOURNAL):
            return path.resolve()
    except OSError as error:
        raise UsageError(f"The run {name!r} in {path} is not accessible: {why(error)}.") from None
    if path.is_symlink():
        raise UsageError(
            f"There is no run {name!r}: {path} is a link to {str(path.readlink())!r}, which does not "
            f"exist."
        )
    raise UsageError(
        f"There is no run {name!r}: expected a run directory, or an id in {runs_directory()}."
    )


def find_latest(name: str) -> Path | None:
    """Return the directory of runs if `name` means its newest run, which need not exist yet.

    `latest`, or a path that ends in it, means the newest run; return None for any other name.
    """
    path = Path(name)
    if path.name != LATEST:
        return None
    runs = runs_directory() if name == LATEST else path.parent.absolute()
    try:
        return runs if runs.is_dir() else None
    except OSError:  # find_run() reports the error
        return None


def write_whole(path: Path, data: bytes, mode: int, group: int = -1) -> None:
    """Replace a file atomically and durably; set its group unless `group` is -1.

    Raises:
        OSError: it cannot be written; the old file remains.
    """
    unfinished = path.with_name(f".{path.name}")
    try:
        unfinished.unlink(missing_ok=True)
        with unfinished.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chown(unfinished, -1, group)
        unfinished.chmod(mode)
        unfinished.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise


def discard(path: Path) -> None:
    """Remove the directory of a run that never started."""
    shutil.rmtree(path, ignore_errors=True)


def discard_unbegun() -> list[Path]:
    """Remove the directories of runs that were killed before they started; return their paths."""
    removed = []
    for path in _directories():
        try:
            if not (path / LOCK).exists() or time.time() - path.stat().st_mtime < _SETTLED_SECONDS:
                continue
            with ProcessLock(path / LOCK, ""):
                if not has_begun(path / JOURNAL):
                    shutil.rmtree(path)
                    removed.append(path)
        except (OSError, LockedError):
            continue  # it is in use, or not this user's
    return removed
