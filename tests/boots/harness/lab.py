# SPDX-License-Identifier: GPL-2.0-only
"""Soaking in the lab as a user does, and watching the run from outside."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Self

from soak.supervisor.control import PLANT, ask
from tests.boots.harness.boot import Boot, announce
from tests.boots.harness.progress_lines import keep, say
from tests.boots.harness.run_view import RunView
from tests.boots.harness.scrape import address_in, fetch, of_ledger, total
from tests.support.patience import MOST_BEATS, LateError, Patience, Signs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.boots.harness.scrape import Scrape

# What a configuration has under [workload]. Processors are for what a test is about, and for the tests
# beside it: under emulation 20 operations a second of each worker take most of one.
CALM: Final = "rate = 5\ntrials = 1\n"
# Where a test waits for something that few trials show.
STEADY: Final = "rate = 20\ntrials = 1\n"
# With this a hundred operations of each kind, which a pass needs, soon have come together.
COVERING: Final = "rate = 200\n"
# Where each operation against a transfer sleeps until it is freed, more workers are no more work.
STALLING: Final = "rate = 100\ninvalidators = 3\nholders = 2\ntrials = 4\n"
FULL_LOAD: Final = ""
_MOST_PLANTED: Final = 20
_ANSWER_SECONDS: Final = 300.0


class LabProcess(Boot, RunView):
    """A soak of `dax-soak lab` in a process of its own; `close` ends it whatever happened.

    `named` is whether the command line names the run directory: a run that is resumed has it already.
    """

    def __init__(self, directory: Path, arguments: list[str], *, named: bool = True) -> None:
        Boot.__init__(self, directory)
        RunView.__init__(self)
        self._arguments, self._named = arguments, named
        self._patience = Patience(self.signs, self._trouble, self._report_wait)

    def start(self) -> Self:
        keep(self.directory)
        announce("dax-soak lab", self._arguments)
        place = ("--run-dir", str(self.directory)) if self._named else ()
        self._boot(*place, "--listen", "127.0.0.1:0", *self._arguments)
        return self

    @property
    def directory(self) -> Path:
        return self._directory

    def wait_until(self, what: str, condition: Callable[[], bool], *, poll_seconds: float = 0.1) -> None:
        """Wait for as long as the lab moves.

        Raises:
            LateError: the condition does not hold; the text has what the lab printed.
        """
        self._wait_with(replace(self._patience, poll_seconds=poll_seconds), what, condition)

    def finish(self, most_beats: int = MOST_BEATS) -> int:
        """Wait for the end of the lab and return its exit code."""
        patience = Patience(self.signs, news=self._report_wait, most_beats=most_beats)
        self._wait_with(patience, "the lab's end", self._ended)
        return self.process.wait()

    def finish_when_covered(self) -> int:
        """Let it soak until every promised cell is covered and each detector has seen its canary.

        Then end it: that takes as long as it takes, however slow the machine is.
        """
        self.wait_until("everything was covered", lambda: not self.uncovered())
        self.interrupt()
        return self.finish()

    def soaks(self) -> None:
        """Wait until the workers are at work."""
        self.wait_until("workers are at work", lambda: self.operations() > 0)

    def plant(self, fault: str) -> None:
        """Have a fault planted now, as `dax-soak plant` does, and wait until it is."""
        before = len(self.events("fault.planted"))
        say(f"plants {fault}")
        answer = ask(self.directory, f"{PLANT}{fault}", _ANSWER_SECONDS)
        assert answer == f"the guest plants {fault}"
        self.wait_until(f"{fault} was planted", lambda: len(self.events("fault.planted")) > before)

    def plant_until(self, fault: str, what: str, condition: Callable[[], bool]) -> None:
        """Plant a fault until it was found: on a slow machine not every one has something to hit."""
        for _ in range(_MOST_PLANTED):
            self.plant(fault)
            samples = len(self.events("sample.taken"))
            self.wait_until(
                f"{what}, or three samples were taken",
                lambda: condition() or len(self.events("sample.taken")) > samples + 3,  # noqa: B023 - called at once
            )
            if condition():
                return
        raise LateError(f"{fault} was planted {_MOST_PLANTED} times, and never {what}")

    def stand_still(self) -> None:
        """Stop the guest three times, each time in the middle of some trial.

        That lasts longer than what counts as a stall, and is none.
        """
        pid = self.qemu_pid()
        for _ in range(3):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(3.0)
            os.kill(pid, signal.SIGCONT)
            time.sleep(1.0)

    def signs(self) -> Signs:
        seen = super().signs()
        return Signs(seen.beats, (*seen.others, *self._sizes()))

    def _trouble(self) -> str | None:
        code = self.process.poll()
        return None if code is None else f"the lab has ended with exit code {code}"

    def _report_wait(self, what: str, seconds: float) -> None:
        lines = self.stderr.splitlines() or ["nothing yet"]
        say(f"still waiting after {seconds:.0f} s: {what}. The lab: {lines[-1].strip()}")

    def again(self, *arguments: str) -> LabProcess:
        """Return another process for the same run directory, to be entered."""
        return LabProcess(self.directory, list(arguments), named=False)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def interrupt(self) -> None:
        """Do what Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)

    @property
    def address(self) -> str | None:
        return address_in(self.stderr)

    def scrape(self) -> Scrape:
        """Fetch the metrics over HTTP, by name and labels."""
        self.wait_until("metrics are served", lambda: self.address is not None)
        return fetch(self.address or "")

    def scraped_at_end(self) -> Scrape:
        """Read the ledger of a run that has ended, as an exporter shows it."""
        return of_ledger(self.directory / "ledger")

    def metric(self, name: str, **labels: str) -> float:
        """Sum the series of a metric that have these labels, from a scrape of now."""
        return total(self.scrape(), name, **labels)

    def qemu_pid(self) -> int:
        return int(self.events("lab.started")[-1]["qemu_pid"])


@contextlib.contextmanager
def lab(directory: Path, *arguments: str, workload: str = CALM) -> Iterator[LabProcess]:
    """Start the lab, and end it when the test is done with it.

    `workload` is what its configuration has there, where the test brings none of its own.
    """
    words = list(arguments)
    if "-c" not in words:
        config = directory.with_suffix(".toml")
        config.write_text(f"[workload]\n{workload}")
        words += ["-c", str(config)]
    process = LabProcess(directory, words).start()
    try:
        yield process
    finally:
        process.close()
