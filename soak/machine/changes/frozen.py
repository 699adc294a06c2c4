# SPDX-License-Identifier: GPL-2.0-only
"""Frozen file systems. A freeze outlives the process that made it."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Final

from soak.abi.freeze import freeze, thaw, wait_until_writable
from soak.abi.statx import device_number
from soak.errors import UsageError
from soak.machine.changes.entry import Facts, Kind, Machine, Outcome, UnchangedError
from soak.process.helper import HelperError, in_helper

_SECONDS: Final = 20.0
# A freeze in progress cannot be thawed yet, and takes effect even if its process was killed: so check
# after each thaw, and thaw again.
_ATTEMPTS: Final = 4
_TRY_SECONDS: Final = 3.0


def _look(_machine: Machine, mount_point: str, _wanted: Facts) -> Facts:
    path = Path(mount_point)
    if not path.is_absolute() or not path.is_mount():
        raise UsageError(f"{mount_point!r} cannot be frozen: give the path of a mounted file system.")
    return {"device": device_number(path)}


def _apply(_machine: Machine, mount_point: str, _facts: Facts) -> None:
    try:
        freeze(mount_point)
    except OSError as error:
        # EBUSY: another program has frozen it, and will thaw it.
        raise UnchangedError(
            f"The file system {mount_point} cannot be frozen: {error.strerror}."
        ) from None


def _undo(_machine: Machine, mount_point: str, facts: Facts) -> tuple[Outcome, str]:
    path = Path(mount_point)
    if not path.is_mount() or device_number(path) != facts["device"]:
        # It stays frozen while unmounted, and at its next mount.
        raise UsageError(f"file system {facts['device']} is no longer mounted there")
    for _ in range(_ATTEMPTS):
        try:
            thaw(mount_point)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
        try:
            in_helper(lambda: wait_until_writable(mount_point), _TRY_SECONDS)
        except HelperError:
            continue
        return Outcome.RESTORED, f"file system {mount_point} is not frozen"
    raise UsageError("no file can be created on it")


FROZEN: Final = Kind(
    look=_look,
    apply=_apply,
    undo=_undo,
    by_hand=lambda mount_point, _: (
        f"once its pending operations have ended, thaw it with: fsfreeze -u {mount_point}"
    ),
    facts={"device": str},
    outlives_boot=False,
    seconds=_SECONDS,
)
