# SPDX-License-Identifier: GPL-2.0-only
"""Checks that no other user can redirect writes to a directory."""

from __future__ import annotations

import errno
import os
import pwd
import stat
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Final

from soak.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

_FLAGS: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OTHERS_WRITE: Final = 0o022
_MOST_LINKS: Final = 40  # the kernel's limit: MAXSYMLINKS in include/linux/namei.h


def check_path(path: Path) -> None:
    """Refuse, as root, a path of which another user could replace a component.

    Raises:
        UsageError: another user owns or may write to a directory or link on the path.
        OSError: a component cannot be examined.
    """
    if os.geteuid() != 0:
        return
    for place, status in _components(path):
        if status.st_uid != 0:
            raise UsageError(
                f"Unsafe path {path}: {place} belongs to user {_user(status.st_uid)}, who could redirect "
                f"root's writes. Choose a directory below one that only root may write to."
            )
        by_others = status.st_mode & stat.S_IWOTH or (
            status.st_mode & stat.S_IWGRP and status.st_gid != 0
        )
        if stat.S_ISDIR(status.st_mode) and by_others and not status.st_mode & stat.S_ISVTX:
            raise UsageError(
                f"Unsafe path {path}: users other than root may write to {place} and could redirect "
                f"root's writes. Run 'chmod go-w {place}', or choose a directory below one that only "
                f"root may write to."
            )


def open_own(path: Path) -> int:
    """Open a directory that this user owns, without following a link; its mode does not matter.

    Raises:
        UsageError: another user owns it.
        OSError: it cannot be opened, is a link, or is not a directory.
    """
    descriptor = os.open(path, _FLAGS)
    owner = os.fstat(descriptor).st_uid
    if owner != os.geteuid():
        os.close(descriptor)
        raise UsageError(
            f"The directory {path} belongs to user {_user(owner)}, expected {_user(os.geteuid())}: "
            f"choose another one, or run as its owner."
        )
    return descriptor


def check_private(path: Path) -> None:
    """Refuse a directory that another user owns or may write to.

    Raises:
        UsageError: another user owns it or may write to it.
        OSError: it cannot be opened, is a link, or is not a directory.
    """
    descriptor = open_own(path)
    mode = os.fstat(descriptor).st_mode
    os.close(descriptor)
    if mode & _OTHERS_WRITE:
        raise UsageError(
            f"Users other than its owner may write to the directory {path} and may have changed the run. "
            f"If you trust its files, run 'chmod go-w {path}'."
        )


def _components(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield each existing directory and symbolic link on the way to a path."""
    place, rest, links = Path("/"), deque(path.absolute().parent.parts[1:]), 0
    yield place, place.lstat()
    while rest:
        part = rest.popleft()
        if part == "..":
            place = place.parent
            continue
        step = place / part
        try:
            status = step.lstat()
        except FileNotFoundError:
            return
        yield step, status
        if not stat.S_ISLNK(status.st_mode):
            place = step
            continue
        links += 1
        if links > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        target = step.readlink()
        if target.is_absolute():
            place = Path("/")
        rest.extendleft(reversed(target.parts[1:] if target.is_absolute() else target.parts))


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)
