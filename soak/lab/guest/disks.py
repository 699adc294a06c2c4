# SPDX-License-Identifier: GPL-2.0-only
"""The guest's slow and fast block devices, for transfers to and from DAX memory."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

from soak.errors import UsageError

_RAM_DISK_KIB: Final = 4096
_SLOW_MILLISECONDS: Final = 40
_SECTOR: Final = 512
_TOOL_SECONDS: Final = 60
_DELAYED: Final = "dax-soak-slow"
_RAM_DISKS: Final = (Path("/dev/ram0"), Path("/dev/ram1"))
_NULL_DISK: Final = Path("/dev/nullb0")

# On the kernel's command line, where built-in drivers and modules both read them.
PARAMETERS: Final = (
    f"brd.rd_nr={len(_RAM_DISKS)} brd.rd_size={_RAM_DISK_KIB} "
    f"null_blk.nr_devices=1 null_blk.gb=1 null_blk.irqmode=2 "
    f"null_blk.completion_nsec={_SLOW_MILLISECONDS * 1_000_000}"
)


def make_disks() -> dict[str, list[str]]:
    """Make the devices and return them by key of the configuration.

    Raises:
        UsageError: the kernel lacks RAM disks or dm-delay.
    """
    for disk in _RAM_DISKS:
        if not disk.exists():
            raise UsageError(f"the kernel shows no {disk}: it needs CONFIG_BLK_DEV_RAM")
    behind, quick = _RAM_DISKS
    sectors = _RAM_DISK_KIB * 1024 // _SECTOR
    table = f"0 {sectors} delay {behind} 0 {_SLOW_MILLISECONDS}"
    made = _dmsetup("create", "--table", table)
    if made.returncode != 0:
        raise UsageError(
            f"the kernel cannot delay a disk ({made.stderr.strip()}): it needs CONFIG_DM_DELAY"
        )
    slow = ["/dev/dm-0"]
    if _NULL_DISK.exists():
        slow.append(str(_NULL_DISK))
    return {"slow-devices": slow, "fast-devices": [str(quick)]}


def suspend_disk() -> None:
    """Make the delayed disk queue every request, until it is resumed."""
    _dmsetup("suspend").check_returncode()


def resume_disk() -> None:
    """Make the delayed disk process its queued requests."""
    _dmsetup("resume").check_returncode()


def _dmsetup(command: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["dmsetup", command, _DELAYED, "--noudevsync", *options],
        check=False,
        capture_output=True,
        text=True,
        timeout=_TOOL_SECONDS,
    )
