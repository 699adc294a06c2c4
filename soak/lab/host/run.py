# SPDX-License-Identifier: GPL-2.0-only
"""The host's side of a lab run: it boots the guest, writes the journal, and sees when the guest dies.

Everything that outlives the guest is here: ledger, journal, exporter, verdict.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import tomli_w

from soak import run_directory
from soak.journal.writer import OWN_EVENTS, FileJournal, Level, read_journal
from soak.lab import protocol
from soak.lab.display import Display
from soak.lab.guest.faults import FAULTS
from soak.lab.host.boot_error import STOOD_STILL, BootError
from soak.lab.host.console import EVIDENCE_LINES, SHOWN_LINES, begin_console, console_tail
from soak.lab.host.guest_clock import GuestClock
from soak.lab.host.guest_messages import GuestListener
from soak.lab.host.guest_state import GuestState
from soak.lab.host.machine import Machine
from soak.lab.host.scratch import Scratch
from soak.lab.host.signs_of_life import BEAT_SECONDS, Life, SignsOfLife
from soak.lab.host.vm import VirtualMachine, signal_name
from soak.lab.progress import EventLines, Progress
from soak.lab.protocol import Order
from soak.lab.request import LabRequest, namespaces
from soak.ledger.reader import LedgerReader
from soak.ledger.schema import HOST, SUPERVISOR
from soak.ledger.totals import completed_operations, judged_trials
from soak.ledger.view import LedgerView
from soak.ledger.writer import Ledger
from soak.model.vocabulary import RunState, VerdictWord
from soak.supervisor.control import PLANT, STOP, WORDS, ControlSocket, ending_signals
from soak.supervisor.hooks.exporter import ExporterProcess
from soak.verdict import Judge, Verdict, lost_machine_event
from soak.workload.plan import make_plan

if TYPE_CHECKING:
    from soak.supervisor.control import Request

# Deadlines count beats, and each for what the guest had of a processor (see SignsOfLife).
_NMI_BEATS: Final = 60
_END_BEATS: Final = 360
_OFF_BEATS: Final = 60
_GUEST_GRACE_SECONDS: Final = 300.0
# What a boot takes beside the soak itself, for a guest that prepares, ends and dies as slowly as it may.
_BESIDE_SECONDS: Final = 1200.0


class LabRun:
    """One boot of the lab and the soak in it."""

    def __init__(self, request: LabRequest, accelerator: str, progress: Progress) -> None:
        self._request = request
        self._accelerator = accelerator
        self._progress = progress
        self._plan = make_plan(request.config)
        self._judge = Judge(request.strict)
        self._guest = GuestState()
        self._clock = GuestClock()
        self._signs = SignsOfLife()
        self._heartbeats = 0
        self._longest_seconds = request.boot_seconds + request.config.run.duration + _BESIDE_SECONDS
        self._stopping = 0
        self._covered = False
        self._interrupted = asyncio.Event()
        self._console = request.directory / run_directory.CONSOLE
        self._vm: VirtualMachine | None = None
        self._events = EventLines(progress)
        self._asked: deque[Request] = deque()

    @property
    def interrupted(self) -> bool:
        """Whether somebody ended the run before its time."""
        return self._interrupted.is_set()

    async def run(self) -> Verdict:
        """Boot, soak, and judge.

        Raises:
            BootError: the guest did not come up.
            UsageError: the exporter cannot listen.
        """
        loop = asyncio.get_running_loop()
        for number in ending_signals():
            loop.add_signal_handler(number, self._interrupt)
        self._open_ledger()
        directory, order = self._request.directory, self._order()
        with contextlib.ExitStack() as stack:
            self._journal = stack.enter_context(
                FileJournal(directory / run_directory.JOURNAL, on_line=self._hear_line)
            )
            exporter = stack.enter_context(
                contextlib.closing(ExporterProcess(directory, self._request.listen))
            )
            self._control = stack.enter_context(ControlSocket(directory))
            self._progress.say(f"Metrics at http://{exporter.address}/metrics")
            self._journal_event("exporter.started", address=exporter.address)
            with Scratch(directory, self._request.layers, order, keep=self._request.keep) as scratch:
                # Give a signal that came meanwhile its turn.
                await asyncio.sleep(0)
                if not self._stopping:
                    await self._boot_and_watch(scratch)
            verdict = self._conclude()
            await self._linger()
            return verdict

    def _open_ledger(self) -> None:
        """Make the ledger of a new run, or take that of the run that goes on."""
        request = self._request
        path = self._ledger_path = request.directory / run_directory.LEDGER
        facts = {"run_id": request.run_id, "filesystem": request.filesystem}
        layout = self._plan.layout(facts, lab=True)
        if request.resumed:
            self._ledger = Ledger.reopen(path, layout)
            for event in read_journal(request.directory / run_directory.JOURNAL):
                self._judge.see(event)
        else:
            (request.directory / run_directory.CONFIG).write_text(
                tomli_w.dumps(request.config.to_table())
            )
            self._ledger = Ledger.create(path, layout)
        with LedgerReader.open(path, layout=layout) as reader:
            begun = LedgerView(reader, time.time_ns()).begun
        self._display = Display(self._progress, request, begun)
        self._host = self._ledger.block(HOST)
        self._host.set("pid", os.getpid())
        self._host.set_text("accelerator", self._accelerator)
        self._host.set_word("state", RunState.PREPARING)
        self._host.set_word("verdict", VerdictWord.UNKNOWN)
        self._beat_host()

    def _order(self) -> Order:
        table = self._request.config.to_table()
        return Order(
            run_id=self._request.run_id,
            config=table,
            filesystem=self._request.filesystem,
            spaces=namespaces(self._request.config),
            deadline_seconds=self._request.config.run.duration + _GUEST_GRACE_SECONDS,
            mirror=self._request.mirror,
            resumed=self._request.resumed,
            faults=[list(fault) for fault in self._request.faults],
            program=list(self._request.program),
        )

    async def _boot_and_watch(self, scratch: Scratch) -> None:
        request = self._request
        begin_console(self._console)
        machine = Machine.of_boot(request, self._accelerator, scratch, self._ledger.layout.size)
        vm = self._vm = VirtualMachine(machine)
        tasks: list[asyncio.Task[None]] = []
        try:
            try:
                await vm.start()
            except OSError as error:
                raise BootError(str(error), started=False) from None
            self._host.add("boots", 1)
            self._journal_event(
                "lab.started", kernel=request.kernel.name, qemu_pid=vm.pid, resumed=request.resumed
            )
            listener = GuestListener(self._journal_event, self._append, partial(self._hear, vm))
            tasks = [
                asyncio.create_task(listener.read_journal(vm.journal)),
                asyncio.create_task(listener.read_control(vm.control)),
            ]
            await self._watch(vm)
            await self._drain(tasks)
            await self._judge_end(vm)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await vm.stop()

    def _interrupt(self) -> None:
        """End in order at the first signal, at once at the second."""
        self._stopping += 1
        self._interrupted.set()
        if self._stopping == 1 and self._guest.ready and self._vm is not None:
            self._progress.say("Stopping: the soak ends in order; once more ends it at once.")
            self._vm.control.send(protocol.STOP)

    def _listen(self, vm: VirtualMachine) -> None:
        """Pass on what somebody says to this run: its supervisor is in the guest."""
        for request in self._control.poll():
            if request.word == STOP:
                request.answer("stopping")
                self._interrupt()
            elif request.word.startswith(PLANT):
                request.answer(self._plant(vm, request.word.removeprefix(PLANT)))
            elif request.word in WORDS and self._guest.ready:
                self._asked.append(request)
                vm.control.send(request.word)
            else:
                request.answer("not yet: the guest is not ready" if request.word in WORDS else "")

    def _plant(self, vm: VirtualMachine, fault: str) -> str:
        """Have the guest plant a fault, once its workers are at work."""
        if fault not in FAULTS:
            return f"unknown fault {fault!r}: choose from {', '.join(sorted(FAULTS))}"
        if not self._guest.ready:
            return "not yet: the guest is not ready"
        vm.control.send(f"{protocol.PLANT}{fault}")
        return f"the guest plants {fault}"

    def _end_when_covered(self, vm: VirtualMachine) -> None:
        """End the soak where it was asked to end as soon as its verdict needs nothing more."""
        if (
            self._request.until_covered
            and not (self._covered or self._stopping)
            and self._guest.soaking
            and not self._judge.lacking()
        ):
            self._covered = True
            self._journal_event("lab.covered", seconds=round(self._display.elapsed, 1))
            self._progress.say("Everything promised was covered: the soak ends.")
            vm.control.send(protocol.STOP)

    async def _watch(self, vm: VirtualMachine) -> None:
        """Beat until QEMU has ended, whoever ended it."""
        beats = ending = 0.0
        with LedgerReader.open(self._ledger_path, layout=self._ledger.layout) as reader:
            while not vm.ended:
                beat = await self._pause(vm)
                beats += beat
                self._journal.retry()
                self._host.set("journal_errors", self._journal.errors)
                vm.keep_short()
                guest = self._guest
                first = self._display.show(reader, booted=guest.booted, ready=guest.ready)
                if first is not None:
                    self._journal_event("lab.soaking", seconds_to_first_operation=first)
                self._listen(vm)
                self._end_when_covered(vm)
                if self._stopping and (self._stopping > 1 or not self._guest.ready):
                    return
                if self._stopping or self._covered or self._guest.exit_code is not None:
                    ending += beat
                if ending > (_END_BEATS if self._guest.exit_code is None else _OFF_BEATS):
                    self._give_up_waiting()
                    return
                if beats * BEAT_SECONDS > self._longest_seconds:
                    self._harness_failed("the run did not end in the time that it had")
                    return
                await self._check_signs(vm, beat, beats)
                if self._guest.lost or self._guest.failure:
                    return

    def _give_up_waiting(self) -> None:
        if self._guest.exit_code is None:
            self._harness_failed("guest did not end within the time that it has to stop")
            return
        # Turning the machine off waits for every device, also for one that its driver never let go.
        self._journal_event(
            "guest.left-on",
            Level.WARNING,
            summary="guest did not power off after its soak; terminating QEMU",
        )

    async def _pause(self, vm: VirtualMachine) -> float:
        """Let half a second pass, and return how much of it the guest had a processor for."""
        await asyncio.sleep(BEAT_SECONDS)
        self._beat_host()
        return vm.share()

    async def _check_signs(self, vm: VirtualMachine, beat: float, beats: float) -> None:
        """Look for signs of life: of the guest's first process, and of its supervisor."""
        guest = self._guest
        if not guest.booted:
            if beats * BEAT_SECONDS > self._request.boot_seconds:
                raise BootError(self._boot_failure("never answered"))
            if vm.stands_still():
                raise BootError(self._boot_failure(STOOD_STILL), crashed=True)
            return
        heartbeats = self._ledger.block(SUPERVISOR).get("heartbeats")
        if heartbeats != self._heartbeats:
            self._heartbeats = heartbeats
            self._host.set("guest_heartbeat_realtime_ns", time.time_ns())
        self._compare_clocks(heartbeats)
        life = self._signs.look(guest.alive, heartbeats, beat, ready=guest.ready)
        if life is Life.SILENT:
            await self._handle_silence(vm)
        elif life is Life.STUCK and guest.ready and guest.exit_code is None:
            self._harness_failed("the supervisor in the guest stopped, though the guest is alive")
            self._stopping = 2

    def _compare_clocks(self, heartbeats: int) -> None:
        guest_ns = self._ledger.block(SUPERVISOR).get("heartbeat_ns")
        ratio = self._clock.look(heartbeats, guest_ns, time.monotonic())
        if ratio is None or self._guest.clock_wrong or not self._guest.soaking:
            return
        self._guest.clock_wrong = True
        self._journal_event(
            "guest.clock-wrong",
            Level.ERROR,
            ratio=round(ratio, 2),
            guest_boot_id=self._guest.boot_id,
            summary=f"the guest's clock runs {ratio:.2f} times as fast as the host's: no duration that "
            f"it measures is right",
        )

    async def _handle_silence(self, vm: VirtualMachine) -> None:
        """Decide why nothing comes from the guest any more."""
        if not await vm.running():
            self._harness_failed("QEMU does not run the guest: somebody paused or stopped it")
            self._stopping = 2
            return
        self._journal_event("guest.silent", Level.WARNING, summary="the guest is silent: sending an NMI")
        await vm.inject_nmi()
        beats = 0.0
        while beats < _NMI_BEATS and not vm.ended:
            beats += await self._pause(vm)
        how = "panicked at an NMI" if vm.ended else "did not even answer an NMI"
        self._lose(f"the guest went silent and {how}")

    async def _drain(self, tasks: list[asyncio.Task[None]]) -> None:
        """Take in what the guest had sent before its end: the ports end with QEMU."""
        await asyncio.wait(tasks, timeout=5.0)

    async def _judge_end(self, vm: VirtualMachine) -> None:
        """Say why the machine ended, where that was not as it should be."""
        guest = self._guest
        if guest.failure is not None:
            raise BootError(self._boot_failure(guest.failure))
        if guest.lost or self._stopping > 1 or not vm.ended:
            return
        status = await vm.wait()
        if status < 0:
            self._harness_failed(f"QEMU was ended by {signal_name(status)}")
        elif vm.shutdown_reason == "host-signal":
            self._harness_failed("QEMU was ended by a signal from outside")
        elif guest.exit_code is None:
            if not guest.ready:
                raise BootError(self._boot_failure("ended before it was ready"), crashed=True)
            self._lose("the guest's kernel panicked or reset the machine")
        elif guest.exit_code != 0:
            self._report_exit(guest.exit_code)

    def _report_exit(self, code: int) -> None:
        if not self._guest.soaking:
            raise BootError(self._boot_failure("could not start the soak"))
        how = f"by {signal_name(code)}" if code < 0 else f"with exit code {code}"
        self._harness_failed(f"the supervisor in the guest ended {how}")

    def _boot_failure(self, what: str) -> str:
        shown = "\n".join(console_tail(self._console, SHOWN_LINES))
        return f"The guest with kernel {self._request.kernel.name} {what}. Its console ended:\n{shown}"

    def _lose(self, summary: str) -> None:
        if self._guest.over:
            # What it dies of now is no finding of the run, and no pass either.
            self._harness_failed(f"{summary}, after its run had ended")
            self._stopping = 2
            return
        self._guest.lost = True
        self._host.set_word("state", RunState.LOST)
        self._journal_event(
            "violation.found",
            Level.ERROR,
            **lost_machine_event(summary, {"console": console_tail(self._console, EVIDENCE_LINES)}),
        )
        self._host.add("lost_machines", 1)

    def _harness_failed(self, summary: str) -> None:
        self._journal_event("harness.failed", Level.ERROR, ended=True, summary=summary)

    def _hear(self, vm: VirtualMachine, message: dict[str, Any]) -> None:
        guest = self._guest
        match message["message"]:
            case protocol.BOOTED:
                guest.booted = True
                self._progress.say(
                    f"Linux {message['release']} answers after {self._display.elapsed:.1f} s"
                )
            case protocol.READY:
                guest.ready = True
                self._host.set_word("state", RunState.RUNNING)
                if self._stopping:
                    vm.control.send(protocol.STOP)
            case protocol.ALIVE:
                guest.alive += 1
            case protocol.FAULT | protocol.UNPLANTED:
                self._note_fault(message)
            case protocol.FAILED:
                guest.failure = f"cannot be used: {message['summary']}"
            case protocol.ANSWER:
                if self._asked:
                    self._asked.popleft().answer(message["answer"])
            case protocol.EXITED:
                guest.exit_code = message["code"]

    def _note_fault(self, message: dict[str, Any]) -> None:
        if message["message"] == protocol.FAULT:
            self._journal_event("fault.planted", Level.WARNING, fault=message["name"])
            return
        why = f"the fault {message['name']} could not be planted: {message['summary']}"
        self._journal_event("harness.failed", Level.ERROR, summary=why)

    def _journal_event(self, event: str, level: Level = Level.INFO, **fields: Any) -> None:  # noqa: ANN401
        self._journal.write(event, level, **fields)

    def _append(self, line: dict[str, Any]) -> None:
        seq = self._journal.append(line)
        if line["event"] == "run.started" and not self._guest.soaking:
            self._guest.soaking = True
            run_directory.note_begun(self._request.directory)
        self._guest.over |= line["event"] == "run.ended"
        self._guest.boot_id = line["boot_id"]
        self._events.show(line)
        self._host.set("journal_lines", seq)

    def _hear_line(self, line: dict[str, Any]) -> None:
        """Take in a line of the journal as it is numbered."""
        self._judge.see(line)
        if line["event"] in OWN_EVENTS:
            self._events.show(line)

    def _beat_host(self) -> None:
        self._host.set("heartbeat_realtime_ns", time.time_ns())
        self._host.set_word("verdict", self._judge.verdict().verdict)

    def _sample(self) -> None:
        """Take the guest's last sample for it, from the ledger that it left behind."""
        with LedgerReader.open(self._ledger_path, layout=self._ledger.layout) as reader:
            ledger = LedgerView(reader, time.time_ns())
            sweeps = ledger.supervisor.named("sweeps")
            completed = {
                **completed_operations(
                    ([cell.label for cell in worker.cells], worker.block.flat("counts"))
                    for worker in ledger.workers
                ),
                **judged_trials(ledger.supervisor.named_rows("trials")),
            }
        errors = ledger.supervisor.get("journal_errors") + self._journal.errors
        self._journal_event(
            "sample.taken", completed=completed, sweeps=sweeps, journal_errors=errors, by="host"
        )

    def _conclude(self) -> Verdict:
        """Judge the whole run and write the verdict down."""
        if not self._guest.lost:
            self._host.set_word("state", RunState.ENDED)
        if self._guest.exit_code != 0:
            self._sample()
        self._journal.flush()
        verdict = self._judge.verdict()
        self._journal_event("lab.ended", verdict=verdict.verdict)
        self._beat_host()
        # It is there while metrics stay up. On a full disk it is tried again at the end, and told.
        with contextlib.suppress(OSError):
            path = self._request.directory / run_directory.VERDICT
            run_directory.write_whole(path, verdict.to_json().encode(), run_directory.READABLE)
        self._progress.say("")
        return verdict

    async def _linger(self) -> None:
        """Serve a run that ended badly for a while longer: the last scrape came before its end."""
        if self._stopping or self._guest.exit_code == 0:
            return
        seconds = self._request.linger_seconds
        self._progress.say(f"The run ended badly: metrics stay up for {seconds:g} s more.")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._interrupted.wait(), seconds)
