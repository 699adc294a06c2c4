# SPDX-License-Identifier: GPL-2.0-only
"""The host's side of a lab run: boots the guest and owns what outlives it.

That is ledger, journal, exporter and verdict.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Final

from soak import run_directory
from soak.lab.display import Display
from soak.lab.host.boot_error import BootError
from soak.lab.host.console import begin_console
from soak.lab.host.end_judge import EndJudge
from soak.lab.host.ending import Ending
from soak.lab.host.guest_commands import GuestCommands
from soak.lab.host.guest_monitor import GuestMonitor
from soak.lab.host.guest_state import GuestState
from soak.lab.host.machine import Machine
from soak.lab.host.pumps import GuestIntake, GuestPumps
from soak.lab.host.record import RunRecord
from soak.lab.host.scratch import Scratch
from soak.lab.host.timing import DEFAULT_TIMING, Timing
from soak.lab.host.vm import VirtualMachine
from soak.lab.protocol import Order
from soak.lab.request import LabRequest, namespaces
from soak.ledger.view import LedgerView
from soak.supervisor.control import ControlSocket, ending_signals
from soak.supervisor.hooks.exporter import ExporterProcess

if TYPE_CHECKING:
    from soak.lab.progress import Progress
    from soak.verdict import Verdict

_SIGNAL_SECONDS: Final = 0.01


class LabRun:
    """One boot of the lab and the soak in it."""

    def __init__(
        self, request: LabRequest, accelerator: str, progress: Progress, timing: Timing = DEFAULT_TIMING
    ) -> None:
        self._request = request
        self._accelerator = accelerator
        self._progress = progress
        self._timing = timing
        self._guest = GuestState()
        self._ending = Ending()
        self._commands: GuestCommands | None = None

    @property
    def interrupted(self) -> bool:
        """Whether a signal or request ended the run early."""
        return self._ending.interrupted.is_set()

    async def run(self) -> Verdict:
        """Boot, soak, and judge.

        Raises:
            BootError: the guest did not come up.
            UsageError: the exporter cannot listen.
        """
        request, directory = self._request, self._request.directory
        loop = asyncio.get_running_loop()
        for number in ending_signals():
            loop.add_signal_handler(number, self._interrupt)
        with contextlib.ExitStack() as stack:
            record = stack.enter_context(RunRecord.open(request, self._accelerator, self._progress))
            with record.reader() as reader:
                begun = LedgerView(reader, time.time_ns()).begun
            display = Display(self._progress, request, begun)
            exporter = stack.enter_context(contextlib.closing(ExporterProcess(directory, request.listen)))
            control = stack.enter_context(ControlSocket(directory))
            self._progress.say(f"Metrics at http://{exporter.address}/metrics")
            record.event("exporter.started", address=exporter.address)
            with Scratch(directory, request.layers, self._order(), keep=request.keep) as scratch:
                # The loop handles a signal that came meanwhile; after sleep(0) it would not have yet.
                await asyncio.sleep(_SIGNAL_SECONDS)
                if not self._ending.requested:
                    await self._boot_and_watch(scratch, record, control, display)
            verdict = record.conclude(lost=self._guest.lost, finished=self._guest.exit_code == 0)
            self._progress.say("")
            await self._linger()
            return verdict

    def _order(self) -> Order:
        request = self._request
        return Order(
            run_id=request.run_id,
            config=request.config.to_table(),
            filesystem=request.filesystem,
            spaces=namespaces(request.config),
            deadline_seconds=request.config.run.duration + self._timing.guest_grace_seconds,
            mirror=request.mirror,
            resumed=request.resumed,
            faults=[list(fault) for fault in request.faults],
            program=list(request.program),
        )

    async def _boot_and_watch(
        self, scratch: Scratch, record: RunRecord, control: ControlSocket, display: Display
    ) -> None:
        request, timing, guest, ending = self._request, self._timing, self._guest, self._ending
        console = request.directory / run_directory.CONSOLE
        begin_console(console)
        machine = Machine.of_boot(request, self._accelerator, scratch, record.ledger.layout.size)
        vm = VirtualMachine(machine, timing.command_seconds)
        judge = EndJudge(request.kernel.name, console, guest, record, ending)
        commands = GuestCommands(control, vm.control, guest, ending, self._progress)
        self._commands = commands
        monitor = GuestMonitor(
            request,
            timing,
            vm,
            guest,
            record=record,
            commands=commands,
            ending=ending,
            judge=judge,
            display=display,
        )
        intake = GuestIntake(request.directory, guest, record, commands, ending=ending, display=display)
        try:
            await self._start(vm, record)
            async with GuestPumps(vm, record, intake) as pumps:
                await monitor.watch()
                if vm.ended:
                    await pumps.drain(timing.drain_seconds)
                await judge.judge(vm)
        finally:
            commands.close()
            await vm.stop()

    async def _start(self, vm: VirtualMachine, record: RunRecord) -> None:
        try:
            await vm.start()
        except OSError as error:
            raise BootError(str(error), started=False) from None
        record.booted()
        request = self._request
        record.event("lab.started", kernel=request.kernel.name, qemu_pid=vm.pid, resumed=request.resumed)

    def _interrupt(self) -> None:
        """Handle a signal, before the boot or after."""
        if self._commands is None:
            self._ending.request()
        else:
            self._commands.interrupt()

    async def _linger(self) -> None:
        """Serve a run that ended badly for a while longer: the last scrape came before its end."""
        if self._ending.requested or self._guest.exit_code == 0:
            return
        seconds = self._request.linger_seconds
        self._progress.say(f"The run ended badly: metrics stay up for {seconds:g} s more.")
        deadline = time.monotonic() + seconds
        while not self._ending.requested and (left := deadline - time.monotonic()) > 0:
            if self._commands is not None:
                self._commands.poll()
            with contextlib.suppress(TimeoutError):
                wait = min(left, self._timing.beat_seconds)
                await asyncio.wait_for(self._ending.interrupted.wait(), wait)
