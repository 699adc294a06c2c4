# SPDX-License-Identifier: GPL-2.0-only
"""Running scripts in a guest of the lab, in place of a soak: what is tried on a real kernel."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from soak.lab.host.console import EVIDENCE_LINES, console_tail
from tests.boots.harness.lab import QUICK_KERNEL, ROOT, WITH_THE_TEST, end_process, shown
from tests.boots.harness.progress_lines import keep, say
from tests.support.patience import LateError, Patience, Signs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

# A guest that moves is waited for: this ends a script that would go on for ever.
_MOST_SECONDS = 1800
# As which a script tells what it does next.
_STEP = "step"


@dataclass
class GuestScript:
    """A script that was run in a guest, in place of a soak: what it told, printed, and ended with."""

    place: Path
    code: int = -1
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def stdout(self) -> str:
        return (self.place / "script.out").read_text()

    @property
    def stderr(self) -> str:
        """What the lab said, with the end of the guest's console where the script failed."""
        return (self.place / "script.err").read_text()

    def run(self, script: str, *arguments: str, kernel: str) -> Self:
        """Boot the lab, run the script as root there, and wait for it as long as something moves.

        It has a namespace of device DAX, a DAX file system at /mnt/dax and unbound edu functions, and
        may import `tests.boots.harness.in_guest`, with whose `tell` it tells facts.

        Raises:
            LateError: nothing moved any more.
        """
        file = self.place / "script.py"
        file.write_text(textwrap.dedent(script))
        command = [
            sys.executable,
            "-m",
            "soak.cli",
            "lab",
            "--kernel",
            kernel,
            "--script",
            str(file),
            "tests/boots/harness/in_guest.py",
            "tests/support/patience.py",
            "tests/boots/harness/journal_tail.py",
            "--run-dir",
            str(self.place / "script-run"),
            "--duration",
            f"{_MOST_SECONDS}s",
            *arguments,
        ]
        keep(self.place)
        say(f"a script in a guest with {kernel} {shown(arguments)}")
        self._shown = 0
        out, err = self.place / "script.out", self.place / "script.err"
        with out.open("wb") as out_file, err.open("wb") as err_file:
            process = subprocess.Popen(
                [*WITH_THE_TEST, *command], stdout=out_file, stderr=err_file, cwd=ROOT
            )
        try:
            Patience(self._signs).wait_until("the script's end", lambda: process.poll() is not None)
        except LateError as error:
            raise LateError(
                f"{error}; its last step was {self._step()!r}\n{self.stderr}{self._console()}"
            ) from None
        finally:
            end_process(process)
        self.code = process.returncode
        self.facts = dict(self._told())
        return self

    def _told(self) -> Iterator[list[Any]]:
        for line in self.stdout.splitlines():
            if line.startswith("["):
                yield json.loads(line)

    def _step(self) -> str:
        steps = [value for name, value in self._told() if name == _STEP]
        for step in steps[self._shown :]:
            say(f"in the guest: {step}")
        self._shown = len(steps)
        return str(steps[-1]) if steps else "its boot"

    def _console(self) -> str:
        """Return the end of the console of a guest that still runs."""
        if not self._console_file.exists():
            return ""
        shown = "\n".join(console_tail(self._console_file, EVIDENCE_LINES))
        return f"The guest's console ends:\n{shown}\n"

    @property
    def _console_file(self) -> Path:
        return self.place / "script-run/console.log"

    def _signs(self) -> Signs:
        self._step()
        console = self._console_file
        return Signs(0, (len(self.stdout), console.stat().st_size if console.exists() else 0))


def run_script(place: Path, script: str, *arguments: str, kernel: str = QUICK_KERNEL) -> GuestScript:
    """Run a script in a guest; see `GuestScript.run`."""
    return GuestScript(place).run(script, *arguments, kernel=kernel)


def seen_in_guest(
    place: Path, script: str, *arguments: str, kernel: str = QUICK_KERNEL
) -> Mapping[str, Any]:
    """Run a script that must not fail in a guest; return the facts that it told, by name."""
    done = run_script(place, script, *arguments, kernel=kernel)
    assert done.code == 0, done.stderr + done.stdout
    return done.facts


def told_in_guest(
    place: Path, script: str, hardware: Sequence[str], disk_bytes: int, kernel: str = QUICK_KERNEL
) -> Mapping[str, Any]:
    """Run a script in a guest with more QEMU devices; return the facts that it told, by name.

    The devices may use a block device named `disk`, which is empty.
    """
    disk = place / "disk.img"
    with disk.open("wb") as file:
        file.truncate(disk_bytes)
    devices = [f"--device=-blockdev driver=file,filename={disk},node-name=disk"]
    devices += [f"--device={device}" for device in hardware]
    return seen_in_guest(place, script, *devices, kernel=kernel)
