# SPDX-License-Identifier: GPL-2.0-only
"""Where things that were fetched or built once are kept between runs."""

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
        UsageError: a variable says something that cannot be meant.
    """
    chosen = absolute_directory("DAX_SOAK_CACHE")
    return user_directory("XDG_CACHE_HOME", ".cache") / "dax-soak" if chosen is None else chosen


class Cache:
    """Directories that are complete or absent: built beside their place, then renamed into it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[Path]:
        """Hold the lock of `name` and yield its path; two runs never build the same thing.

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
        """Return the directory `name`; have `build` fill it when it is not there yet.

        Raises:
            UsageError: the cache cannot be used, or `build` cannot read or write a file.
        """
        made = self.root / name
        # A cache that somebody else filled need not be writable. What cannot be seen is said below.
        if os.path.isdir(made):  # noqa: PTH112 - Path.is_dir() raises what this takes for no
            return made
        with self.locked(name) as path:
            scratch = path.parent / f".{path.name}.partial"
            try:
                if path.is_dir():
                    return path
                if scratch.exists():
                    shutil.rmtree(scratch)  # of a build that was killed: nobody else holds the lock
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
        """Say why; the file may be one that a build reads, and not of the cache."""
        file = f", {error.filename}" if error.filename else ""
        return UsageError(
            f"The cache {self.root} cannot be used ({error.strerror or error}{file}): give it space and "
            f"the rights to write, or name another directory with DAX_SOAK_CACHE."
        )

    def package_index(self, suite: str) -> Path:
        """Where the package index of a Debian suite is kept."""
        return self.root / _PACKAGE_INDEXES / suite


def _wait_for(lock: IO[str], path: Path) -> None:
    """Take a lock, and say so where another process has it: what it builds may take minutes."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        put_error(f"Waiting for another dax-soak that makes {path} ...")
        fcntl.flock(lock, fcntl.LOCK_EX)
