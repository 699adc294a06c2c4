# SPDX-License-Identifier: GPL-2.0-only
"""The host's end of a port of the virtual machine."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_CHUNK: Final = 1 << 16
# Most lines have a few KiB. Of a longer one only the beginning is kept.
_LONGEST: Final = 4 << 20
_MOST_UNSENT: Final = 1 << 20


class Port:
    """One end of a pair of sockets, whose other end QEMU has.

    It is no stream of asyncio: those drop what was not read yet as soon as a write fails, and a write
    fails when QEMU has ended, which is when its last words are there to be read.
    """

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end
        self._unsent = bytearray()

    @classmethod
    def pair(cls) -> tuple[Self, socket.socket]:
        """Make a port, and the end that QEMU inherits."""
        ours, theirs = socket.socketpair()
        return cls(ours), theirs

    def send(self, text: str) -> None:
        """Send a line as far as there is room for it. One that has ended does not hear it."""
        if len(self._unsent) < _MOST_UNSENT:
            self._unsent += f"{text}\n".encode()
        try:
            del self._unsent[: self._socket.send(self._unsent)]
        except BlockingIOError:
            return
        except OSError:
            self._unsent.clear()

    async def lines(self) -> AsyncIterator[bytes]:
        """Yield one line after the other, until QEMU ends; one that is too long is cut at 4 MiB.

        What a dying guest left without an end is no line.
        """
        loop = asyncio.get_running_loop()
        rest, skipping = b"", False
        while data := await self._received(loop):
            *whole, rest = (rest + data).split(b"\n")
            for line in whole:
                if not skipping:
                    yield line[:_LONGEST]
                skipping = False
            if len(rest) > _LONGEST:
                if not skipping:
                    yield rest[:_LONGEST]
                rest, skipping = b"", True

    async def _received(self, loop: asyncio.AbstractEventLoop) -> bytes:
        try:
            return await loop.sock_recv(self._socket, _CHUNK)
        except OSError:
            # QEMU has ended with something unread: what it had sent was read before.
            return b""

    def close(self) -> None:
        self._socket.close()
