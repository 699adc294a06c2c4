# SPDX-License-Identifier: GPL-2.0-only
"""Stands in for QEMU: plays the guest's side of the host's real ports and ledger, step by step.

It does what no kernel can be made to do at the right moment. The steps are a JSON list, in the file
that the environment variable names.
"""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from soak.lab import protocol
from soak.ledger.schema import SUPERVISOR
from soak.ledger.writer import Ledger
from tests.support.program import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

STEPS: Final = "DAX_SOAK_TEST_STEPS"
# A line on a port of the guest's.
SAY, PRINT = "control", "journal"
# What the monitor does: with `quit` and `inject-nmi`, and whether it shows the processors running.
IGNORE_QUIT, PANIC_AT_NMI, PAUSED = "ignore quit", "panic at NMI", "paused"
# What the guest does beside its ports: on its console, and in its ledger.
CONSOLE, OPERATIONS, SCRIBBLE = "console", "operations", "scribble"
# Its supervisor beats from the start; its first process sends signs of life from `ALIVE` on.
STOP_BEATING, CLOCK_RATE, ALIVE = "stop beating", "clock rate", "alive"
# Until a file is there, and until the host has sent a word.
WAIT_FOR, EXPECT = "wait for", "expect"
# QEMU's own complaint, and its end: for a reason that it reports, by a signal, or before it has started.
COMPLAIN, END, KILL, REFUSE = "complain", "end", "kill", "refuse"
# As QEMU names them (ShutdownCause, qapi/run-state.json).
POWERED_OFF, RESET, FROM_OUTSIDE = "guest-shutdown", "guest-reset", "host-signal"

Step = tuple[str, Any]
_BEAT_SECONDS: Final = 0.02
_POLL_SECONDS: Final = 0.02
_LONGEST_SECONDS: Final = 120.0


def message(word: str, **fields: object) -> Step:
    """Return the step that sends a message of the control port."""
    return SAY, json.dumps({"message": word, **fields})


def install(directory: Path) -> None:
    """Write the program into a directory for PATH."""
    directory.mkdir()
    program = directory / "qemu-system-x86_64"
    program.write_text(
        f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -P -m tests.lab.stand_in_qemu "$@"\n'
    )
    program.chmod(0o755)


def prepare(place: Path, steps: Iterable[Step]) -> dict[str, str]:
    """Write program and steps; return the environment variables for them."""
    install(place / "bin")
    (place / "steps.json").write_text(json.dumps(list(steps)))
    return {"PATH": f"{place / 'bin'}:{os.environ['PATH']}", STEPS: str(place / "steps.json")}


class Monitor:
    """QEMU's end of the machine protocol: each command succeeds."""

    def __init__(self, port: socket.socket, panic: Callable[[], None]) -> None:
        self._port = port
        self._panic = panic
        self.running = True
        self.ignores_quit = False
        self.panics_at_nmi = False
        threading.Thread(target=self._serve, daemon=True).start()

    def send(self, table: dict[str, Any]) -> None:
        self._port.sendall(json.dumps(table).encode() + b"\n")

    def _serve(self) -> None:
        self.send({"QMP": {"version": {"qemu": {}, "package": ""}, "capabilities": []}})
        decoder, text = json.JSONDecoder(), ""
        while piece := self._port.recv(1 << 16):
            text = (text + piece.decode()).lstrip()
            while text:
                try:
                    command, end = decoder.raw_decode(text)
                except ValueError:
                    break
                text = text[end:].lstrip()
                self.send({"return": {"running": self.running}, "id": command.get("id")})
                self._do(command["execute"])

    def _do(self, command: str) -> None:
        if command == "quit" and not self.ignores_quit:
            os._exit(0)
        if command == "inject-nmi" and self.panics_at_nmi:
            self._panic()


