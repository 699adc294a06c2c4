# SPDX-License-Identifier: GPL-2.0-only
"""A guest that did not come up."""

from __future__ import annotations

from typing import Final

from soak.errors import UsageError

STOOD_STILL: Final = "stood still while it booted: its processors slept, and nothing woke them"


class BootError(UsageError):
    """The guest did not come up: the sentence says how far it came, with the end of its console.

    `crashed` tells a kernel that died or fell asleep while booting, which may be the emulation's
    fault and is tried again, from one that lacks something; `started` is false where QEMU itself did
    not start, which says nothing about the kernel.
    """

    def __init__(self, sentence: str, *, crashed: bool = False, started: bool = True) -> None:
        super().__init__(sentence)
        self.crashed = crashed
        self.started = started
