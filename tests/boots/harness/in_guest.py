# SPDX-License-Identifier: GPL-2.0-only
"""What several scripts of a guest share: `dax-soak run` there, as on a machine of its own."""

from __future__ import annotations

import faulthandler
import json
import os
import subprocess
import sys
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pyroute2 import IPRoute

from soak.abi.procfs import task_state
from soak.ledger.layout import LedgerError
from soak.ledger.reader import LedgerReader
from soak.machine.pci import objections
from soak.verdict import Judge
from tests.boots.harness.journal_tail import JournalTail
from tests.support.patience import LateError, Patience, Signs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from soak.ledger.reader import BlockSnapshot

STATE: Final = Path("/var/lib/dax-soak")
MEMORY: Final = Path("/run/dax-soak")
MOUNT: Final = Path("/mnt/dax")
PROGRAM: Final = Path("/usr/lib/dax-soak")
# For single commands, which end what hangs for ever; whatever moves is waited for.
DEADLINE: Final = 900.0
# The guest's console has the traceback, and whoever waits for the script gives up later.
_QUIET_SECONDS: Final = 240.0
# Of the processors of a guest the soak has most.
_POLL_SECONDS: Final = 0.3
# Operations a second of a worker: where programs start and end, the processors are for them.
_RATE: Final = 20
# With this rate a hundred operations of each kind, which a pass needs, soon have come together.
COVERING: Final = 200
_DEVICES: Final = Path("/sys/bus/pci/devices")
_LISTEN: Final = "127.0.0.1:9823"
_COMMAND: Final = [sys.executable, "-m", "soak.cli"]
_ENVIRONMENT: Final = {**os.environ, "PYTHONPATH": str(PROGRAM)}
_LOG: Final = Path("/run/soak.log")


def functions() -> list[str]:
    return sorted(
        path.name for path in _DEVICES.iterdir() if (path / "device").read_text().strip() == "0x11e8"
    )


def bound() -> list[str]:
    return [name for name in functions() if (_DEVICES / name / "driver").exists()]


def configure(
    path: Path,
    duration: str,
    extra: str = "",
    *,
    size: str = "64M",
    recyclable: bool = False,
    **workload: int,
) -> None:
    """Write a configuration of the guest's devices, with one mapper and one pair for trials."""
    device = next(path for path in Path("/dev").glob("dax*") if path.name != "dax")
    wanted = {"mappers": 1, "trials": 1, "rate": _RATE, **workload}
    keys = "\n".join(f"{key} = {value}" for key, value in wanted.items())
    path.write_text(
        f"""
        [run]
        duration = "{duration}"
        [vfio]
        devices = {json.dumps(functions())}
        [workload]
        {keys}
        [leaks]
        sweep = 3
        {extra}
        [[region]]
        name = "dax"
        kind = "device-dax"
        path = "{device}"
        size = "{size}"
        recyclable = {json.dumps(recyclable)}
        [[region]]
        name = "files"
        kind = "fs-dax"
        path = "{MOUNT}"
        [[region]]
        name = "control"
        kind = "anonymous"
        """
    )


def listen_on_loopback() -> None:
    """Bring up what an exporter listens on, as nobody else does here."""
    with IPRoute() as route:
        route.link("set", index=1, state="up")


def metrics() -> str:
    with urllib.request.urlopen(f"http://{_LISTEN}/metrics", timeout=30) as answer:
        return str(answer.read().decode())


def exporters() -> list[int]:
    found = []
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                # The command line of a process that died in the kernel with its memory locked is waited
                # for for ever.
                if task_state(int(place.name)) == "D":
                    continue
                words = (place / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"exporter" in words:
                found.append(int(place.name))
    return found


def left() -> dict[str, Any]:
    """Say what is left of a soak on the machine."""
    return {
        "bound": bound(),
        "files": [path.name for path in MOUNT.glob("dax-soak*")],
        "memory": [path.name for path in MEMORY.iterdir()],
        "exporters": exporters(),
    }


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*_COMMAND, *words],
        check=False,
        capture_output=True,
        text=True,
        timeout=DEADLINE * 2,
        env=_ENVIRONMENT,
    )


def tell(name: str, value: object) -> None:
    """Print a fact, as a line of JSON. A script that then tells nothing for long shows where it is."""
    # One whose children have a PID namespace of their own can start no thread.
    with suppress(RuntimeError):
        faulthandler.dump_traceback_later(_QUIET_SECONDS)
    sys.stdout.write(json.dumps([name, value]) + "\n")
    sys.stdout.flush()


def step(what: str) -> None:
    """Say what comes next: whoever waits for this script sees it, and is told where it was late."""
    tell("step", what)


def play(scenes: Mapping[str, Callable[[], object]]) -> None:
    """Play one scene after the other, and tell what each has seen."""
    for name, scene in scenes.items():
        step(name)
        tell(name, scene())


def told(address: str) -> str:
    """Say why a PCI function must not be given to vfio; empty where it may be."""
    return "; ".join(objection.text() for objection in objections(address))


def run_tool(*words: str) -> None:
    """Run a program of the guest, which must succeed."""
    subprocess.run(words, check=True, capture_output=True, timeout=120)


