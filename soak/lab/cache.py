# SPDX-License-Identifier: GPL-2.0-only
"""The cache of fetched and built files, shared by all runs of a user."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from typing import IO, TYPE_CHECKING

from soak.errors import UsageError
from soak.files.user_directories import absolute_directory, user_directory
from soak.process.output import put_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

_PACKAGE_INDEXES = "apt"


def cache_directory() -> Path:
    """`$DAX_SOAK_CACHE`, or `dax-soak` in the user's cache directory.

    Raises:
        UsageError: one of the environment variables is not a usable path.
    """
    chosen = absolute_directory("DAX_SOAK_CACHE")
    return user_directory("XDG_CACHE_HOME", ".cache") / "dax-soak" if chosen is None else chosen


class Cache:
    """Directories that are complete or absent: built beside their final path, then renamed to it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[Path]:
        """Hold the lock of `name` and yield its path, so that two runs never build the same directory.

        Raises:
            UsageError: the cache cannot be used.
        """
        path = self.root / name
        with contextlib.ExitStack() as stack:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                lock = stack.enter_context((path.parent / f".{path.name}.lock").open("w"))
                _wait_for(lock, path)
            except OSError as error:
                raise self.unusable(error) from error
            yield path

    def directory(self, name: str, build: Callable[[Path], None]) -> Path:
        """Return the directory `name`; if it is missing, `build` fills it.

        Raises:
            UsageError: the cache cannot be used, or `build` cannot read or write a file.
        """
        made = self.root / name
        # A complete directory needs no write permission. Errors are reported below.
        if os.path.isdir(made):  # noqa: PTH112 - Path.is_dir() raises PermissionError, this returns False
            return made
        with self.locked(name) as path:
            scratch = path.parent / f".{path.name}.partial"
            try:
                if path.is_dir():
                    return path
                if scratch.exists():
                    shutil.rmtree(scratch)  # of a killed build: this process holds the lock
                scratch.mkdir()
                scratch.chmod(0o755)
                build(scratch)
                scratch.rename(path)
            except OSError as error:
                shutil.rmtree(scratch, ignore_errors=True)
                raise self.unusable(error) from error
            except BaseException:
                shutil.rmtree(scratch, ignore_errors=True)
                raise
            return path

    def unusable(self, error: OSError) -> UsageError:
        """Return the error to raise; its file may be an input of a build, outside the cache."""
        file = f", {error.filename}" if error.filename else ""
        return UsageError(
            f"The cache {self.root} cannot be used ({error.strerror or error}{file}): make it writable "
            f"and free some space, or set DAX_SOAK_CACHE to another directory."
        )

    def package_index(self, suite: str) -> Path:
        return self.root / _PACKAGE_INDEXES / suite


def _wait_for(lock: IO[str], path: Path) -> None:
    """Take a lock; report a wait for another process, whose build may take minutes."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        put_error(f"Waiting for another dax-soak to build {path} ...")
        fcntl.flock(lock, fcntl.LOCK_EX)
