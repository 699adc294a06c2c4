# SPDX-License-Identifier: GPL-2.0-only
"""A service manager's end of sd_notify, as a real socket."""

from __future__ import annotations

import secrets
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_LARGEST = 65536


class Manager:
    """Takes what services say. `address` is their NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.said: list[dict[str, str]] = []

    def hear(self) -> list[dict[str, str]]:
        """Return the assignments of all datagrams since the last time."""
        new = []
        while (data := self._next()) is not None:
            new.append(dict(line.split("=", 1) for line in data.decode().splitlines()))
        self.said += new
        return new

    def was_told(self, name: str, part: str = "") -> bool:
        """Say whether an assignment of this name, with that in its value, has just come."""
        return any(part in message[name] for message in self.hear() if name in message)

    def _next(self) -> bytes | None:
        try:
            return self.socket.recv(_LARGEST)
        except BlockingIOError:
            return None


@contextmanager
def listening_manager(address: str | None = None) -> Iterator[Manager]:
    """Listen at a path, or in the abstract namespace, where any user may send."""
    manager = Manager(address or f"@dax-soak-test-{secrets.token_hex(8)}")
    with manager.socket:
        yield manager
