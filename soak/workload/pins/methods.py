# SPDX-License-Identifier: GPL-2.0-only
"""The table of methods that take and release short pins."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from soak.model.vocabulary import Backing, Interface

_PIPE_PAGES: Final = 16  # PIPE_DEF_BUFFERS, include/linux/pipe_fs_i.h
_TRANSFER_PAGES: Final = 512


# `Choice.access` of a holder: the call writes into the memory instead of reading it.
INTO_MEMORY: Final = 1


class Target(StrEnum):
    """The device that a method transfers to or from."""

    NOWHERE = "nowhere"
    SLOW_DEVICE = "slow device"
    FAST_DEVICE = "fast device"


@dataclass(frozen=True)
class Method:
    """One method. `into`: it can also write into the memory that it pins.

    No method writes into an unmapped page: if the kernel does not wait for the pin, the page may
    already belong to another file.
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
# An asynchronous transfer to a slow device: polling shows how long it certainly pins.
TRANSFER: Final = Method("transfer", Interface.O_DIRECT, target=Target.SLOW_DEVICE, into=True)
TRANSFER_UNMAPPED: Final = Method(
    "transfer-unmapped", Interface.O_DIRECT, Backing.UNMAPPED, Target.SLOW_DEVICE
)
# A blocking transfer takes another path through the kernel.
BLOCKING: Final = Method("blocking", Interface.O_DIRECT, target=Target.SLOW_DEVICE, into=True)
# Back-to-back short transfers or copies: each one faults in and pins the pages again.
REPEATED: Final = Method(
    "repeated", Interface.O_DIRECT, target=Target.FAST_DEVICE, into=True, repeated=True
)
COPY: Final = Method("copy", Interface.PROCESS_VM, into=True, repeated=True)

METHODS: Final = (PIPE, PIPE_UNMAPPED, TRANSFER, TRANSFER_UNMAPPED, BLOCKING, REPEATED, COPY)


def available(*, transfers: bool) -> tuple[int, ...]:
    """Return the indices of the usable methods; `transfers`: there are block devices."""
    return tuple(
        position
        for position, method in enumerate(METHODS)
        if transfers or method.target is Target.NOWHERE
    )
