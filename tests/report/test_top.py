# SPDX-License-Identifier: GPL-2.0-only
"""The live view as a user has it: in a terminal of 80 columns and 24 lines, and through a pipe."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from soak.model.exit_codes import PLAIN
from soak.model.vocabulary import VerdictWord
from tests.exporter.support import make_ledger
from tests.support.soak import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Callable

COLUMNS, LINES = 80, 24
PROGRAM = Path(sys.executable).with_name("dax-soak")
HOME, OTHER_SCREEN, FIRST_SCREEN = "\x1b[H", "\x1b[?1049h", "\x1b[?1049l"
CONTROLS = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\r")


class Terminal:
    """`dax-soak top` in a terminal of its own, of 80 columns and 24 lines."""

    def __init__(self, run: Path) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", LINES, COLUMNS, 0, 0))
        self.before = termios.tcgetattr(slave)
        self._slave = slave
        self.process = subprocess.Popen(
            [PROGRAM, "top", str(run), "--interval", "100ms"],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={**os.environ, "TERM": "xterm-256color"},
            start_new_session=True,
        )
        self.said = ""

    def read_until(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < end, self.said[-2000:]
            assert self.process.poll() is None, self.said[-2000:]
            if select.select([self._master], [], [], 0.1)[0]:
                self.said += os.read(self._master, 65536).decode(errors="replace")

    def frames(self) -> list[list[str]]:
        """Return the whole screens that were drawn, line by line, without their colours."""
        return [CONTROLS.sub("", frame).split("\n") for frame in self.said.split(HOME)[1:-1]]

    def type(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def end(self) -> int:
        self.process.wait(DEADLINE)
        while select.select([self._master], [], [], 0.1)[0]:
            self.said += os.read(self._master, 65536).decode(errors="replace")
        assert termios.tcgetattr(self._slave) == self.before
        os.close(self._master)
        os.close(self._slave)
        return self.process.returncode


@pytest.fixture
def run(tmp_path: Path) -> Path:
    block = make_ledger(tmp_path / "ledger").block("supervisor")
    block.set("ends_ns", 160_000_000_000)
    (tmp_path / "journal.jsonl").touch()
    return tmp_path


def conclude(run: Path, word: VerdictWord) -> None:
    partial = run / "verdict.partial"
    partial.write_text(json.dumps({"verdict": word, "reasons": ["it is a test"]}))
    partial.rename(run / "verdict.json")


def test_each_screen_fits_the_terminal(run: Path) -> None:
    terminal = Terminal(run)
    terminal.read_until(lambda: len(terminal.frames()) > 1)
    terminal.type(b"q")
    assert terminal.end() == 0
    for frame in terminal.frames():
        assert len(frame) <= LINES
        assert max(map(len, frame)) <= COLUMNS
    assert "run-1" in "\n".join(terminal.frames()[-1])
    # It has left the screen of its own, and the one before is there again.
    assert terminal.said.rindex(FIRST_SCREEN) > terminal.said.rindex(OTHER_SCREEN)


@pytest.mark.parametrize("word", VerdictWord)
def test_live_view_ends_with_the_runs_verdict(run: Path, word: VerdictWord) -> None:
    terminal = Terminal(run)
    terminal.read_until(lambda: len(terminal.frames()) > 0)
    conclude(run, word)
    assert terminal.end() == PLAIN.verdicts[word]
    last = CONTROLS.sub("", terminal.said.rpartition(FIRST_SCREEN)[2])
    assert word.upper() in last.upper()
    assert "it is a test" in last


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_restores_the_terminal(run: Path, number: signal.Signals) -> None:
    terminal = Terminal(run)
    terminal.read_until(lambda: len(terminal.frames()) > 0)
    terminal.process.send_signal(number)
    assert terminal.end() == 0
    assert terminal.said.rindex(FIRST_SCREEN) > terminal.said.rindex(OTHER_SCREEN)
    assert "Traceback" not in terminal.said


def test_piped_output_is_plain_80_column_text(run: Path) -> None:
    done = subprocess.run(
        [PROGRAM, "top", str(run), "--once"], check=False, capture_output=True, timeout=DEADLINE
    )
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode()
    assert "\x1b" not in text
    assert "run-1" in text
    assert max(map(len, text.splitlines())) <= COLUMNS
