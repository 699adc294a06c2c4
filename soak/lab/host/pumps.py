# SPDX-License-Identifier: GPL-2.0-only
"""Receives what the guest sends over its ports."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Self

from soak import run_directory
from soak.journal.writer import Level
from soak.lab import protocol
from soak.lab.host.guest_messages import GuestListener
from soak.model.vocabulary import RunState

if TYPE_CHECKING:
    from pathlib import Path

    from soak.lab.display import Display
    from soak.lab.host.ending import Ending
    from soak.lab.host.guest_commands import GuestCommands
    from soak.lab.host.guest_state import GuestState
    from soak.lab.host.record import RunRecord
    from soak.lab.host.vm import VirtualMachine


class GuestIntake:
    """Applies the guest's messages to the record of the run and to the state of the guest."""

    def __init__(
        self,
        directory: Path,
        guest: GuestState,
        record: RunRecord,
        commands: GuestCommands,
        *,
        ending: Ending,
        display: Display,
    ) -> None:
        self._directory = directory
        self._guest = guest
        self._record = record
        self._commands = commands
        self._ending = ending
        self._display = display

    def take_line(self, line: dict[str, Any]) -> None:
        """Process a line of the guest's journal."""
        guest = self._guest
        self._record.guest_line(line)
        if line["event"] == "run.started" and not guest.soaking:
            guest.soaking = True
            run_directory.note_begun(self._directory)
        guest.over |= line["event"] == "run.ended"
        guest.boot_id = line["boot_id"]

    def take_message(self, message: dict[str, Any]) -> None:
        """Process a message of the control port."""
        guest = self._guest
        match message["message"]:
            case protocol.BOOTED:
                guest.booted = True
                self._display.answered(message["release"])
            case protocol.READY:
                guest.ready = True
                self._record.set_state(RunState.RUNNING)
                if self._ending.requested:
                    self._commands.stop()
            case protocol.ALIVE:
                guest.alive += 1
            case protocol.FAULT:
                self._record.event("fault.planted", Level.WARNING, fault=message["name"])
            case protocol.UNPLANTED:
                why = f"the fault {message['name']} could not be planted: {message['summary']}"
                self._record.harness_failed(why, ended=False)
            case protocol.FAILED:
                guest.failure = f"cannot be used: {message['summary']}"
            case protocol.ANSWER:
                self._commands.answer(message["answer"])
            case protocol.EXITED:
                guest.exit_code = message["code"]


class GuestPumps:
    """Reads both ports of a running machine until it ends; `close` ends the reading."""

    def __init__(self, vm: VirtualMachine, record: RunRecord, intake: GuestIntake) -> None:
        listener = GuestListener(record.event, intake.take_line, intake.take_message)
        self._tasks = [
            asyncio.create_task(listener.read_journal(vm.journal)),
            asyncio.create_task(listener.read_control(vm.control)),
        ]

    async def drain(self, seconds: float) -> None:
        """Read what the guest sent before its end, for at most `seconds`."""
        await asyncio.wait(self._tasks, timeout=seconds)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
