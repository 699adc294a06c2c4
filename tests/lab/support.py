# SPDX-License-Identifier: GPL-2.0-only
"""The lab's host in a process of its own, with a stand-in for QEMU: real ledger, journal and exporter."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from soak import run_directory
from soak.config.sections import Config, RegionSection, RunSection
from soak.journal.writer import read_journal
from soak.lab import protocol
from soak.lab.host.boot import soak_once
from soak.lab.host.boot_error import BootError
from soak.lab.host.timing import Timing
from soak.lab.kernels.store import Kernel
from soak.lab.progress import Progress
from soak.lab.request import LabRequest, lab_config
from soak.ledger.reader import LedgerReader
from soak.ledger.schema import HOST
from soak.model.vocabulary import RegionKind
from soak.process.child import fork
from tests.lab.stand_in_qemu import END, POWERED_OFF, PRINT, WAIT_FOR, Step, message, prepare
from tests.support.journal import valid_line
from tests.support.soak import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

LABEL: Final = "map control vfio-type1"
HANG: Final[Step] = (WAIT_FOR, "/no/such/file")
BOOTED: Final = [message(protocol.BOOTED, release="6.1.0", uptime=1)]
READY: Final = [*BOOTED, message(protocol.READY, uptime=2)]
# Deadlines that no test reaches, however slow the machine is: each shortens the one that it is about.
_NEVER: Final = 1e6
PATIENT: Final = Timing(
    beat_seconds=0.02,
    silent_beats=_NEVER,
    prepare_beats=_NEVER,
    stuck_beats=_NEVER,
    nmi_beats=_NEVER,
    end_beats=_NEVER,
    off_beats=_NEVER,
    drain_seconds=DEADLINE,
    command_seconds=DEADLINE,
    clock_spans=((_NEVER, 2.0),),
)
_POLL_SECONDS: Final = 0.02


def lines(*events: tuple[str, dict[str, Any]], first: int = 1) -> list[Step]:
    """Return the steps that send lines of the guest's journal."""
    steps = []
    for number, (event, fields) in enumerate(events, start=first):
        line = valid_line(number, event, **fields)
        line["number"] = line.pop("seq")
        steps.append((PRINT, json.dumps(line)))
    return steps


SOAKING: Final = [
    *READY,
    *lines(
        ("machine.booted", {"kernel": "6.1.0"}),
        ("run.started", {"run_id": "1", "promised": {LABEL: 5}, "swept": [], "canaries": []}),
    ),
]
COVERED: Final = lines(
    ("sample.taken", {"completed": {LABEL: 5}, "sweeps": {}, "journal_errors": 0}), first=3
)
RUN_ENDED: Final = lines(("run.ended", {"why": "duration elapsed"}), first=4)
EXITED: Final = message(protocol.EXITED, code=0)
# What a run that passes sends from its first operation on.
ENDED: Final[list[Step]] = [*COVERED, *RUN_ENDED, EXITED, (END, POWERED_OFF)]


def lab_request(directory: Path, **options: Any) -> LabRequest:  # noqa: ANN401 - its fields
    """Return a request for a short soak of one region, whose kernel is never read."""
    config = Config(
        run=RunSection(duration=1.0),
        regions=(RegionSection("control", RegionKind.ANONYMOUS, "lab", 16 << 20),),
    )
    request = LabRequest(
        kernel=Kernel("stand-in", "6.1.0", Path("/no/kernel"), None),
        config=lab_config(config),
        filesystem="ext4",
        faults=(),
        append="",
        listen="127.0.0.1:0",
        strict=False,
        layers=(),
        linger_seconds=0.0,
        mirror=False,
        began=time.monotonic(),
        directory=directory,
        run_id="run-1",
    )
    return replace(request, **options)


