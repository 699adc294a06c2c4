# SPDX-License-Identifier: GPL-2.0-only
"""Running a program in a guest of the lab, in place of a soak: what is tried on a real kernel."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from soak.lab.host.console import EVIDENCE_LINES, console_tail
from tests.boots.harness.boot import Boot, announce
from tests.boots.harness.kernels import QUICK_KERNEL
from tests.boots.harness.progress_lines import keep, say
from tests.support.patience import Patience, Signs

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_PROGRAMS: Final = Path(__file__).parents[1] / "guest"
# What a program in the guest may import beside the soak itself, from the source's root.
_MODULES: Final = (
    "tests/boots/harness/in_guest.py",
    "tests/boots/harness/guest_run.py",
    "tests/boots/harness/run_view.py",
    "tests/boots/harness/journal_tail.py",
    "tests/journal/full_disk.py",
    "tests/support/patience.py",
)
# A guest that moves is waited for: this ends a program that would go on for ever.
_MOST_SECONDS: Final = 1800
# The name under which a program reports what it does next.
_STEP: Final = "step"


class GuestScript(Boot):
    """A program that runs in a guest, in place of a soak; `facts` are what it reported, by name."""

    def __init__(self, place: Path) -> None:
        super().__init__(place / "script-run")
        self._place = place
        self._shown = 0
        self.code = -1
        self.facts: dict[str, Any] = {}

    def run(self, script: str, *arguments: str, kernel: str) -> Self:
        """Boot the lab, run the program as root there, and wait for it as long as something moves.

        It has a namespace of device DAX, a DAX file system at /mnt/dax and unbound edu functions.
        `tests.boots.harness.in_guest.report` sends facts out.

        Raises:
            LateError: nothing moved any more.
        """
        file = self._place / "script.py"
        file.write_text(textwrap.dedent(script))
        keep(self._place)
        announce(f"a script in a guest with {kernel}", arguments)
        words = ("--kernel", kernel, "--script", str(file), *_MODULES)
        limits = ("--run-dir", str(self._directory), "--duration", f"{_MOST_SECONDS}s")
        self._boot(*words, *limits, *arguments)
        try:
            self._wait_with(Patience(self._signs), "the script's end", self._ended)
        finally:
            self.close()
        self.code = self.process.returncode
        self.facts = dict(self._reported())
        return self

    def _reported(self) -> Iterator[list[Any]]:
        for line in self.stdout.splitlines():
            if line.startswith("["):
                yield json.loads(line)

    def _step(self) -> str:
        steps = [value for name, value in self._reported() if name == _STEP]
        for step in steps[self._shown :]:
            say(f"in the guest: {step}")
        self._shown = len(steps)
        return str(steps[-1]) if steps else "its boot"

    def _evidence(self) -> str:
        """Return the last step, and the end of the console of a guest that still runs."""
        text = f"Its last step was {self._step()!r}.\n{self.stderr}"
        if self.console.exists():
            shown = "\n".join(console_tail(self.console, EVIDENCE_LINES))
            text += f"The guest's console ends:\n{shown}\n"
        return text

    def _signs(self) -> Signs:
        self._step()
        return Signs(0, self._sizes())


def guest_program(name: str, **constants: object) -> str:
    """Return the text of a program of `tests/boots/guest`, some constants of which have other values."""
    text = (_PROGRAMS / f"{name}.py").read_text()
    for constant, value in constants.items():
        line = re.compile(rf"^({constant}(?:: Final)? = ).*$", re.MULTILINE)
        text, changed = line.subn(rf"\g<1>{value!r}", text)
        assert changed == 1, f"{name}.py has {changed} lines that set {constant}"
    return text


def run_script(place: Path, script: str, *arguments: str, kernel: str = QUICK_KERNEL) -> GuestScript:
    """Run a program in a guest; see `GuestScript.run`."""
    return GuestScript(place).run(script, *arguments, kernel=kernel)


def seen_in_guest(
    place: Path, script: str, *arguments: str, kernel: str = QUICK_KERNEL
) -> Mapping[str, Any]:
    """Run a program that must not fail in a guest; return the facts that it reported, by name."""
    done = run_script(place, script, *arguments, kernel=kernel)
    assert done.code == 0, done.stderr + done.stdout
    return done.facts


def hardware(place: Path, devices: Sequence[str], disk_bytes: int) -> list[str]:
    """Return the arguments that give a guest more QEMU devices.

    They may use a block device named `disk`, which is empty.
    """
    disk = place / "disk.img"
    with disk.open("wb") as file:
        file.truncate(disk_bytes)
    block = f"--device=-blockdev driver=file,filename={disk},node-name=disk"
    return [block, *(f"--device={device}" for device in devices)]
