# SPDX-License-Identifier: GPL-2.0-only
"""Run in a guest, twice: a machine of its own crashes in the middle of a run and goes on in another boot.

The NVDIMM outlives the crash, and on it the file system with the run directory and the record of changes.
The first boot
prints what it saw and panics; the second one resumes, and prints what became of it.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Final

from soak.abi.libc import LIBC, checked
from soak.ledger.reader import LedgerReader
from tests.boots.harness.guest_run import STATE, Newest, Run, configure, left, listen_on_loopback
from tests.boots.harness.in_guest import DEADLINE, bound, report

KEPT: Final = Path("/mnt/dax/machine")
CONFIG: Final = KEPT / "soak.toml"
MS_BIND: Final = 0x1000
CANARIES: Final = "[canaries]\nevery = '20s'"


def counters(run: Newest) -> dict[str, int]:
    with LedgerReader.open(run.directory / "ledger") as reader:
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
    configure(CONFIG, "25s", CANARIES, trials=1)
    run = Run(CONFIG, "--resume")
    # The counters go on from the last copy on disk, so there must be one that has something in it.
    run.until("a sample", lambda: run.events("sample.taken") != [])
    saved = run.directory / "ledger.saved"
    run.until("a copy of the ledger", saved.exists)
    with LedgerReader.open(saved) as reader:
        begun = sum(block.get("begun") for block in reader.blocks("worker"))
    leaks = [event for event in run.events("violation.found") if event["kind"] == "leak"]
    seen = {"begun": begun, "leaked": sum(event["count"] for event in leaks), "now": counters(run)}
    report("first boot", seen)
    os.sync()
    time.sleep(0.5)
    Path("/proc/sysrq-trigger").write_text("c")


def second_boot() -> None:
    run = Run(CONFIG, "--resume")
    run.until("that it goes on", lambda: len(run.events("workers.started")) > 1)
    resumed = counters(run)
    code = run.process.wait(DEADLINE)
    lines = run.events()
    report(
        "second boot",
        {
            "resumed": resumed,
            "end": counters(run),
            "code": code,
            "in_order": [line["seq"] for line in lines] == list(range(1, len(lines) + 1)),
            "events": [line["event"] for line in lines],
            "crash": [line for line in lines if line.get("kind") == "lost-machine"],
            "soaked": [line["soaked_seconds"] for line in run.events("run.resumed")],
            "verdict": run.verdict(),
            "bound": bound(),
            "left": left()["files"],
        },
    )


def main() -> None:
    signal.alarm(600)
    listen_on_loopback()
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
