# SPDX-License-Identifier: GPL-2.0-only
"""One boot by `dax-soak lab`: a process of its own, its output in files, and an end whatever happens."""

from __future__ import annotations

import contextlib
import subprocess
from typing import TYPE_CHECKING, Final

from tests.boots.harness.progress_lines import say
from tests.support.patience import LateError
from tests.support.program import COMMAND, ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tests.support.patience import Patience

# A test run that is killed leaves no lab behind.
WITH_THE_TEST: Final = ("setpriv", "--pdeathsig", "KILL", "--")
_END_SECONDS: Final = 60.0


class Boot:
    """`dax-soak lab` in a process of its own; `close` ends it whatever happened.

    Its output lies in files beside the run directory.
    """

    process: subprocess.Popen[bytes]

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._out, self._err = directory.with_suffix(".out"), directory.with_suffix(".err")

    @property
    def stdout(self) -> str:
        return self._out.read_text()

    @property
    def stderr(self) -> str:
        """What the lab printed there; where the guest failed, with the end of its console."""
        return self._err.read_text()

    @property
    def console(self) -> Path:
        return self._directory / "console.log"

    def close(self) -> None:
        end_process(self.process)

    def _boot(self, *words: str) -> None:
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [*WITH_THE_TEST, *COMMAND, "lab", *words], stdout=out, stderr=err, cwd=ROOT
            )

    def _wait_with(self, patience: Patience, what: str, condition: Callable[[], bool]) -> None:
        """Wait until the condition holds.

        Raises:
            LateError: it does not; the text has what the lab printed.
        """
        try:
            patience.wait_until(what, condition)
        except LateError as error:
            raise LateError(f"{error}\n{self._evidence()}") from None

    def _evidence(self) -> str:
        return f"{self.stderr}{self.stdout}"

    def _ended(self) -> bool:
        return self.process.poll() is not None

    def _sizes(self) -> tuple[int, ...]:
        """Return the sizes of what grows while a guest boots and runs."""
        console = self.console.stat().st_size if self.console.exists() else 0
        return console, self._out.stat().st_size, self._err.stat().st_size


def announce(what: str, arguments: Sequence[str]) -> None:
    """Print what is booted, without the hardware that a test adds."""
    shown = [argument for argument in arguments if not argument.startswith("--device=")]
    say(" ".join([what, *shown]))


def end_process(process: subprocess.Popen[bytes]) -> None:
    """End a process in order, or by force."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_SECONDS)
    if process.poll() is None:
        process.kill()
        process.wait()
