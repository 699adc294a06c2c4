# SPDX-License-Identifier: GPL-2.0-only
"""The run directory: where a run leaves what it did."""

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
from soak.files.own_directory import check_private, check_way, open_own
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
# A directory that is younger may just be made.
_SETTLED_SECONDS: Final = 60.0
READABLE: Final = 0o644  # verdict and report: for everybody who may look into the directory


def new_run_id() -> str:
    """Return a name that sorts by time."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"


def runs_directory() -> Path:
    """Return where runs are kept: not under a private home where an exporter's user may not look.

    Raises:
        UsageError: the environment does not say where.
    """
    if os.geteuid() == 0:
        return Path("/var/lib/dax-soak/runs")
    return user_directory("XDG_STATE_HOME", ".local/state") / "dax-soak" / "runs"


class RunDirectory:
    """The directory of a run, to which this process alone writes for as long as it lives.

    As root it stands where no other user can put a link in the way of what is written.
    """

    def __init__(self, path: Path, lock: ProcessLock) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def make(cls, wanted: Path | None, run_id: str, space: int) -> Self:
        """Make the directory of a new run, in which `space` bytes must fit.

        Raises:
            UsageError: it is in use, is not this user's, cannot be made, or has no space.
        """
        path = (wanted or runs_directory() / run_id).absolute()
        try:
            check_new(path)
            check_way(path)
            parent = next(parent for parent in (path, *path.parents) if parent.exists())
            free = shutil.disk_usage(parent).free
            if free < space:
                raise UsageError(
                    f"The run directory {path} needs {space >> 20} MiB and has {free >> 20} MiB: free "
                    f"some space or give another one with --run-dir."
                )
            for missing in reversed([one for one in (path, *path.parents) if not one.exists()]):
                # Whatever the umask is: others must not write to a directory above.
                missing.mkdir(mode=0o755, exist_ok=True)
            _set_mode(path, 0o750 if wanted else 0o755)
            check_new(path)
            return cls._locked(path, run_id)
        except OSError as error:
            raise UsageError(f"The run directory {path} cannot be made: {error.strerror}.") from None

    @classmethod
    def take(cls, path: Path, run_id: str) -> Self:
        """Take the directory of a run that goes on.

        Raises:
            UsageError: another process has it, or it is not this user's alone to write to.
        """
        try:
            check_way(path)
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
                f"The run in {path} is still running ({error}): one program at a time writes to a run "
                f"directory. 'dax-soak stop {path}' ends it."
            ) from None

    def close(self) -> None:
        """Let go of the directory, which stays; so does the lock's file, which may be waited for."""
        self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def check_new(path: Path) -> None:
    """Refuse a run directory that holds something.

    Raises:
        UsageError: it is no directory, is not empty, or may not be looked at.
    """
    try:
        if path.is_symlink():
            raise UsageError(f"The run directory {path} is a link: give the directory itself.")
        used = path.exists() and (not path.is_dir() or any(path.iterdir()))
    except OSError as error:
        raise UsageError(
            f"The run directory {path} cannot be looked at ({error.strerror}): give one that you may "
            f"write to."
        ) from None
    if used:
        raise UsageError(f"The run directory {path} is not empty: give a new one.")


def _set_mode(path: Path, mode: int) -> None:
    """Give this user's own directory its mode, before anything is in it."""
    directory = open_own(path)
    try:
        # The group that the directory of all runs hands down stays; as a service (RestrictSUIDSGID=)
        # nobody may set the bit for that, but there the mode is right from the start.
        found = stat.S_IMODE(os.fstat(directory).st_mode)
        right = mode | (found & stat.S_ISGID)
        if found != right:
            os.fchmod(directory, right)
    finally:
        os.close(directory)


def note_begun(path: Path) -> None:
    """Have `latest` name this run, which has begun, if it is kept where all runs are."""
    try:
        runs = runs_directory()
    except UsageError:  # without a home there are no such runs
        return
    if path.parent.resolve() != runs.resolve():
        return
    unfinished = path.parent / f".{LATEST}.{os.getpid()}"
    # A full disk is no reason to end a run: `latest` goes on naming the one before.
    with contextlib.suppress(OSError):
        unfinished.unlink(missing_ok=True)
        unfinished.symlink_to(path.name)
        unfinished.rename(path.parent / LATEST)


def begun_runs() -> list[Path]:
    """Return the directories of runs that began and are kept with all others, the newest first."""
    return sorted(
        (path for path in _directories() if journal_exists(path / JOURNAL)),
        key=lambda path: path.name,
        reverse=True,
    )


def _directories() -> list[Path]:
    """Return what is kept where all runs are; `latest` is a link and is none of it."""
    try:
        return [path for path in runs_directory().iterdir() if not path.is_symlink() and path.is_dir()]
    except FileNotFoundError:
        return []


def find_run(name: str) -> Path:
    """Return the directory of a run: a path, a run's id, or `latest`.

    Raises:
        UsageError: there is no such run, or it may not be looked at.
    """
    path = Path(name)
    try:
        if journal_exists(path / JOURNAL):
            return path.resolve()
        path = runs_directory() / name
        if journal_exists(path / JOURNAL):
            return path.resolve()
    except OSError as error:
        raise UsageError(f"The run {name!r} cannot be looked at in {path}: {why(error)}.") from None
    if path.is_symlink():
        raise UsageError(
            f"There is no run {name!r}: {path} is a link to {str(path.readlink())!r}, and there is none."
        )
    raise UsageError(f"There is no run {name!r}: give a run directory, or an id in {runs_directory()}.")


def find_latest(name: str) -> Path | None:
    """Return the directory of runs whose newest a name means, also where it holds none yet.

    None where the name means one run: `latest`, and a path that ends so, mean the newest.
    """
    path = Path(name)
    if path.name != LATEST:
        return None
    runs = runs_directory() if name == LATEST else path.parent.absolute()
    try:
        return runs if runs.is_dir() else None
    except OSError:  # whoever opens a run in it says why
        return None


def write_whole(path: Path, data: bytes, mode: int, group: int = -1) -> None:
    """Put a file in its place whole or not at all, durably; give it to a group if one is given.

    Raises:
        OSError: it cannot be written; what stood there before still does.
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
    """Remove the directory of a run that never was."""
    shutil.rmtree(path, ignore_errors=True)


def discard_unbegun() -> list[Path]:
    """Remove what runs left that were killed before they began, and return where that was."""
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