class HostRun:
    """A boot of the lab with the stand-in as its guest, observed through files and output."""

    def __init__(
        self,
        place: Path,
        steps: Sequence[Step],
        timing: Timing = PATIENT,
        *,
        directory: Path | None = None,
        **options: Any,  # noqa: ANN401 - fields of LabRequest
    ) -> None:
        """Boot, in the directory of an earlier boot if one is given."""
        self.directory = directory or place / "run"
        self.directory.mkdir(exist_ok=True)
        self._shown, self._outcome = place / "shown", place / "outcome"
        environment = prepare(place, steps)
        request = lab_request(self.directory, **{"boot_seconds": DEADLINE, **options})

        def host() -> None:
            os.environ.update(environment)
            # As a shell has it for a program in the foreground.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            with self._shown.open("w", buffering=1) as out:
                self._outcome.write_text(json.dumps(_outcome(request, Progress(out), timing)))

        self.pid = fork(host)
        self._status: int | None = None

    @property
    def shown(self) -> str:
        """The terminal output, in one line."""
        return " ".join(self._shown.read_text().split())

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        path = self.directory / run_directory.JOURNAL
        if not path.exists():
            return []
        return [event for event in read_journal(path) if name in {None, event["event"]}]

    def failures(self) -> list[str]:
        return [event["summary"] for event in self.events("harness.failed")]

    def host(self, name: str) -> Any:  # noqa: ANN401 - a number, or the word that it stands for
        """Return a field of the host's block of the ledger."""
        with LedgerReader.open(self.directory / run_directory.LEDGER) as reader:
            block = reader.block(HOST)
            words = block.block.fields[name].values
            return words[block.get(name)] if words else block.get(name)

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < deadline, self.shown
            assert self.is_running(), self.shown
            time.sleep(_POLL_SECONDS)

    def until_event(self, name: str) -> None:
        self.until(lambda: self.events(name))

    def until_shown(self, text: str) -> None:
        self.until(lambda: self._shown.exists() and text in self.shown)

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def is_running(self) -> bool:
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = status if pid else None
        return self._status is None

    def end(self) -> dict[str, Any]:
        """Wait for the host's end, and return its verdict or its error; see `_outcome`."""
        deadline = time.monotonic() + DEADLINE
        while self.is_running():
            assert time.monotonic() < deadline, self.shown
            time.sleep(_POLL_SECONDS)
        assert self._status == 0, self.shown
        outcome: dict[str, Any] = json.loads(self._outcome.read_text())
        return outcome

    def judged(self) -> tuple[str, list[str]]:
        """Wait for the host's end, and return the verdict and its reasons."""
        outcome = self.end()
        written = json.loads((self.directory / run_directory.VERDICT).read_text())
        assert (written["verdict"], written["reasons"]) == (outcome["verdict"], outcome["reasons"])
        assert self.events("lab.ended")[-1]["verdict"] == self.host("verdict") == outcome["verdict"]
        return outcome["verdict"], outcome["reasons"]

    def kill(self) -> None:
        if self.is_running():
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


class HostRuns:
    """Starts hosts below a directory, and ends them."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._started: list[HostRun] = []

    def start(
        self,
        steps: Sequence[Step],
        timing: Timing = PATIENT,
        **options: Any,  # noqa: ANN401 - of HostRun
    ) -> HostRun:
        place = self._place / f"host-{len(self._started)}"
        place.mkdir()
        self._started.append(HostRun(place, steps, timing, **options))
        return self._started[-1]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for host in self._started:
            host.kill()


def _outcome(request: LabRequest, progress: Progress, timing: Timing) -> dict[str, Any]:
    """Boot, and return verdict or error as JSON fields."""
    try:
        booted = soak_once(request, "tcg", progress, timing)
    except BootError as error:
        return {"error": str(error), "crashed": error.crashed, "started": error.started}
    except KeyboardInterrupt:
        return {"error": "interrupted"}
    verdict = booted.verdict
    return {
        "verdict": verdict.verdict,
        "reasons": list(verdict.reasons),
        "interrupted": booted.interrupted,
    }


def is_served(address: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as answer:
            return b"dax_soak_up" in answer.read()
    except urllib.error.URLError:
        return False
