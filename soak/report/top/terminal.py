# SPDX-License-Identifier: GPL-2.0-only
"""Shows the live view in a terminal, from a ledger that it only reads."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import time
import tty
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.live import Live

from soak.errors import UsageError, why
from soak.files.bounded_json import parse_json
from soak.files.regular import read_regular
from soak.ledger.layout import UNREADABLE, LedgerError
from soak.ledger.reader import LedgerReader
from soak.ledger.view import NANOSECONDS
from soak.model.exit_codes import PLAIN
from soak.model.vocabulary import VerdictWord
from soak.report.top.draw import Conclusion, Cropped, draw
from soak.report.top.view import Reading, View, make_view

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PLAIN_WIDTH: Final = 80
_INTERVAL_SECONDS: Final = 2.0
_LARGEST_VERDICT: Final = 16 << 20
# The span of rates and latencies, long enough to include rare operations.
_SPAN_SECONDS: Final = 10.0


def watch(ledger: Path, verdict: Path, *, interval: float | None, once: bool) -> int:
    """Show a run until it ends or the user quits.

    Return the verdict's exit code if the run has ended, otherwise 0.

    Raises:
        UsageError: the ledger cannot be read.
    """
    console = Console(markup=False, highlight=False, emoji=False)
    with contextlib.closing(_Watched(ledger, verdict)) as run:
        if once or not console.is_terminal:
            repeat = None if once else interval
            return _print_plainly(run, repeat)
        with _interrupted_by_any_signal(), contextlib.suppress(KeyboardInterrupt):
            _show_live(run, console, interval or _INTERVAL_SECONDS)
        # Print the conclusion on the normal screen, where it stays.
        if run.conclusion is not None:
            console.print(draw(run.view, run.conclusion))
        return run.exit_code


class _Watched:
    """A run, its last view and the readings for rates."""

    def __init__(self, ledger: Path, verdict: Path) -> None:
        self._path = ledger
        self._verdict = verdict
        try:
            self._reader = LedgerReader.open(ledger)
        except OSError as error:
            raise UsageError(f"The ledger {ledger} cannot be opened: {why(error)}.") from None
        except LedgerError as error:
            raise self._unreadable(error) from None
        self._readings: deque[Reading] = deque()
        self.conclusion: Conclusion | None = None
        self.view = self._look()

    def close(self) -> None:
        self._reader.close()

    @property
    def exit_code(self) -> int:
        return 0 if self.conclusion is None else PLAIN.verdicts[self.conclusion.verdict]

    def look(self) -> View:
        self.view = self._look()
        return self.view

    def _look(self) -> View:
        # Read the verdict first: once it exists, the ledger is final.
        self.conclusion = self._conclusion()
        try:
            return self._view(Reading.take(self._reader, time.monotonic_ns(), time.time_ns()))
        except UNREADABLE as error:
            raise self._unreadable(error) from None

    def _view(self, now: Reading) -> View:
        if self.conclusion is not None:
            return make_view(now)
        span = _SPAN_SECONDS * NANOSECONDS
        while len(self._readings) > 1 and now.taken_ns - self._readings[1].taken_ns >= span:
            self._readings.popleft()
        before = self._readings[0] if self._readings else None
        if before is None or now.moved(before):
            self._readings.append(now)
        return make_view(now, before)

    def _conclusion(self) -> Conclusion | None:
        try:
            table = parse_json(read_regular(self._verdict, _LARGEST_VERDICT))
            return Conclusion(VerdictWord(table["verdict"]), tuple(map(str, table["reasons"])))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise UsageError(f"{self._verdict} cannot be read: {why(error)}.") from None
        except (ValueError, LookupError, TypeError):
            raise UsageError(
                f"{self._verdict} is not a verdict: 'dax-soak report {self._verdict.parent}' computes it "
                f"again from the journal."
            ) from None

    def _unreadable(self, error: Exception) -> UsageError:
        return UsageError(
            f"The ledger {self._path} cannot be read: {error}. It is damaged, or another version of "
            f"dax-soak wrote it."
        )


def _print_plainly(run: _Watched, interval: float | None) -> int:
    console = Console(
        file=sys.stdout, width=PLAIN_WIDTH, color_system=None, markup=False, highlight=False, emoji=False
    )
    while True:
        with console.capture() as capture:
            console.print(draw(run.view, run.conclusion))
        print("\n".join(line.rstrip() for line in capture.get().splitlines()), flush=True)
        if interval is None or run.conclusion is not None or run.view.given_up:
            return run.exit_code
        print(flush=True)
        time.sleep(interval)
        run.look()


def _show_live(run: _Watched, console: Console, interval: float) -> None:
    """Draw until the run has a verdict or `q` is pressed."""
    if run.conclusion is not None:
        return
    with _single_keys() as keyboard, Live(console=console, screen=True, auto_refresh=False) as live:
        while run.conclusion is None:
            live.update(Cropped(draw(run.view, None)), refresh=True)
            if keyboard.pressed_within(interval, "q"):
                return
            run.look()


@dataclass
class _Keyboard:
    """The descriptor that keys come from; None without a terminal."""

    descriptor: int | None

    def pressed_within(self, seconds: float, key: str) -> bool:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if self.descriptor is None:
                time.sleep(left)
                continue
            ready, _, _ = select.select([self.descriptor], [], [], left)
            if not ready:
                continue
            typed = os.read(self.descriptor, 64)
            if key.encode() in typed.lower():
                return True
            if not typed:
                self.descriptor = None
        return False


@contextlib.contextmanager
def _single_keys() -> Iterator[_Keyboard]:
    """Switch the terminal to single keys without echo, if standard input is a terminal."""
    if not sys.stdin.isatty():
        yield _Keyboard(None)
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield _Keyboard(descriptor)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _interrupted_by_any_signal() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into KeyboardInterrupt, so that the terminal is restored."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
