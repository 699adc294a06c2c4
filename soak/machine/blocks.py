# SPDX-License-Identifier: GPL-2.0-only
"""Block devices: whether anybody uses one, itself or through what is built on it."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from soak.abi.mounts import mounts, swap_devices
from soak.abi.openers import Device, openers
from soak.machine.check_line import Objection
from soak.process.helper import HelperError, in_helper

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

_CLASS: Final = Path("/sys/class/block")
_DEVICES: Final = Path("/dev")
_SECONDS: Final = 20.0


def disk_users(names: Iterable[str]) -> list[Objection]:
    """Return what disks, their partitions and what is built on them are used for.

    `names` are the kernel's, such as nvme0n1. Nothing is opened.
    """
    return [objection for name in names for objection in _users((_CLASS / name).resolve(), name)]


def opened(
    names: Iterable[str], others: Collection[Device], seconds: float = _SECONDS
) -> list[Objection]:
    """Ask the kernel and every process who has these disks, or other devices, open.

    It finds what `disk_users` cannot see: mounts of another namespace, arrays, programs.
    """
    stacked = sorted({place.name for name in names for place in _stack((_CLASS / name).resolve())})
    asked = {Device("b", _number(_CLASS / name)) for name in stacked} | set(others)
    if not asked:
        return []
    # Opening a disk and looking into other processes can hang.
    try:
        claimed, users, hidden = in_helper(lambda: [*_look(stacked, asked)], seconds)
    except HelperError as error:
        return [Objection(f"its users cannot be read: {error}", "see what keeps its devices busy")]
    found = []
    if claimed:
        found.append(
            Objection(
                f"{', '.join(claimed)} is claimed by the kernel: a file system, swap or an array",
                "'lsblk' shows what is built on it: take that down",
            )
        )
    if users:
        found.append(Objection(f"{users} has a device of it open", "end that first"))
    if hidden:
        found.append(Objection(f"whether {hidden} has it open cannot be read", "ask again as root"))
    return found


def _look(names: Iterable[str], devices: Collection[Device]) -> Iterator[object]:
    yield [name for name in names if _is_claimed(_DEVICES / name.replace("!", "/"))]
    # The process that asks has nothing of it open, and neither has this helper.
    yield from openers(devices, but=(os.getpid(), os.getppid())).texts()


def _is_claimed(path: Path) -> bool:
    """Ask for the device alone: a mount, swap, device mapper and md claim theirs (bd_may_claim()).

    What cannot be opened at all, such as an empty reader of cards, has nothing to lose.
    """
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


def _users(device: Path, below: str) -> Iterator[Objection]:
    """Say what a device, its partitions and its holders are used for."""
    number = _number(device)
    name = device.name
    through = "" if name == below else f" on {below}"
    for mount in mounts():
        if mount.number == number:
            yield Objection(
                f"{name}{through} is mounted on {mount.point}", f"'umount {mount.point}' first"
            )
            break
    if number in swap_devices():
        yield Objection(f"{name}{through} is swap", f"'swapoff /dev/{name}' first")
    for part in _partitions(device):
        yield from _users(part, below)
    for holder in _holders(device):
        yield Objection(
            f"{holder.name} is built on {name}", f"take {holder.name} down ('lsblk' shows it)"
        )
        yield from _users(holder, below)


def _stack(device: Path) -> Iterator[Path]:
    yield device
    for above in (*_partitions(device), *_holders(device)):
        yield from _stack(above)


def _partitions(device: Path) -> list[Path]:
    return [entry.parent for entry in sorted(device.glob("*/partition"))]


def _holders(device: Path) -> list[Path]:
    holders = device / "holders"
    return [entry.resolve() for entry in sorted(holders.iterdir())] if holders.exists() else []


def _number(device: Path) -> str:
    return (device / "dev").read_text().strip()
