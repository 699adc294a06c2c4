# SPDX-License-Identifier: GPL-2.0-only
"""Watching a booted guest: signs of life, its clock, and the deadlines of its run."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from soak.journal.writer import Level
from soak.lab.host.boot_error import STOOD_STILL
from soak.lab.host.guest_clock import GuestClock
from soak.lab.host.signs_of_life import Life, SignsOfLife
from soak.ledger.schema import SUPERVISOR

if TYPE_CHECKING:
    from soak.lab.display import Display
    from soak.lab.host.end_judge import EndJudge
    from soak.lab.host.ending import Ending
    from soak.lab.host.guest_commands import GuestCommands
    from soak.lab.host.guest_state import GuestState
    from soak.lab.host.record import RunRecord
    from soak.lab.host.timing import Timing
    from soak.lab.host.vm import VirtualMachine
    from soak.lab.request import LabRequest
    from soak.ledger.reader import LedgerReader


class GuestMonitor:
    """Checks the guest at each beat, until QEMU ends or a deadline passes."""

    def __init__(
        self,
        request: LabRequest,
        timing: Timing,
        vm: VirtualMachine,
        guest: GuestState,
        *,
        record: RunRecord,
        commands: GuestCommands,
        ending: Ending,
        judge: EndJudge,
        display: Display,
    ) -> None:
        self._request = request
        self._timing = timing
        self._vm = vm
        self._guest = guest
        self._record = record
        self._commands = commands
        self._ending = ending
        self._judge = judge
        self._display = display
        self._supervisor = record.ledger.block(SUPERVISOR)
        self._clock = GuestClock(timing.clock_spans)
        self._signs = SignsOfLife(timing)
        self._heartbeats = 0
        self._longest_seconds = request.boot_seconds + request.config.run.duration + timing.beside_seconds
        # How many beats there were, and how many since the guest should end.
        self._beats = 0.0
        self._beats_to_end = 0.0

    async def watch(self) -> None:
        """Watch until QEMU has ended or may be terminated.

        Raises:
            BootError: the guest does not come up.
        """
        with self._record.reader() as reader:
            while not self._vm.ended:
                beat = await self._pause()
                self._keep_up(reader)
                self._commands.poll()
                self._end_when_covered()
                if self._may_end() or self._is_overdue(beat):
                    return
                await self._check_signs(beat)
                if self._guest.lost or self._guest.failure:
                    return

    async def _pause(self) -> float:
        """Let a beat pass, and return how much of it the guest had a processor for."""
        await asyncio.sleep(self._timing.beat_seconds)
        self._record.beat()
        return self._vm.share()

    def _keep_up(self, reader: LedgerReader) -> None:
        """Write waiting journal lines, bound the logs, and show the current state."""
        self._record.retry()
        self._vm.keep_short()
        first = self._display.show(reader, booted=self._guest.booted, ready=self._guest.ready)
        if first is not None:
            self._record.event("lab.soaking", seconds_to_first_operation=first)

    def _end_when_covered(self) -> None:
        """End the soak where it was asked to end as soon as its verdict needs nothing more."""
        ending = self._ending
        if (
            self._request.until_covered
            and not (ending.covered or ending.requested or ending.abandoned)
            and self._guest.soaking
            and not self._record.unmet()
        ):
            ending.covered = True
            self._record.event("lab.covered", seconds=round(self._display.elapsed, 1))
            self._display.covered()
            self._commands.stop()

    def _may_end(self) -> bool:
        """Return whether to terminate QEMU now: a guest that is not ready has no soak to end."""
        return self._ending.at_once or (self._ending.requested and not self._guest.ready)

    def _is_overdue(self, beat: float) -> bool:
        """Return whether a deadline of the run has passed, and journal which."""
        timing, exited = self._timing, self._guest.exit_code is not None
        self._beats += beat
        if self._ending.requested or self._ending.covered or exited:
            self._beats_to_end += beat
        if self._beats_to_end > (timing.off_beats if exited else timing.end_beats):
            self._give_up_waiting(exited=exited)
            return True
        if self._beats * timing.beat_seconds > self._longest_seconds:
            self._record.harness_failed("the run did not end within its time limit")
            return True
        return False

    def _give_up_waiting(self, *, exited: bool) -> None:
        if not exited:
            self._record.harness_failed("guest did not stop within its time limit")
            return
        # Turning the machine off waits for every device, also for one that its driver never let go.
        self._record.event(
            "guest.left-on",
            Level.WARNING,
            summary="guest did not power off after its soak; terminating QEMU",
        )

    async def _check_signs(self, beat: float) -> None:
        """Look for signs of life: of the guest's first process, and of its supervisor."""
        guest = self._guest
        if not guest.booted:
            if self._beats * self._timing.beat_seconds > self._request.boot_seconds:
                raise self._judge.boot_failed("never answered")
            if self._vm.stands_still():
                raise self._judge.boot_failed(STOOD_STILL, crashed=True)
            return
        heartbeats = self._supervisor.get("heartbeats")
        if heartbeats != self._heartbeats:
            self._heartbeats = heartbeats
            self._record.guest_beat()
        self._compare_clocks(heartbeats)
        life = self._signs.look(guest.alive, heartbeats, beat, ready=guest.ready)
        if life is Life.SILENT:
            await self._handle_silence()
        elif life is Life.STUCK and guest.ready and guest.exit_code is None:
            self._judge.abandon("the supervisor in the guest stopped, though the guest is alive")

    def _compare_clocks(self, heartbeats: int) -> None:
        guest_ns = self._supervisor.get("heartbeat_ns")
        ratio = self._clock.look(heartbeats, guest_ns, time.monotonic())
        if ratio is None or self._guest.clock_wrong or not self._guest.soaking:
            return
        self._guest.clock_wrong = True
        self._record.event(
            "guest.clock-wrong",
            Level.ERROR,
            ratio=round(ratio, 2),
            guest_boot_id=self._guest.boot_id,
            summary=f"the guest's clock runs {ratio:.2f} times as fast as the host's: no duration that "
            f"it measures is right",
        )

    async def _handle_silence(self) -> None:
        """Find out why the guest sends no sign of life: paused, panicking, or dead."""
        if not await self._vm.running():
            self._judge.abandon("QEMU does not run the guest: it was paused or stopped")
            return
        self._record.event("guest.silent", Level.WARNING, summary="the guest is silent: sending an NMI")
        await self._vm.inject_nmi()
        beats = 0.0
        while beats < self._timing.nmi_beats and not self._vm.ended:
            beats += await self._pause()
            if self._ending.at_once and not self._vm.ended:
                return
        how = "panicked at an NMI" if self._vm.ended else "did not even answer an NMI"
        self._judge.lose(f"the guest went silent and {how}")
