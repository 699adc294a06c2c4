# SPDX-License-Identifier: GPL-2.0-only
"""Notify the service manager as sd_notify(3) does, with the standard library alone.

Without a service manager the functions do nothing. None of them blocks.
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
    """Sends datagrams to the service manager; logs each new error once."""

    def __init__(self, address: str | None) -> None:
        """Open a socket for `address`: a path, or `@` and an abstract name; None disables sending.

        Raises:
            UsageError: the address is neither.
        """
        self._last_error = ""
        self._socket: socket.socket | None = None
        self._address = ""
        if address is None:
            return
        if address[:1] not in {"/", "@"} or len(address) == 1:
            raise UsageError(
                f"{_SOCKET} is {address!r}, expected an absolute path or '@' and a name: unset it "
                f"outside a service manager."
            )
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Self:
        return cls(environment.get(_SOCKET))

    def ready(self, status: str) -> bool:
        """Report the service as started, with this process as its main process."""
        return self.send(READY="1", MAINPID=str(os.getpid()), STATUS=status)

    def status(self, text: str) -> bool:
        return self.send(STATUS=text)

    def feed(self) -> bool:
        """Reset the service manager's watchdog timer."""
        return self.send(WATCHDOG="1")

    def stopping(self, status: str) -> bool:
        return self.send(STOPPING="1", STATUS=status)

    def send(self, **assignments: str) -> bool:
        """Send assignments in one datagram; return whether it was sent."""
        if self._socket is None:
            return False
        # Each line is one assignment, so a value must not contain newlines.
        lines = [f"{name}={' '.join(text.splitlines())}" for name, text in assignments.items()]
        data = "\n".join(lines).encode(errors="replace")
        try:
            self._socket.sendto(data, socket.MSG_NOSIGNAL, self._address)
        except OSError as error:
            if self._last_error != str(error):
                _LOG.warning("cannot notify the service manager", reason=str(error))
            self._last_error = str(error)
            return False
        self._last_error = ""
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
    """Return the watchdog timeout in seconds, or None if the service manager does not watch `pid`.

    `pid` defaults to this process; the rules are those of sd_watchdog_enabled(3).

    Raises:
        UsageError: WATCHDOG_USEC or WATCHDOG_PID is malformed.
    """
    text = environment.get(_WATCHDOG_USEC)
    if text is None:
        return None
    watched = environment.get(_WATCHDOG_PID)
    if watched is not None and _number(_WATCHDOG_PID, watched) != (os.getpid() if pid is None else pid):
        return None
    return _number(_WATCHDOG_USEC, text) / _USEC_PER_SECOND


def _number(name: str, text: str) -> int:
    # Check the length first: int() raises for thousands of digits.
    valid = _NUMBER.fullmatch(text) and len(text) <= len(str(_USEC_INFINITY))
    number = int(text) if valid else 0
    if not 0 < number < _USEC_INFINITY:
        raise UsageError(
            f"{name} is {text!r}, expected a whole number above 0: unset it outside a service manager."
        )
    return number
