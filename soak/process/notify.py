# SPDX-License-Identifier: GPL-2.0-only
"""Tells the service manager how this process is, as sd_notify(3) does, with the standard library.

Where no service manager listens, nothing is told. Nothing here ever blocks.
"""

from __future__ import annotations

import os
import re
import socket
from typing import TYPE_CHECKING, Final, Self

import structlog

from soak.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

_SOCKET: Final = "NOTIFY_SOCKET"
_WATCHDOG_USEC: Final = "WATCHDOG_USEC"
_WATCHDOG_PID: Final = "WATCHDOG_PID"
_NUMBER: Final = re.compile(r"[0-9]+", re.ASCII)
# systemd's word for "never" (basic/time-util.h), which sd_watchdog_enabled(3) refuses.
_USEC_INFINITY: Final = 2**64 - 1
_USEC_PER_SECOND: Final = 1_000_000
_LOG: Final[structlog.typing.FilteringBoundLogger] = structlog.get_logger()


class Notifier:
    """Sends datagrams to the service manager. One that cannot be sent is logged, once."""

    def __init__(self, address: str | None) -> None:
        """Take a path, or a name in the abstract namespace after an `@`; None tells nobody.

        Raises:
            UsageError: the address is neither.
        """
        self._complaint = ""
        self._socket: socket.socket | None = None
        self._address = ""
        if address is None:
            return
        if address[:1] not in {"/", "@"} or len(address) == 1:
            raise UsageError(
                f"{_SOCKET} is {address!r}, expected an absolute path or '@' and a name: unset it "
                f"where no service manager listens."
            )
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        return cls(environment.get(_SOCKET))

    def ready(self, status: str) -> bool:
        """Say that the service is up, and that this is its process."""
        return self.send(READY="1", MAINPID=str(os.getpid()), STATUS=status)

    def status(self, text: str) -> bool:
        return self.send(STATUS=text)

    def feed(self) -> bool:
        """Feed the watchdog: without this, the service manager ends the service in time."""
        return self.send(WATCHDOG="1")

    def stopping(self, status: str) -> bool:
        return self.send(STOPPING="1", STATUS=status)

    def send(self, **assignments: str) -> bool:
        """Send assignments in one datagram; False when nobody was told."""
        if self._socket is None:
            return False
        # A line is an assignment, so a text has one line.
        lines = [f"{name}={' '.join(text.splitlines())}" for name, text in assignments.items()]
        data = "\n".join(lines).encode(errors="replace")
        try:
            self._socket.sendto(data, socket.MSG_NOSIGNAL, self._address)
        except OSError as error:
            if self._complaint != str(error):
                _LOG.warning("the service manager cannot be notified", reason=str(error))
            self._complaint = str(error)
            return False
        self._complaint = ""
        return True

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def watchdog_seconds(environment: Mapping[str, str] = os.environ, pid: int | None = None) -> float | None:
    """Return after how many seconds without a feed the service manager ends this process.

    None where it watches nobody, or another process than `pid` (by default this one), as
    sd_watchdog_enabled(3) decides it.

    Raises:
        UsageError: the environment says something that cannot be meant.
    """
    text = environment.get(_WATCHDOG_USEC)
    if text is None:
        return None
    whose = environment.get(_WATCHDOG_PID)
    if whose is not None and _number(_WATCHDOG_PID, whose) != (os.getpid() if pid is None else pid):
        return None
    return _number(_WATCHDOG_USEC, text) / _USEC_PER_SECOND


def _number(name: str, text: str) -> int:
    # More digits than the largest number has are refused, as int() refuses thousands of them.
    meant = _NUMBER.fullmatch(text) and len(text) <= len(str(_USEC_INFINITY))
    number = int(text) if meant else 0
    if not 0 < number < _USEC_INFINITY:
        raise UsageError(
            f"{name} is {text!r}, expected a whole number above 0: unset it where no service "
            f"manager watches."
        )
    return number
