# SPDX-License-Identifier: GPL-2.0-only
"""`dax-soak run` in the guest, as on a machine of its own: configured, started and watched there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pyroute2 import IPRoute

from soak.abi.procfs import task_state
from soak.ledger.layout import LedgerError
from soak.ledger.reader import LedgerReader
from soak.ledger.schema import SUPERVISOR
from tests.boots.harness.in_guest import DEADLINE, bound, functions, step
from tests.boots.harness.run_view import RunView
from tests.support.patience import LateError, Patience, Signs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

STATE: Final = Path("/var/lib/dax-soak")
MEMORY: Final = Path("/run/dax-soak")
MOUNT: Final = Path("/mnt/dax")
PROGRAM: Final = Path("/usr/lib/dax-soak")
# Of the processors of a guest the soak has most.
_POLL_SECONDS: Final = 0.3
# Operations a second of a worker: where programs start and end, the processors are for them.
_RATE: Final = 5
# With this rate a hundred operations of each kind, which a pass needs, soon have come together.
COVERING: Final = 200
_LISTEN: Final = "127.0.0.1:9823"
_COMMAND: Final = [sys.executable, "-m", "soak.cli"]
_ENVIRONMENT: Final = {**os.environ, "PYTHONPATH": str(PROGRAM)}
_LOG: Final = Path("/run/soak.log")


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
    """Return what is left of a soak on the machine."""
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


class Newest(RunView):
    """The newest run, as it is seen from outside."""

    def __init__(self) -> None:
        super().__init__()
        self._reader: LedgerReader | None = None
        self._reader_file: tuple[Path, int, int] | None = None

    @property
    def directory(self) -> Path:
        """The directory that was taken last: `latest` does not name a run before it has begun."""
        taken = {path.parent: path.stat().st_mtime_ns for path in STATE.glob("runs/*/.lock")}
        return max(taken, key=taken.__getitem__, default=STATE / "runs/none")

    def ledger(self) -> LedgerReader | None:
        """Return the ledger, or None: not yet, or not any more where a run was refused.

        It is kept open, for under emulation it takes long to read a header.
        """
        path = self.directory / "ledger"
        try:
            status = path.stat()
            # It moves between disk and memory, where the numbers of files are alike.
            file = (path, status.st_dev, status.st_ino)
            if self._reader is None or self._reader_file != file:
                if self._reader is not None:
                    self._reader.close()
                    self._reader = None
                self._reader, self._reader_file = LedgerReader.open(path), file
        except (OSError, LedgerError):
            return None
        return self._reader

    @contextmanager
    def reading(self) -> Iterator[LedgerReader | None]:
        yield self.ledger()

    def pids(self) -> dict[str, int]:
        reader = self.ledger()
        blocks = [] if reader is None else reader.blocks("worker")
        return {block.block.name: block.get("pid") for block in blocks}

    def begun(self) -> dict[str, int]:
        """Return how many operations each worker has begun."""
        reader = self.ledger()
        blocks = [] if reader is None else reader.blocks("worker")
        return {block.block.name: block.get("begun") for block in blocks}

    def samples(self) -> int:
        reader = self.ledger()
        return 0 if reader is None else reader.block(SUPERVISOR).named_rows("jobs")["sample"]["runs"]

    def until(
        self, what: str, condition: Callable[[], bool], *, poll_seconds: float = _POLL_SECONDS
    ) -> None:
        """Wait for as long as the soak moves; a script in which that was in vain ends."""
        patience = Patience(self.signs, self.trouble, self._report_wait, poll_seconds=poll_seconds)
        try:
            patience.wait_until(what, condition)
        except LateError as error:
            sys.exit(str(error))

    def soaks(self, starts: int = 1) -> None:
        """Wait until the workers of this start are at work."""
        self.until("its start", lambda: self.is_there() and len(self.events("workers.started")) >= starts)
        before = self.operations()
        self.until("operations", lambda: self.operations() > before + 20)

    def is_there(self) -> bool:
        """Return whether the newest run is the one that is meant."""
        return True

    def trouble(self) -> str | None:
        """Return why there is no use in waiting."""
        return None

    def signs(self) -> Signs:
        seen = super().signs()
        return Signs(seen.beats, (*seen.others, self.operations()))

    def _report_wait(self, what: str, seconds: float) -> None:
        events = [event["event"] for event in self.events()[-1:]]
        step(f"still waiting after {seconds:.0f} s: {what}. Its last event: {events}")


class Run(Newest):
    """`dax-soak run`, started here."""

    def __init__(self, config: Path, *words: str) -> None:
        super().__init__()
        with _LOG.open("ab") as log:
            self.process = subprocess.Popen(
                [*_COMMAND, "run", "-c", str(config), *words],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=_ENVIRONMENT,
            )

    def is_there(self) -> bool:
        reader = self.ledger()
        return reader is not None and reader.block(SUPERVISOR).get("pid") == self.process.pid

    @property
    def said(self) -> str:
        """What all runs of this machine have printed last."""
        return _LOG.read_text()[-20_000:]

    def trouble(self) -> str | None:
        code = self.process.poll()
        return None if code is None else f"exit code {code}\n{self.said}"

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(DEADLINE)
