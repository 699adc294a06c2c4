# SPDX-License-Identifier: GPL-2.0-only
"""Directories that the soak makes on existing file systems, and removes with their contents.

A random mark identifies a directory: its name while it is made or removed, and a file in it that only its
owner can read. So another directory or a link in its place is never removed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from soak.abi.directories import open_own_directory, rename_to_new
from soak.errors import UsageError
from soak.machine.changes.entry import Facts, Kind, Machine, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

MARK_FILE: Final = ".dax-soak-mark"
_SECONDS: Final = 60.0
_OCTAL: Final = re.compile(r"\\([0-7]{3})")
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


def _look(_machine: Machine, target: str, _wanted: Facts) -> Facts:
    path = Path(target)
    try:
        found = path.parent.stat()
    except OSError as error:
        raise UsageError(f"The directory {path} cannot be made: {error.strerror}.") from None
    if found.st_mode & _OTHERS_WRITE and not found.st_mode & stat.S_ISVTX:
        raise UsageError(
            f"The directory {path} cannot be made: other users may write to {path.parent} and could "
            f"replace it. Run 'chmod go-w {path.parent}', or give another directory."
        )
    if os.path.lexists(path):
        raise UsageError(
            f"The directory {path} exists and was not made by this soak: move it away, or give another "
            f"directory."
        )
    mount = max((m for m in _mount_points() if path.is_relative_to(m)), key=len, default="")
    return {"mark": secrets.token_hex(16), "mount": mount}


def _apply(_machine: Machine, target: str, facts: Facts) -> None:
    path, unfinished = Path(target), _marked_name(facts)
    with _opened(path.parent) as parent:
        os.mkdir(unfinished, 0o700, dir_fd=parent)
        directory = open_own_directory(unfinished, parent)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(MARK_FILE, flags, 0o600, dir_fd=directory), "w") as file:
                file.write(facts["mark"])
                file.flush()
                os.fsync(file.fileno())
            os.fsync(directory)
        finally:
            os.close(directory)
        rename_to_new(unfinished, path.name, parent)
        os.fsync(parent)


def _undo(_machine: Machine, target: str, facts: Facts) -> tuple[Outcome, str]:
    path, unfinished = Path(target), _marked_name(facts)
    mounts = _mount_points()
    if facts["mount"] and facts["mount"] not in mounts:
        raise UsageError(f"its file system {facts['mount']} is not mounted")
    if below := [mount for mount in mounts if Path(mount).is_relative_to(path)]:
        raise UsageError(f"a file system is mounted there: {', '.join(below)}")
    gone = Outcome.RESTORED, f"directory {path} is removed"
    try:
        opened = _opened(path.parent)
        with opened as parent:
            state = _state_of(path.name, parent, facts["mark"])
            if state is _OURS:
                # From here on its name is its mark, which identifies a half-removed directory.
                rename_to_new(path.name, unfinished, parent)
            _remove_marked(unfinished, parent, facts["mark"])
            os.fsync(parent)
    except FileNotFoundError:
        return gone
    if state is _FOREIGN:
        return Outcome.LEFT, (f"{path} is left alone: it is not the directory that the soak made")
    return gone


_OURS: Final = "ours"
_FOREIGN: Final = "foreign"
_ABSENT: Final = "absent"


def _state_of(name: str, parent: int, mark: str) -> str:
    """Return whether a name in `parent` is the directory with this mark, another file, or absent.

    Raises:
        OSError: it cannot be opened; EXDEV if it is a mount point.
    """
    try:
        directory = open_own_directory(name, parent)
    except FileNotFoundError:
        return _ABSENT
    except OSError as error:
        if error.errno in {errno.ENOTDIR, errno.ELOOP}:
            return _FOREIGN
        raise
    try:
        own = os.fstat(directory).st_uid == os.geteuid()
        return _OURS if own and _mark_in(directory) == mark else _FOREIGN
    finally:
        os.close(directory)


def _mark_in(directory: int) -> str | None:
    """Read the mark of a directory from a regular file of this user."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(MARK_FILE, flags, dir_fd=directory)
    except OSError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            return None
        return file.read(128).decode(errors="replace")


def _remove_marked(name: str, parent: int, mark: str) -> None:
    """Remove a directory named by its mark, if it exists; its mark file last.

    Raises:
        UsageError: it belongs to another user.
        OSError: it cannot be removed; EXDEV if a file system is mounted in it.
    """
    try:
        directory = open_own_directory(name, parent)
    except FileNotFoundError:
        return
    try:
        # Without a whole mark it was never finished or is almost removed, and holds nothing else.
        if os.fstat(directory).st_uid != os.geteuid():
            raise UsageError(f"{name} beside it belongs to another user")
        if _mark_in(directory) == mark:
            _remove_contents(directory, keep=MARK_FILE)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(MARK_FILE, dir_fd=directory)
    finally:
        os.close(directory)
    os.rmdir(name, dir_fd=parent)


def _remove_contents(directory: int, keep: str = "") -> None:
    """Remove the contents of a directory, following no link and crossing no mount."""
    with os.scandir(directory) as entries:
        listed = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_directory in listed:
        if name == keep:
            continue
        if not is_directory:
            os.unlink(name, dir_fd=directory)
            continue
        below = open_own_directory(name, directory)
        try:
            _remove_contents(below)
        finally:
            os.close(below)
        os.rmdir(name, dir_fd=directory)


def _marked_name(facts: Facts) -> str:
    return f".dax-soak-{facts['mark']}"


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _mount_points() -> list[str]:
    """Return all mount points (/proc/self/mountinfo, proc(5))."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [_OCTAL.sub(lambda code: chr(int(code[1], 8)), line.split()[4]) for line in lines]


TREE: Final = Kind(
    look=_look,
    apply=_apply,
    undo=_undo,
    by_hand=lambda target, facts: (
        f"remove {target} (or {_marked_name(facts)} beside it) by hand; a file with pinned pages can be "
        f"removed only after a reboot"
    ),
    facts={"mark": str, "mount": str},
    outlives_boot=True,
    seconds=_SECONDS,
)
