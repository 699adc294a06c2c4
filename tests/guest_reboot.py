"""Run in a guest, twice: a machine of its own crashes in the middle of a run and goes on in another boot.

The NVDIMM outlives the crash, and on it the file system with run directory and custody. The first boot
prints what it saw and panics; the second one resumes, and prints what became of it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pyroute2 import IPRoute

from soak.abi.libc import LIBC, checked
from soak.journal import read_journal
from soak.ledger import LedgerReader

if TYPE_CHECKING:
    from collections.abc import Callable

KEPT: Final = Path("/mnt/dax/machine")
STATE: Final = Path("/var/lib/dax-soak")
CONFIG: Final = KEPT / "soak.toml"
PCI: Final = Path("/sys/bus/pci/devices")
DEADLINE: Final = 180.0
MS_BIND: Final = 0x1000
COMMAND: Final = [sys.executable, "-m", "soak.cli", "run", "-c", str(CONFIG), "--resume"]


def functions() -> list[str]:
    return sorted(
        path.name for path in PCI.iterdir() if (path / "device").read_text().strip() == "0x11e8"
    )


def configure() -> None:
    device = next(path for path in Path("/dev").glob("dax*") if path.name != "dax")
    CONFIG.write_text(
        f"""
        [run]
        duration = "45s"
        [vfio]
        devices = {json.dumps(functions())}
        [workload]
        mappers = 1
        trials = 1
        [leaks]
        sweep = 3
        [canaries]
        every = "20s"
        [[region]]
        name = "dax"
        kind = "device-dax"
        path = "{device}"
        size = "64M"
        [[region]]
        name = "files"
        kind = "fs-dax"
        path = "/mnt/dax"
        """
    )


def start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        COMMAND,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": "/usr/lib/dax-soak"},
    )


def directory() -> Path:
    return (STATE / "runs/latest").resolve()


def events(name: str) -> list[dict[str, Any]]:
    if not (directory() / "journal.jsonl").exists():
        return []
    return [
        event for event in read_journal(directory() / "journal.jsonl") if event["event"] == name
    ]


def until(process: subprocess.Popen[bytes], what: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"not seen: {what} (exit code {process.poll()})")
        time.sleep(0.05)


def counters() -> dict[str, int]:
    with LedgerReader.open(directory() / "ledger") as reader:
        supervisor = reader.block("supervisor")
        return {
            "begun": sum(block.get("begun") for block in reader.blocks("worker")),
            "leaked": supervisor.named("leaks dax")["leaked_total type1-device-dax-leak"],
            "starts": supervisor.get("starts"),
            "boots": supervisor.get("boots"),
            "first_start": supervisor.get("first_start_realtime_ns"),
            "lost": supervisor.named_rows("violations")["lost-machine"]["none"],
        }


def first_boot() -> None:
    configure()
    process = start()
    # The counters go on from the last copy on disk, so there must be one that has something in it.
    until(process, "samples", lambda: len(events("sample.taken")) > 1)
    saved = directory() / "ledger.saved"
    until(process, "a copy of the ledger", saved.exists)
    with LedgerReader.open(saved) as reader:
        begun = sum(block.get("begun") for block in reader.blocks("worker"))
    seen = {"begun": begun, "violations": len(events("violation.found")), "now": counters()}
    print(json.dumps(seen), flush=True)
    os.sync()
    time.sleep(0.5)
    Path("/proc/sysrq-trigger").write_text("c")


def second_boot() -> None:
    process = start()
    until(process, "that it goes on", lambda: len(events("workers.started")) > 1)
    resumed = counters()
    code = process.wait(DEADLINE)
    lines = list(read_journal(directory() / "journal.jsonl"))
    print(
        json.dumps(
            {
                "resumed": resumed,
                "end": counters(),
                "code": code,
                "in_order": [line["seq"] for line in lines] == list(range(1, len(lines) + 1)),
                "events": [line["event"] for line in lines],
                "crash": [line for line in lines if line.get("kind") == "lost-machine"],
                "soaked": [line["soaked_seconds"] for line in events("run.resumed")],
                "verdict": json.loads((directory() / "verdict.json").read_text()),
                "bound": [name for name in functions() if (PCI / name / "driver").exists()],
                "left": [path.name for path in Path("/mnt/dax").glob("dax-soak*")],
            }
        ),
        flush=True,
    )


def main() -> None:
    signal.alarm(600)
    with IPRoute() as route:
        route.link("set", index=1, state="up")
    first = not KEPT.exists()
    (KEPT / "state").mkdir(parents=True, exist_ok=True)
    STATE.mkdir(parents=True)
    bind = LIBC.mount(bytes(KEPT / "state"), bytes(STATE), b"", MS_BIND, None)
    checked(bind, "mount --bind")
    if first:
        first_boot()
    else:
        second_boot()


main()
