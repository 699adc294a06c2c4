"""Where things that were fetched or built once are kept between runs."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_PACKAGE_INDEXES = "apt"


def cache_directory() -> Path:
    """`$DAX_SOAK_CACHE`, or `dax-soak` in the user's cache directory."""
    chosen = os.environ.get("DAX_SOAK_CACHE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "dax-soak"


class Cache:
    """Directories that are complete or absent: built beside their place, then renamed into it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextlib.contextmanager
    def locked(self, name: str) -> Iterator[Path]:
        """Hold the lock of `name` and yield its path; two runs never build the same thing."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with (path.parent / f".{path.name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield path

    def directory(self, name: str, build: Callable[[Path], None]) -> Path:
        """Return the directory `name`; have `build` fill it when it is not there yet."""
        with self.locked(name) as path:
            if path.is_dir():
                return path
            scratch = path.parent / f".{path.name}.partial"
            if scratch.exists():
                shutil.rmtree(scratch)  # of a build that was killed: nobody else holds the lock
            try:
                scratch.mkdir()
                scratch.chmod(0o755)
                build(scratch)
                scratch.rename(path)
            except BaseException:
                shutil.rmtree(scratch, ignore_errors=True)
                raise
            return path

    def package_index(self, suite: str) -> Path:
        """Where the package index of a Debian suite is kept."""
        return self.root / _PACKAGE_INDEXES / suite
