# SPDX-License-Identifier: GPL-2.0-only
"""What is asked of a run while it goes on: its supervisor is in the guest, so most of it goes there."""

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
    """Sends the guest what signals and the control socket ask for, and passes its answers back."""

    def __init__(
        self, control: ControlSocket, port: Port, guest: GuestState, ending: Ending, progress: Progress
    ) -> None:
        """Take the socket on which a run is asked, and the port through which its guest is."""
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
        """Take up what the control socket was asked since the last call; never blocks."""
        for request in self._control.poll():
            self._take(request)

    def answer(self, sentence: str) -> None:
        """Pass on the guest's answer to the oldest request that waits for one."""
        if self._asked:
            self._asked.popleft().answer(sentence)

    def close(self) -> None:
        """Dismiss those whose answer the guest will not send any more."""
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
        """Have the guest plant a fault, once its workers are at work."""
        if fault not in FAULTS:
            return f"unknown fault {fault!r}: choose from {', '.join(sorted(FAULTS))}"
        if not self._guest.ready:
            return _NOT_READY
        self._port.send(f"{protocol.PLANT}{fault}")
        return f"the guest plants {fault}"
