# SPDX-License-Identifier: GPL-2.0-only
"""Requests to a running lab, forwarded to the supervisor in its guest."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from soak.lab import protocol
from soak.lab.guest.faults import FAULTS
from soak.supervisor.control import PLANT, STOP, WORDS

if TYPE_CHECKING:
    from soak.lab.host.ending import Ending
    from soak.lab.host.guest_state import GuestState
    from soak.lab.host.port import Port
    from soak.lab.progress import Progress
    from soak.supervisor.control import ControlSocket, Request

_NOT_READY = "not yet: the guest is not ready"
# To which `soak.supervisor.control.ask` reports that the run ended first.
_OVER = ""


class GuestCommands:
    """Forwards signals and requests of the control socket to the guest, and returns its answers."""

    def __init__(
        self, control: ControlSocket, port: Port, guest: GuestState, ending: Ending, progress: Progress
    ) -> None:
        """`control` receives the requests; `port` leads to the guest."""
        self._control = control
        self._port = port
        self._guest = guest
        self._ending = ending
        self._progress = progress
        self._asked: deque[Request] = deque()
        self._closed = False

    def interrupt(self) -> None:
        """End the soak in order at the first call, at once at the second."""
        if self._ending.request() and self._guest.ready and not self._closed:
            self._progress.say("Stopping: the soak ends in order; once more ends it at once.")
            self.stop()

    def stop(self) -> None:
        self._port.send(protocol.STOP)

    def poll(self) -> None:
        """Handle the requests since the last call; never blocks."""
        for request in self._control.poll():
            self._take(request)

    def answer(self, sentence: str) -> None:
        """Answer the oldest pending request."""
        if self._asked:
            self._asked.popleft().answer(sentence)

    def close(self) -> None:
        """Dismiss pending requests: the guest will not answer them."""
        self._closed = True
        while self._asked:
            self._asked.popleft().answer(_OVER)

    def _take(self, request: Request) -> None:
        word = request.word
        if word == STOP:
            request.answer("stopping")
            self.interrupt()
        elif self._closed:
            request.answer(_OVER)
        elif word.startswith(PLANT):
            request.answer(self._plant(word.removeprefix(PLANT)))
        elif word not in WORDS:
            request.answer("")
        elif self._guest.ready:
            self._asked.append(request)
            self._port.send(word)
        else:
            request.answer(_NOT_READY)

    def _plant(self, fault: str) -> str:
        """Make the guest plant a fault, and return the answer to the request."""
        if fault not in FAULTS:
            return f"unknown fault {fault!r}: choose from {', '.join(sorted(FAULTS))}"
        if not self._guest.ready:
            return _NOT_READY
        self._port.send(f"{protocol.PLANT}{fault}")
        return f"the guest plants {fault}"
