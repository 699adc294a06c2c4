"""A guest that did not come up."""

from __future__ import annotations

from soak.errors import UsageError


class BootError(UsageError):
    """The guest did not come up: the sentence says how far it came, with the end of its console.

    `crashed` tells a kernel that died while booting from one that lacks something; `started` is
    false where QEMU itself did not start, which says nothing about the kernel.
    """

    def __init__(self, sentence: str, *, crashed: bool = False, started: bool = True) -> None:
        super().__init__(sentence)
        self.crashed = crashed
        self.started = started