@contextmanager
def elsewhere(act: Callable[[], object]) -> Iterator[int]:
    """Have another process do something, and live on meanwhile."""
    (done_out, done_in), (end_out, end_in) = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(end_in)
        act()
        os.write(done_in, b".")
        os.read(end_out, 1)
        os._exit(0)
    os.read(done_out, 1)
    yield pid
    os.close(end_in)
    os.waitpid(pid, 0)


class Newest:
    """The newest run, as it is seen from outside."""

    _tail: JournalTail | None = None
    _judge, _judged = Judge(), 0
    _reader: LedgerReader | None = None
    _reader_file: tuple[Path, int] | None = None

    @property
    def directory(self) -> Path:
        """The directory that was taken last: `latest` does not name a run before it has begun."""
        taken = {path.parent: path.stat().st_mtime_ns for path in STATE.glob("runs/*/.lock")}
        return max(taken, key=taken.__getitem__, default=STATE / "runs/none")

    @property
    def journal(self) -> list[dict[str, Any]]:
        path = self.directory / "journal.jsonl"
        if self._tail is None or self._tail.path != path:
            self._tail = JournalTail(path)
            self._judge, self._judged = Judge(), 0
        return self._tail.lines()

    def events(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.journal if event["event"] == name]

    def ledger(self) -> LedgerReader | None:
        """Return the ledger, or None: not yet, or not any more where a run was refused.

        It is kept open, for under emulation it takes long to read a header.
        """
        path = self.directory / "ledger"
        try:
            file = (path, path.stat().st_ino)
            if self._reader is None or self._reader_file != file:
                if self._reader is not None:
                    self._reader.close()
                    self._reader = None
                self._reader, self._reader_file = LedgerReader.open(path), file
        except (OSError, LedgerError):
            return None
        return self._reader

    def supervisor(self) -> BlockSnapshot | None:
        reader = self.ledger()
        return None if reader is None else reader.block("supervisor")

    def begun(self) -> int:
        reader = self.ledger()
        blocks = [] if reader is None else reader.blocks("worker")
        return sum(block.get("begun") for block in blocks)

    def pids(self) -> dict[str, int]:
        reader = self.ledger()
        blocks = [] if reader is None else reader.blocks("worker")
        return {block.block.name: block.get("pid") for block in blocks}

    def unmet(self) -> list[str]:
        """Return what a pass still needs: completed operations, sweeps, canaries."""
        for line in self.journal[self._judged :]:
            self._judge.add(line)
            self._judged += 1
        return self._judge.unmet()

    @property
    def verdict(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.directory / "verdict.json").read_text())
        return found

    def until(
        self, what: str, condition: Callable[[], bool], *, poll_seconds: float = _POLL_SECONDS
    ) -> None:
        """Wait for as long as the soak moves; a script in which that was in vain ends."""
        patience = Patience(self._signs, self.trouble, self._tell, poll_seconds=poll_seconds)
        try:
            patience.wait_until(what, condition)
        except LateError as error:
            sys.exit(str(error))

    def samples(self) -> int:
        supervisor = self.supervisor()
        return 0 if supervisor is None else supervisor.named_rows("jobs")["sample"]["runs"]

    def soaks(self, starts: int = 1) -> None:
        """Wait until the workers of this start are at work."""
        self.until("its start", lambda: self.is_there() and len(self.events("workers.started")) >= starts)
        before = self.begun()
        self.until("operations", lambda: self.begun() > before + 20)

    def is_there(self) -> bool:
        """Say whether the newest run is the one that is meant."""
        return True

    def trouble(self) -> str | None:
        """Say why there is no use in waiting."""
        return None

    def _signs(self) -> Signs:
        journal = self.directory / "journal.jsonl"
        supervisor = self.supervisor()
        return Signs(
            0 if supervisor is None else supervisor.get("heartbeats"),
            (journal.stat().st_size if journal.exists() else 0, self.begun()),
        )

    def _tell(self, what: str, seconds: float) -> None:
        events = [event["event"] for event in self.journal[-1:]]
        step(f"still waiting after {seconds:.0f} s: {what}. Its last event: {events}")


class Run(Newest):
    """`dax-soak run`, started here."""

    def __init__(self, config: Path, *words: str, directory: Path | None = None) -> None:
        self._directory = directory
        if directory is not None:
            words = (*words, "--run-dir", str(directory))
        with _LOG.open("ab") as log:
            self.process = subprocess.Popen(
                [*_COMMAND, "run", "-c", str(config), *words],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=_ENVIRONMENT,
            )

    @property
    def directory(self) -> Path:
        return super().directory if self._directory is None else self._directory

    def is_there(self) -> bool:
        supervisor = self.supervisor()
        return supervisor is not None and supervisor.get("pid") == self.process.pid

    @property
    def said(self) -> str:
        """What all runs of this machine have printed last."""
        return _LOG.read_text()[-6000:]

    def trouble(self) -> str | None:
        code = self.process.poll()
        return None if code is None else f"exit code {code}\n{self.said}"

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(DEADLINE)
