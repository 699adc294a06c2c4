# SPDX-License-Identifier: GPL-2.0-only
"""Stands in for QEMU: a guest that says over the host's real ports what a test has written down.

It is for what no kernel can be made to say at the right moment. The steps are a JSON list, in the file
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
from typing import Final

from soak.ledger.schema import SUPERVISOR
from soak.ledger.writer import Ledger

STEPS: Final = "DAX_SOAK_TEST_STEPS"
SAY, PRINT, END = "control", "journal", "end"
WAIT_FOR, SCRIBBLE, COMPLAIN = "wait for", "scribble", "complain"
_BEAT_SECONDS: Final = 0.2
_LONGEST_SECONDS: Final = 120.0


def install(directory: Path) -> None:
    """Put it where a PATH that begins with the directory finds it."""
    directory.mkdir()
    program = directory / "qemu-system-x86_64"
    root = Path(__file__).parents[1]
    program.write_text(
        f'#!/bin/sh\nPYTHONPATH={root} exec {sys.executable} -P -m tests.stand_in_qemu "$@"\n'
    )
    program.chmod(0o755)


def main() -> None:
    """Be QEMU, until the steps say to end or a deadline passes."""
    if "--version" in sys.argv:
        print("QEMU emulator version 7.2.22")  # noqa: T201 - what is asked for
        return
    options = " ".join(sys.argv[1:])
    ports = {
        name: socket.socket(fileno=int(_found(rf"id={name},fd=(\d+)", options)))
        for name in ("monitor", SAY, PRINT)
    }
    for work in (lambda: _monitor(ports["monitor"]), lambda: _beat(options)):
        threading.Thread(target=work, daemon=True).start()
    threading.Timer(_LONGEST_SECONDS, os._exit, (1,)).start()
    # A guest takes longer to boot than its host to connect to the monitor.
    journal = _ledger(options).with_name("journal.jsonl")
    while b'"lab.started"' not in journal.read_bytes():
        time.sleep(0.02)
    for step, value in json.loads(Path(os.environ[STEPS]).read_text()):
        if step == WAIT_FOR:
            while not Path(value).exists():
                time.sleep(0.02)
        elif step == SCRIBBLE:
            with _ledger(options).open("r+b") as file:
                file.write(bytes.fromhex(value) * _ledger(options).stat().st_size)
        elif step == COMPLAIN:
            sys.stderr.write(f"{value}\n")
        elif step == END:
            os._exit(0)
        else:
            ports[step].sendall(value.encode() + b"\n")


def _found(pattern: str, options: str) -> str:
    match = re.search(pattern, options)
    if match is None:
        sys.exit(f"no {pattern} in {options}")
    return match[1]


def _ledger(options: str) -> Path:
    return Path(_found(r"id=ledger,share=on,mem-path=([^,]+)", options))


def _monitor(port: socket.socket) -> None:
    """Answer each command of QMP with success."""
    with port.makefile("rw") as stream:
        greeting = {"QMP": {"version": {"qemu": {}, "package": ""}, "capabilities": []}}
        print(json.dumps(greeting), file=stream, flush=True)
        decoder, text = json.JSONDecoder(), ""
        while piece := port.recv(1 << 16):
            text = (text + piece.decode()).lstrip()
            while text:
                try:
                    command, end = decoder.raw_decode(text)
                except ValueError:
                    break
                text = text[end:].lstrip()
                answer = {"return": {"running": True}, "id": command.get("id")}
                print(json.dumps(answer), file=stream, flush=True)
                if command["execute"] == "quit":
                    os._exit(0)


def _beat(options: str) -> None:
    """Be the supervisor as far as the host looks for its heartbeats."""
    block = Ledger.open(_ledger(options)).block(SUPERVISOR)
    while True:
        block.add("heartbeats", 1)
        time.sleep(_BEAT_SECONDS)


if __name__ == "__main__":
    main()
