# SPDX-License-Identifier: GPL-2.0-only
"""The ways in which a short pin is taken and given back, as a table."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from soak.model.vocabulary import Backing, Interface

_PIPE_PAGES: Final = 16  # of a pipe's default size, include/linux/pipe_fs_i.h
_TRANSFER_PAGES: Final = 512


# What a choice of a holder says in `access`: the memory is written into, not read from.
INTO_MEMORY: Final = 1


class Target(StrEnum):
    """Where the memory goes to or comes from."""

    NOWHERE = "nowhere"
    SLOW_DEVICE = "slow device"
    FAST_DEVICE = "fast device"


@dataclass(frozen=True)
class Method:
    """One way. `into` says whether it may also write into the memory that it pins.

    A page that is no longer mapped is never written into: on a kernel that does not wait for it, it
    may be another file's by then.
    """

    name: str
    interface: Interface
    backing: Backing = Backing.SHARED
    target: Target = Target.NOWHERE
    into: bool = False
    repeated: bool = False
    most_pages: int = _TRANSFER_PAGES


PIPE: Final = Method("pipe", Interface.VMSPLICE, most_pages=_PIPE_PAGES)
PIPE_UNMAPPED: Final = Method(
    "pipe-unmapped", Interface.VMSPLICE, Backing.UNMAPPED, most_pages=_PIPE_PAGES
)
# An asynchronous transfer to a slow device: the time in which it pins for certain is known.
TRANSFER: Final = Method("transfer", Interface.O_DIRECT, target=Target.SLOW_DEVICE, into=True)
TRANSFER_UNMAPPED: Final = Method(
    "transfer-unmapped", Interface.O_DIRECT, Backing.UNMAPPED, Target.SLOW_DEVICE
)
# A transfer that blocks, which takes another way through the kernel.
BLOCKING: Final = Method("blocking", Interface.O_DIRECT, target=Target.SLOW_DEVICE, into=True)
# Many short transfers, and many copies, one behind the other: the pages are mapped again and again.
REPEATED: Final = Method(
    "repeated", Interface.O_DIRECT, target=Target.FAST_DEVICE, into=True, repeated=True
)
COPY: Final = Method("copy", Interface.PROCESS_VM, into=True, repeated=True)

METHODS: Final = (PIPE, PIPE_UNMAPPED, TRANSFER, TRANSFER_UNMAPPED, BLOCKING, REPEATED, COPY)


def available(*, transfers: bool) -> tuple[int, ...]:
    """Return the positions of the methods that can be used, with block devices to use or without."""
    return tuple(
        position
        for position, method in enumerate(METHODS)
        if transfers or method.target is Target.NOWHERE
    )
