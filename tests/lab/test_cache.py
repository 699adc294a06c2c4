# SPDX-License-Identifier: GPL-2.0-only
"""A cached directory is complete or absent, and is built once, whoever asks at the same time."""

from __future__ import annotations

import itertools
import multiprocessing
import stat
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from soak.lab.cache import Cache, cache_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnProcess

DEADLINE_SECONDS = 60.0
NAME = "kernels/a.b"
SPAWN = multiprocessing.get_context("spawn")


def fill(directory: Path) -> None:
    (directory / "sub").mkdir()
    (directory / "sub" / "file").write_text("built")


def never(_: Path) -> None:
    raise AssertionError("it was built a second time")


def left_behind(root: Path) -> list[Path]:
    """Return all that a cache holds, but for the files that are its locks."""
    return sorted(path for path in root.rglob("*") if path.is_dir() or path.suffix != ".lock")


# --- one process ---


def test_a_directory_is_built_once(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    found = cache.directory(NAME, fill)
    assert found == tmp_path / "cache" / NAME
    assert (found / "sub" / "file").read_text() == "built"
    assert cache.directory(NAME, never) == found
    assert Cache(tmp_path / "cache").directory(NAME, never) == found


def test_a_built_directory_needs_no_lock(tmp_path: Path) -> None:
    """The cache may be another user's, or on a read-only file system."""
    cache = Cache(tmp_path)
    made = cache.directory("thing", lambda path: (path / "file").touch())
    lock = tmp_path / ".thing.lock"
    lock.unlink()
    lock.mkdir()
    assert cache.directory("thing", lambda _: pytest.fail("built again")) == made


def test_a_directory_appears_only_when_complete(tmp_path: Path) -> None:
    cache = Cache(tmp_path)

    def build(directory: Path) -> None:
        assert list(directory.iterdir()) == []
        fill(directory)
        assert not (tmp_path / NAME).exists()
        # Renaming only works within one file system.
        assert directory.stat().st_dev == tmp_path.stat().st_dev

    assert cache.directory(NAME, build) == tmp_path / NAME


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failed_build_leaves_nothing_behind(tmp_path: Path, error: type[BaseException]) -> None:
    cache = Cache(tmp_path)

    def build(directory: Path) -> None:
        fill(directory)
        raise error

    with pytest.raises(error):
        cache.directory(NAME, build)
    assert left_behind(tmp_path) == [tmp_path / "kernels"]
    # The next one is not hindered.
    assert (cache.directory(NAME, fill) / "sub" / "file").read_text() == "built"


def test_other_users_may_read_built_directories(tmp_path: Path) -> None:
    built = Cache(tmp_path).directory(NAME, fill)
    assert stat.S_IMODE(built.stat().st_mode) == 0o755


def test_locks_of_names_are_independent(tmp_path: Path) -> None:
    """A build may ask for another directory, even one whose name starts with its own."""
    cache = Cache(tmp_path)

    def build(directory: Path) -> None:
        fill(directory)
        for other in ("kernels/a", "kernels/a.b.c", "kernels/a.b.partial"):
            assert (cache.directory(other, fill) / "sub" / "file").exists()

    assert (cache.directory(NAME, build) / "sub" / "file").exists()
    assert len(list((tmp_path / "kernels").glob("*/sub/file"))) == 4


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"DAX_SOAK_CACHE": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/a"),
        ({"DAX_SOAK_CACHE": "", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/dax-soak"),
        ({"XDG_CACHE_HOME": "", "HOME": "/c"}, "/c/.cache/dax-soak"),
        ({"HOME": "/c"}, "/c/.cache/dax-soak"),
    ],
)
def test_environment_variables_locate_the_cache(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    for name in ("DAX_SOAK_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert cache_directory() == Path(expected)


# --- several processes ---


def ask(root: Path, talk: Connection) -> None:
    """Ask for the directory; say when it is being built, and end the build when told to."""

    def build(directory: Path) -> None:
        (directory / "half").touch()
        talk.send("building")
        talk.recv()
        fill(directory)

    talk.send("asking")
    found = Cache(root).directory(NAME, build)
    talk.send(f"found {(found / 'sub' / 'file').read_text()}")


@dataclass
class Asker:
    """A process that asks a cache for a directory."""

    root: Path
    ours: Connection
    theirs: Connection
    process: SpawnProcess

    def hear(self) -> object:
        assert self.ours.poll(DEADLINE_SECONDS), "the other process said nothing"
        return self.ours.recv()

    def finish_build(self) -> None:
        self.ours.send("go on")

    def says_something(self) -> bool:
        return self.ours.poll()

    def waits_for_a_lock(self) -> bool:
        """See whether the kernel lists it as blocked: a line such as `1: -> FLOCK ... PID ...`."""
        return any(
            line.split()[1] == "->" and str(self.process.pid) in line.split()
            for line in Path("/proc/locks").read_text().splitlines()
        )

    def kill(self) -> None:
        self.process.kill()
        self.process.join(DEADLINE_SECONDS)
        assert self.process.exitcode is not None


@dataclass
class Askers:
    """Starts them, and ends each by its own id."""

    root: Path
    started: list[Asker] = field(default_factory=list)

    def start(self) -> Asker:
        ours, theirs = SPAWN.Pipe()
        process = SPAWN.Process(target=ask, args=(self.root, theirs), daemon=True)
        process.start()
        self.started.append(Asker(self.root, ours, theirs, process))
        assert self.started[-1].hear() == "asking"
        return self.started[-1]


@pytest.fixture
def askers(tmp_path: Path) -> Iterator[Askers]:
    running = Askers(tmp_path)
    yield running
    for asker in running.started:
        asker.kill()
    for end in itertools.chain.from_iterable((each.ours, each.theirs) for each in running.started):
        end.close()


def wait_for(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def start_two(askers: Askers) -> tuple[Asker, Asker]:
    """Return one that builds, and one that waits for it."""
    builder = askers.start()
    assert builder.hear() == "building"
    waiter = askers.start()
    wait_for(lambda: waiter.waits_for_a_lock() or waiter.says_something(), "the second never asked")
    assert not waiter.says_something(), "two processes built at the same time"
    return builder, waiter


def test_two_concurrent_processes_build_once(askers: Askers) -> None:
    builder, waiter = start_two(askers)
    builder.finish_build()
    assert builder.hear() == "found built"
    assert waiter.hear() == "found built"
    assert Cache(askers.root).directory(NAME, never) == askers.root / NAME


def test_a_killed_build_is_repeated_cleanly(askers: Askers) -> None:
    builder, waiter = start_two(askers)
    builder.kill()
    assert waiter.hear() == "building"
    waiter.finish_build()
    assert waiter.hear() == "found built"
    found = askers.root / NAME
    assert left_behind(askers.root) == [
        found.parent,
        found,
        found / "half",
        found / "sub",
        found / "sub" / "file",
    ]


def test_concurrent_threads_build_once(tmp_path: Path) -> None:
    built: list[Path] = []
    found: list[Path] = []

    def build(directory: Path) -> None:
        built.append(directory)
        fill(directory)

    threads = [
        threading.Thread(target=lambda: found.append(Cache(tmp_path).directory(NAME, build)))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_SECONDS)
    assert found == [tmp_path / NAME] * len(threads)
    assert len(built) == 1


def test_a_wait_for_another_build_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache = Cache(tmp_path)
    waiting = threading.Thread(target=cache.directory, args=(NAME, fill))
    with cache.locked(NAME) as path:
        waiting.start()
        said, deadline = "", time.monotonic() + DEADLINE_SECONDS
        while "Waiting" not in said and time.monotonic() < deadline:
            said += capsys.readouterr().err
            time.sleep(0.01)
        assert said == f"Waiting for another dax-soak to build {path} ...\n"
        assert not path.exists()
    waiting.join(DEADLINE_SECONDS)
    assert path.is_dir()
