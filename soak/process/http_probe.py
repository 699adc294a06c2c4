# SPDX-License-Identifier: GPL-2.0-only
"""Asks whether the exporter still answers, without ever holding up whoever asks."""

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
# Any HTTP answer shows that the server moves, be it one that asks for a password.
_ANSWER: Final = b"HTTP/"
_REQUEST: Final = b"GET /-/healthy HTTP/1.0\r\nHost: exporter\r\nConnection: close\r\n\r\n"
_CHUNK: Final = 4096
_UNDER_WAY: Final = frozenset({0, errno.EINPROGRESS})


class ExporterProbe:
    """One question at a time over a socket that does not block, moved on by `poll`."""

    def __init__(
        self,
        host: str,
        port: int,
        *,
        ask_seconds: float = ASK_SECONDS,
        answer_seconds: float = ANSWER_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Ask every `ask_seconds`; what has not been answered in `answer_seconds` is given up.

        The name of the host is looked up here, once, because that may take long. An address that
        stands for all of a machine's (0.0.0.0, ::) is asked on loopback, as Linux connects it.

        Raises:
            UsageError: the name of the host is not known.
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
        self.complaint = ""

    def poll(self) -> int:
        """Do what can be done at once, and return how many questions have been answered so far."""
        now = self._clock()
        try:
            if self._socket is None:
                if now >= self._next:
                    self._ask(now)
            elif now - self._asked >= self._answer_seconds:
                self._end(f"it gave no answer within {self._answer_seconds:g} s")
            else:
                self._go_on(self._socket)
        except BlockingIOError:
            pass  # nothing more can be done at once: the next poll goes on here
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

    def _go_on(self, connection: socket.socket) -> None:
        # While it is still connecting this is BlockingIOError; where it could not, the reason.
        while self._unsent:
            self._unsent = self._unsent[connection.send(self._unsent, socket.MSG_NOSIGNAL) :]
        # Read to the end, so that the server does not see its answer thrown away.
        while data := connection.recv(_CHUNK):
            self._received = (self._received + data)[:_CHUNK]
        if self._received.startswith(_ANSWER):
            self.answers += 1
            self._end("")
        else:
            self._end("the answer is no HTTP")

    def _end(self, complaint: str) -> None:
        self.complaint = complaint
        self.close()


def _look_up(host: str, port: int) -> tuple[socket.AddressFamily, Any]:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UsageError(
            f"The exporter cannot be watched at {host} port {port}: {error.strerror}."
        ) from error
    return family, address
