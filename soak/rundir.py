"""The run directory: where a run leaves what it did."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from soak.errors import UsageError
from soak.journal_reading import journal_exists

LEDGER: Final = "ledger"
JOURNAL: Final = "journal.jsonl"
VERDICT: Final = "verdict.json"
CONFIG: Final = "run.toml"
CONSOLE: Final = "console.log"
REPORT: Final = "report.txt"
LATEST: Final = "latest"
READABLE: Final = 0o644  # verdict and report: for everybody who may look into the directory


def new_run_id() -> str:
    """Return a name that sorts by time."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"


def runs_directory() -> Path:
    """Return where runs are kept: not under a private home where an exporter's user may not look."""
    if os.geteuid() == 0:
        return Path("/var/lib/dax-soak/runs")
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local/state") / "dax-soak" / "runs"


def make_run_directory(wanted: Path | None, run_id: str, space: int) -> Path:
    """Make the directory of a run, in which `space` bytes must fit.

    Raises:
        UsageError: it is in use, cannot be made, or has no space.
    """
    path = (wanted or runs_directory() / run_id).absolute()
    try:
        check_new(path)
        parent = next(parent for parent in (path, *path.parents) if parent.exists())
        free = shutil.disk_usage(parent).free
        if free < space:
            raise UsageError(
                f"The run directory {path} needs {space >> 20} MiB and has {free >> 20} MiB: free "
                f"some space or give another one with --run-dir."
            )
        path.mkdir(parents=True, exist_ok=True)
        # Whatever the umask is. The group that the directory of all runs hands down stays; as a service
        # (RestrictSUIDSGID=) nobody may set the bit for that, but there the mode is right from the start.
        mode = stat.S_IMODE(path.stat().st_mode)
        right = (0o750 if wanted else 0o755) | (mode & stat.S_ISGID)
        if mode != right:
            path.chmod(right)
    except OSError as error:
        raise UsageError(f"The run directory {path} cannot be made: {error.strerror}.") from None
    if wanted is None:
        _point_latest(path)
    return path


def check_new(path: Path) -> None:
    """Refuse a run directory that holds something.

    Raises:
        UsageError: it is no directory, or is not empty.
    """
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise UsageError(f"The run directory {path} is not empty: give a new one.")


def newest_run() -> Path | None:
    """Return the directory that `latest` points to, where there is one."""
    link = runs_directory() / LATEST
    return link.resolve() if link.exists() else None


def find_run(name: str) -> Path:
    """Return the directory of a run: a path, a run's id, or `latest`.

    Raises:
        UsageError: there is no such run.
    """
    for path in (Path(name), runs_directory() / name):
        if journal_exists(path / JOURNAL):
            return path.resolve()
    raise UsageError(
        f"There is no run {name!r}: give a run directory, or an id in {runs_directory()}."
    )


def find_latest(name: str) -> Path | None:
    """Return the directory of runs whose newest a name means, also where it holds none yet.

    None where the name means one run: `latest`, and a path that ends so, mean the newest.
    """
    path = Path(name)
    if path.name != LATEST:
        return None
    runs = runs_directory() if name == LATEST else path.parent.absolute()
    return runs if runs.is_dir() else None


def _point_latest(path: Path) -> None:
    link = path.parent / LATEST
    unfinished = path.parent / f".{LATEST}.{os.getpid()}"
    unfinished.symlink_to(path.name)
    unfinished.rename(link)


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
    link = path.parent / LATEST
    if link.is_symlink() and not link.exists():
        link.unlink()
