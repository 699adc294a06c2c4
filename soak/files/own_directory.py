# SPDX-License-Identifier: GPL-2.0-only
"""Directories in which only this user can put something in the way of a write."""

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
_MOST_LINKS: Final = 40  # as the kernel follows, MAXSYMLINKS in include/linux/namei.h


def check_way(path: Path) -> None:
    """Refuse, as root, a path on which another user could put something else in the place of a directory.

    Raises:
        UsageError: names the directory or link, its owner, and what to do.
        OSError: a directory cannot be looked at.
    """
    if os.geteuid() != 0:
        return
    for place, status in _way(path):
        if status.st_uid != 0:
            raise UsageError(
                f"{path} cannot be used: {place} belongs to user {_user(status.st_uid)}, who could have "
                f"root write anywhere. Give a directory below one of root's."
            )
        by_others = status.st_mode & stat.S_IWOTH or (
            status.st_mode & stat.S_IWGRP and status.st_gid != 0
        )
        if stat.S_ISDIR(status.st_mode) and by_others and not status.st_mode & stat.S_ISVTX:
            raise UsageError(
                f"{path} cannot be used: users other than root may write to {place}, and could have root "
                f"write anywhere. 'chmod go-w {place}', or give a directory below one of root's."
            )


def open_own(path: Path) -> int:
    """Open a directory that is no link and belongs to this user, whatever its mode is.

    Raises:
        UsageError: it is not this user's; says so, and what to do.
        OSError: it cannot be opened, or is a link or no directory.
    """
    descriptor = os.open(path, _FLAGS)
    owner = os.fstat(descriptor).st_uid
    if owner != os.geteuid():
        os.close(descriptor)
        raise UsageError(
            f"The directory {path} belongs to user {_user(owner)}, not to {_user(os.geteuid())}, who "
            f"would write to it: give another one, or run as its owner."
        )
    return descriptor


def check_private(path: Path) -> None:
    """Refuse a directory that is another user's, or to which others may write.

    Raises:
        UsageError: says which of the two, and what to do.
        OSError: it cannot be opened, or is a link or no directory.
    """
    descriptor = open_own(path)
    mode = os.fstat(descriptor).st_mode
    os.close(descriptor)
    if mode & _OTHERS_WRITE:
        raise UsageError(
            f"Others may write to the directory {path}, so what is in it need not be what a run left "
            f"there: 'chmod go-w' it if you know that it is."
        )


def _way(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield each directory and each link on the way to a path, as far as it is there."""
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
