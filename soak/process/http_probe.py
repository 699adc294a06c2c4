# SPDX-License-Identifier: GPL-2.0-only
"""Health checks of the exporter over HTTP, without blocking the caller."""

from __future__ import annotations

import errno
import os
import socket
import time
from typing import TYPE_CHECKING, Any, Final

from soak.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

ASK_SECONDS: Final = 2.0
ANSWER_SECONDS: Final = 10.0
# Any HTTP response shows that the server runs, including 401.
_ANSWER: Final = b"HTTP/"
_REQUEST: Final = b"GET /-/healthy HTTP/1.0\r\nHost: exporter\r\nConnection: close\r\n\r\n"
_CHUNK: Final = 4096
_UNDER_WAY: Final = frozenset({0, errno.EINPROGRESS})


class ExporterProbe:
    """At most one request in flight, on a nonblocking socket that `poll` drives."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        ask_seconds: float = ASK_SECONDS,
        answer_seconds: float = ANSWER_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Send a request every `ask_seconds`; abandon one after `answer_seconds` without a response.

        The constructor resolves the host name, once, because that may block. Linux connects a wildcard
        address (0.0.0.0, ::) to loopback.

        Raises:
            UsageError: the host name cannot be resolved.
        """
        self._family, self._address = _look_up(host, port)
        self._ask_seconds = ask_seconds
        self._answer_seconds = answer_seconds
        self._clock = clock
        self._next = clock()
        self._socket: socket.socket | None = None
        self._unsent = b""
        self._received = b""
        self.answers = 0
        self.problem = ""

    def poll(self) -> int:
        """Advance the request without blocking; return the number of responses so far."""
        now = self._clock()
        try:
            if self._socket is None:
                if now >= self._next:
                    self._ask(now)
            elif now - self._asked >= self._answer_seconds:
                self._end(f"no response within {self._answer_seconds:g} s")
            else:
                self._advance(self._socket)
        except BlockingIOError:
            pass  # the socket would block: the next poll continues
        except OSError as error:
            self._end(error.strerror or str(error))
        return self.answers

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _ask(self, now: float) -> None:
        self._next = now + self._ask_seconds
        self._asked = now
        self._unsent, self._received = _REQUEST, b""
        self._socket = socket.socket(self._family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        number = self._socket.connect_ex(self._address)
        if number not in _UNDER_WAY:
            raise OSError(number, os.strerror(number))

    def _advance(self, connection: socket.socket) -> None:
        # send() raises BlockingIOError while connecting, and the error of a failed connect.
        while self._unsent:
            self._unsent = self._unsent[connection.send(self._unsent, socket.MSG_NOSIGNAL) :]
        # Read to the end: closing a socket with unread data would reset the connection.
        while data := connection.recv(_CHUNK):
            self._received = (self._received + data)[:_CHUNK]
        if self._received.startswith(_ANSWER):
            self.answers += 1
            self._end("")
        else:
            self._end("the response is not HTTP")

    def _end(self, problem: str) -> None:
        self.problem = problem
        self.close()


def _look_up(host: str, port: int) -> tuple[socket.AddressFamily, Any]:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UsageError(
            f"Cannot resolve the exporter's address {host} port {port}: {error.strerror}."
        ) from error
    return family, address