class Guest:
    """Plays the steps, one method each."""

    def __init__(self, options: str) -> None:
        self._control, self._journal = (_port(name, options) for name in (SAY, PRINT))
        self._console = Path(_found(r"id=console,path=([^,]+)", options))
        self._ledger_path = Path(_found(r"id=ledger,share=on,mem-path=([^,]+)", options))
        self._ledger = Ledger.open(self._ledger_path)
        self._monitor = Monitor(_port("monitor", options), self._panic)
        self._heard = b""
        self._beats = True
        self._rate = 1.0
        threading.Thread(target=self._beat, daemon=True).start()

    def play(self, steps: Iterable[Step]) -> None:
        """Play the steps one after the other."""
        # A guest takes longer to boot than its host to connect to the monitor.
        journal = self._ledger_path.with_name("journal.jsonl")
        began = sum(1 for line in _lines(journal) if '"lab.ended"' in line)
        while sum(1 for line in _lines(journal) if '"lab.started"' in line) <= began:
            time.sleep(_POLL_SECONDS)
        table: dict[str, Callable[[Any], None]] = {
            SAY: self._say,
            PRINT: self._print,
            IGNORE_QUIT: self._ignore_quit,
            PANIC_AT_NMI: self._panic_at_nmi,
            PAUSED: self._pause,
            CONSOLE: self._write_console,
            OPERATIONS: self._operate,
            SCRIBBLE: self._scribble,
            STOP_BEATING: self._stop_beating,
            CLOCK_RATE: self._set_rate,
            ALIVE: self._live,
            WAIT_FOR: self._wait_for,
            EXPECT: self._expect,
            COMPLAIN: self._complain,
            END: self._end,
            KILL: self._kill,
        }
        for step, value in steps:
            table[step](value)

    def _say(self, line: str) -> None:
        self._control.sendall(line.encode() + b"\n")

    def _print(self, line: str) -> None:
        self._journal.sendall(line.encode() + b"\n")

    def _ignore_quit(self, _: object) -> None:
        self._monitor.ignores_quit = True

    def _panic_at_nmi(self, _: object) -> None:
        self._monitor.panics_at_nmi = True

    def _pause(self, _: object) -> None:
        self._monitor.running = False

    def _write_console(self, line: str) -> None:
        with self._console.open("a") as file:
            file.write(f"{line}\n")

    def _operate(self, number: int) -> None:
        """Begin so many operations of the first worker, and complete them in its first cell."""
        worker = self._ledger.block(
            next(name for name, block in self._ledger.layout.blocks.items() if block.kind == "worker")
        )
        worker.add("begun", number)
        worker.add("counts", number, 0, 0)

    def _scribble(self, value: str) -> None:
        with self._ledger_path.open("r+b") as file:
            file.write(bytes.fromhex(value) * self._ledger_path.stat().st_size)

    def _stop_beating(self, _: object) -> None:
        self._beats = False

    def _set_rate(self, rate: float) -> None:
        self._rate = rate

    def _live(self, _: object) -> None:
        threading.Thread(target=self._send_life, daemon=True).start()

    def _send_life(self) -> None:
        while True:
            self._say(message(protocol.ALIVE)[1])
            time.sleep(_BEAT_SECONDS)

    def _wait_for(self, path: str) -> None:
        while not Path(path).exists():
            time.sleep(_POLL_SECONDS)

    def _expect(self, word: str) -> None:
        while not self._heard.startswith(f"{word}\n".encode()):
            piece = self._control.recv(1 << 16)
            if not piece:
                sys.exit(f"the host never sent {word!r}, but {self._heard!r}")
            self._heard += piece
        self._heard = self._heard.partition(b"\n")[2]

    def _complain(self, line: str) -> None:
        sys.stderr.write(f"{line}\n")

    def _kill(self, number: int) -> None:
        os.kill(os.getpid(), number)

    def _end(self, reason: str) -> None:
        stamp = {"seconds": 0, "microseconds": 0}
        self._monitor.send({"event": "SHUTDOWN", "data": {"reason": reason}, "timestamp": stamp})
        os._exit(0)

    def _panic(self) -> None:
        self._write_console("Kernel panic - not syncing: NMI: Not continuing")
        self._end(RESET)

    def _beat(self) -> None:
        """Send the supervisor's heartbeats."""
        block = self._ledger.block(SUPERVISOR)
        began = time.monotonic()
        while self._beats:
            block.set("heartbeat_ns", int((time.monotonic() - began) * self._rate * 1e9))
            block.add("heartbeats", 1)
            time.sleep(_BEAT_SECONDS)


def main() -> None:
    """Be QEMU, until the steps say to end or a deadline passes."""
    if "--version" in sys.argv:
        print("QEMU emulator version 7.2.22")  # noqa: T201 - the output of --version
        return
    steps = json.loads(Path(os.environ[STEPS]).read_text())
    if steps and steps[0][0] == REFUSE:
        sys.exit(steps[0][1])
    threading.Timer(_LONGEST_SECONDS, os._exit, (1,)).start()
    Guest(" ".join(sys.argv[1:])).play(steps)


def _found(pattern: str, options: str) -> str:
    match = re.search(pattern, options)
    if match is None:
        sys.exit(f"no {pattern} in {options}")
    return match[1]


def _port(name: str, options: str) -> socket.socket:
    return socket.socket(fileno=int(_found(rf"id={name},fd=(\d+)", options)))


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


if __name__ == "__main__":
    main()
