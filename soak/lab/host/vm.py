# SPDX-License-Identifier: GPL-2.0-only
"""A running virtual machine: its process, its ports, its monitor."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
from typing import TYPE_CHECKING, Any, Final

from qemu.qmp import ConnectError, ExecInterruptedError, ExecuteError, QMPClient, StateError

from soak.lab.host.console import keep_console_short
from soak.lab.host.machine import Ports
from soak.lab.host.port import Port
from soak.lab.host.processor_share import ProcessorShare
from soak.lab.host.standstill import Standstill
from soak.lab.host.timing import DEFAULT_TIMING

if TYPE_CHECKING:
    from soak.lab.host.machine import Machine

# What QEMU itself says, beside the guest's console; the first of it matters most.
_LOG: Final = "qemu.log"
_LOG_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
_MOST_SAID: Final = 1 << 20
_MOST_SHOWN: Final = 2000
_CONNECT_SECONDS: Final = 30.0
# QEMU tells its reason before it ends; the message may be read a moment after.
_REASON_POLLS: Final = 20
_REASON_POLL_SECONDS: Final = 0.05
_MONITOR_ERRORS = (
    ConnectError,
    ExecuteError,
    ExecInterruptedError,
    StateError,
    TimeoutError,
    EOFError,
    OSError,
)


class VirtualMachine:
    """Owns QEMU from start to end; `stop` always ends it, by its own process id."""

    def __init__(self, machine: Machine, command_seconds: float = DEFAULT_TIMING.command_seconds) -> None:
        """Make the ports; QEMU has `command_seconds` for each command, and to end at the last one."""
        self._machine = machine
        self._command_seconds = command_seconds
        self._log = machine.console.with_name(_LOG)
        self._said = -1
        self._process: asyncio.subprocess.Process | None = None
        self._monitor = QMPClient("dax-soak")
        # QEMU's end is expected; the library would log it as a failure of the connection.
        logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)
        self.shutdown_reason: str | None = None
        self.journal, self._journal_end = Port.pair()
        self.control, self._control_end = Port.pair()
        self._watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start QEMU and connect to it.

        Raises:
            OSError: QEMU cannot be started, or ends at once; the text is what it said.
        """
        self._said = os.open(self._log, _LOG_FLAGS, 0o640)
        monitor, monitor_end = socket.socketpair()
        theirs = (monitor_end, self._journal_end, self._control_end)
        machine = self._machine
        ports = Ports(*(end.fileno() for end in theirs))
        try:
            self._process = await asyncio.create_subprocess_exec(
                *machine.arguments(ports),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                # A file, not a pipe: an unread pipe would block QEMU once it is full.
                stderr=self._said,
                pass_fds=(*machine.files, *ports),
                # Ctrl-C in the terminal is for this program, which ends the guest in order.
                start_new_session=True,
            )
        finally:
            for end in theirs:
                end.close()
        try:
            await asyncio.wait_for(self._monitor.connect(monitor), _CONNECT_SECONDS)
        except (*_MONITOR_ERRORS, AssertionError) as error:
            # The library asserts that a session is there, and QEMU may end as soon as it is.
            said = await self.stop()
            raise OSError(f"QEMU did not start: {said or error or 'it ended at once'}") from None
        self._watching = asyncio.create_task(self._watch_events())
        self._standstill = Standstill(self.pid, machine.console)
        self._share = ProcessorShare(self.pid)

    def stands_still(self) -> bool:
        """Look at the threads of QEMU, twice a second while the guest boots; see `Standstill`."""
        return self._standstill.look()

    def share(self) -> float:
        """Return how much of the processors QEMU got since the last call; see `ProcessorShare`."""
        return self._share.look()

    @property
    def pid(self) -> int:
        return self._process.pid if self._process else 0

    @property
    def ended(self) -> bool:
        return self._process is None or self._process.returncode is not None

    async def wait(self) -> int:
        """Wait until QEMU has ended and return its exit status, negative for a signal."""
        if self._process is None:
            return 0
        status = await self._process.wait()
        for _ in range(_REASON_POLLS):
            if self.shutdown_reason is not None or status < 0:
                break
            await asyncio.sleep(_REASON_POLL_SECONDS)
        return status

    async def running(self) -> bool:
        """Return whether the guest's processors run; False if the machine is paused."""
        answer = await self._execute("query-status")
        return isinstance(answer, dict) and bool(answer.get("running"))

    async def inject_nmi(self) -> None:
        """Send an interrupt that a guest cannot mask: it panics and shows where it was."""
        await self._execute("inject-nmi")

    async def stop(self) -> str:
        """End QEMU: by its monitor, then by force; return what it said on its way."""
        process = self._process
        if process is None:
            return self._last_words()
        if process.returncode is None:
            await self._execute("quit")
            try:
                await asyncio.wait_for(process.wait(), self._command_seconds)
            except TimeoutError:
                process.kill()
                await process.wait()
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])
            self._watching = None
        with contextlib.suppress(*_MONITOR_ERRORS):
            await self._monitor.disconnect()
        self.journal.close()
        self.control.close()
        return self._last_words()

    def keep_short(self) -> None:
        """Bound what QEMU and the guest's console write, of QEMU's words keeping the first."""
        keep_console_short(self._machine.console)
        if os.fstat(self._said).st_size > _MOST_SAID:
            os.ftruncate(self._said, _MOST_SAID)

    def _last_words(self) -> str:
        """Return the end of what QEMU said, and leave its file where there is something in it."""
        if self._said < 0:
            return ""
        size = os.fstat(self._said).st_size
        said = os.pread(self._said, _MOST_SHOWN, max(size - _MOST_SHOWN, 0))
        os.close(self._said)
        self._said = -1
        if not size:
            self._log.unlink(missing_ok=True)
        return said.decode(errors="replace").strip()

    async def _execute(self, command: str) -> object:
        with contextlib.suppress(*_MONITOR_ERRORS):
            return await asyncio.wait_for(self._monitor.execute(command), self._command_seconds)
        return None

    async def _watch_events(self) -> None:
        async for event in self._monitor.events:
            if event["event"] == "SHUTDOWN":
                self.shutdown_reason = str(_field(event, "reason"))


def _field(event: Any, name: str) -> object:  # noqa: ANN401 - a message of QEMU
    data = event.get("data", {})
    return data.get(name) if isinstance(data, dict) else None


def signal_name(status: int) -> str:
    """Return the name of the signal that ended a process, whose exit status is its negative number."""
    try:
        return signal.Signals(-status).name
    except ValueError:  # some numbers have no name
        return f"signal {-status}"
