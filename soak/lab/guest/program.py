# SPDX-License-Identifier: GPL-2.0-only
"""The guest's program: the soak, or a script, in a child of the first process.

Forked early, so that it imports its modules while the first process prepares the machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from soak.lab import protocol

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Sequence

    # Imports the command, which takes long, and returns its `main`.
    Load = Callable[[], Callable[[Sequence[str]], int]]


_STDIN: Final = 0
_STDOUT: Final = 1


class GuestProgram:
    """The child process. It waits for its arguments on a pipe; `words` is the end to write to."""

    def __init__(self, pid: int, words: int) -> None:
        self.pid = pid
        self._words = words
        self.returncode: int | None = None

    def start(self, words: Sequence[str]) -> None:
        # A child that failed to import the program has ended; poll() returns its exit code.
        with contextlib.suppress(BrokenPipeError), os.fdopen(self._words, "w") as out:
            json.dump(list(words), out)

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal, or None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def run_program(load: Load, words: int) -> int:
    """Import the program, wait for its arguments, and return its exit code."""
    program = load()
    with os.fdopen(words) as pipe:
        text = pipe.read()
    # The first process closes the pipe without arguments if it cannot prepare the machine.
    return program(json.loads(text)) if text else 0


def run_script(words: int) -> int:
    """Run the host's script, with its output to the port in its arguments."""
    with os.fdopen(words) as pipe:
        text = pipe.read()
    if not text:
        return 0
    (port,) = json.loads(text)
    with Path(port).open("wb", buffering=0) as out, Path(os.devnull).open("rb") as nothing:
        os.dup2(out.fileno(), _STDOUT)
        os.dup2(nothing.fileno(), _STDIN)
    sys.stdout.reconfigure(write_through=True)  # type: ignore[union-attr] # a TextIOWrapper here
    sys.path.insert(0, f"/{protocol.SCRIPT_MODULES}")
    runpy.run_path(f"/{protocol.SCRIPT_FILE}", run_name="__main__")
    return 0
