# SPDX-License-Identifier: GPL-2.0-only
"""Run in a guest: `dax-soak run` as on a machine of its own, ended in every way, and gone on with.

It reports what it saw, scene by scene; tests/boots/test_run.py asserts.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from pathlib import Path
from typing import Any, Final

from soak.abi.libc import LIBC, checked
from tests.boots.harness.guest_run import (
    COVERING,
    Run,
    command,
    configure,
    exporters,
    left,
    listen_on_loopback,
    metrics,
)
from tests.boots.harness.in_guest import DEADLINE, bound, functions, play, step

CONFIG: Final = Path("/run/soak.toml")
PCI: Final = Path("/sys/bus/pci")
MAPPING_LIMIT: Final = Path("/sys/module/vfio_iommu_type1/parameters/dma_entry_limit")
KNOWN_LEAK: Final = "type1-device-dax-leak"
SMALL: Final = Path("/run/small")
NO_CANARIES: Final = "[canaries]\nevery = 0"
# More of them in 'make soak-long', which changes this line.
KILLS: Final = 100
# Of so many kills one is of that process: each costs a start, which is slow under emulation.
SUPERVISOR_EVERY: Final = 33
EXPORTER_EVERY: Final = 40


def ordinary() -> dict[str, Any]:
    """A run that is paused and continued, killed, and given back without another run."""
    configure(CONFIG, "10m")
    run = Run(CONFIG)
    run.soaks()
    seen: dict[str, Any] = {"functions": functions(), "bound": bound()}
    seen["served"] = "dax_soak_run_active 1.0" in metrics()
    seen["pause"] = command("pause", "latest").stdout
    rested = run.operations()
    seen["rests"] = run.operations() == rested
    seen["continue"] = command("continue", "latest").stdout
    run.until("it goes on", lambda: run.operations() > rested)
    second = command("run", "-c", str(CONFIG))
    seen["second"] = [second.returncode, second.stderr]
    scores = {
        name: Path(f"/proc/{pid}/oom_score_adj").read_text().strip() for name, pid in run.pids().items()
    }
    seen["oom"] = sorted(set(scores.values()))
    run.process.kill()
    run.process.wait(DEADLINE)
    done = command("restore")
    again = command("restore")
    seen["restore"] = {
        "code": done.returncode,
        "said": done.stdout.splitlines(),
        "again": again.stdout,
        "bound": bound(),
        "ledger": (run.directory / "ledger").is_symlink(),
        "memory": left()["memory"],
    }
    return seen


def killed() -> dict[str, Any]:
    """Kill the processes of one run again and again; what was acknowledged must be there at the end."""
    configure(CONFIG, "60m", rate=COVERING)
    choose = random.Random(7)  # noqa: S311 - repeatable on purpose
    run = Run(CONFIG)
    run.soaks()
    starts, begun = 1, 0
    kills = {"supervisor": 0, "worker": 0, "exporter": 0}
    acknowledged: set[int] = set()
    gone_back: list[str] = []

    def look(when: str) -> None:
        """Note where fewer operations have begun than had before."""
        nonlocal begun
        before, begun = begun, run.operations()
        if begun < before:
            there = "" if run.ledger() else ", and there is no ledger"
            gone_back.append(f"{before} before, {begun} {when}{there}")

    # Now and then one has died already that was to be killed, which is none.
    while (number := sum(kills.values()) + 1) <= KILLS:
        time.sleep(choose.uniform(0.0, 0.3))
        look(f"before kill {number}")
        if number % SUPERVISOR_EVERY == 0:
            acknowledged |= {line["seq"] for line in run.events()}
            run.process.kill()
            run.process.wait(DEADLINE)
            kills["supervisor"] += 1
            starts += 1
            step(f"start {starts}, after {number} kills")
            run = Run(CONFIG, "--resume")
            run.soaks(starts)
        elif number % EXPORTER_EVERY == 0 and exporters():
            os.kill(choose.choice(exporters()), signal.SIGKILL)
            kills["exporter"] += 1
        else:
            name, pid = choose.choice(list(run.pids().items()))
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                # It died a moment ago, and the ledger has not heard of the next one yet.
                continue
            kills["worker"] += 1
            look(f"when {name} was killed, {number}")
        look(f"after kill {number}")
    # Left alone for a while, it goes on as ever: all is covered, and each detector sees its canary.
    run.until("all that a pass needs", lambda: not run.uncovered())
    code = run.end(signal.SIGTERM)
    lines = run.events()
    numbers = [line["seq"] for line in lines]
    return {
        "tried": KILLS,
        "kills": kills,
        "starts": starts,
        "resumed": sum(line["event"] == "run.resumed" for line in lines),
        "code": code,
        "gone_back": gone_back,
        "missing": sorted(acknowledged - set(numbers)),
        "in_order": numbers == list(range(1, len(numbers) + 1)),
        "left": left(),
        "verdict": run.verdict(),
        "ledger": (run.directory / "ledger").is_symlink(),
        "events": [line["event"] for line in lines],
        "unexplained": [
            line for line in lines if line["event"] == "violation.found" and line["known_issue"] is None
        ],
    }


def leak_probes(run: Run) -> list[str]:
    probed = run.events("known-issue.probed")
    return [event["result"] for event in probed if event["known_issue"] == KNOWN_LEAK]


def probed_and_swept(run: Run) -> bool:
    """Say whether a later probe was conclusive, and a leak was found to be what it predicts."""
    found = [event["known_issue"] for event in run.events("violation.found")]
    return leak_probes(run)[-1] == "confirmed" and KNOWN_LEAK in found


def device_gone() -> dict[str, Any]:
    """The device under test is taken away in the middle of a run."""
    # Whoever opens the device while it is taken from its driver, as a canary does, and then maps it makes
    # the kernel follow a null pointer: check_vma() of drivers/dax/device.c, seen on 6.12.95.
    configure(CONFIG, "10m", NO_CANARIES, trials=0, holders=0, invalidators=0)
    # The container of the first probe may map nothing, and the probe shows nothing.
    mappings = MAPPING_LIMIT.read_text()
    MAPPING_LIMIT.write_text("0")
    run = Run(CONFIG)
    run.until("a probe", lambda: run.is_there() and leak_probes(run) != [])
    MAPPING_LIMIT.write_text(mappings)
    run.soaks()
    run.until("another probe, and a sweep", lambda: probed_and_swept(run))
    leaks = [event for event in run.events("violation.found") if event["kind"] == "leak"]
    # Whoever listens imports a library for seconds before it hears anything.
    other = next(name for name in functions() if name != functions()[0])
    (PCI / "devices" / other / "uevent").write_text("change")

    def heard() -> bool:
        (PCI / "devices" / other / "uevent").write_text("change")
        return run.events("device.changed") != []

    run.until("uevents", heard)
    device = next(path for path in Path("/sys/bus/dax/devices").iterdir())
    (Path("/sys/bus/dax/drivers/device_dax") / "unbind").write_text(device.name)
    code = run.process.wait(DEADLINE)
    (ended,) = run.events("run.ended")
    seen = {
        "code": code,
        "why": ended["why"],
        "device": device.name,
        "left": left(),
        "probes": leak_probes(run),
        "leaks": [[event["known_issue"], event["undecided"]] for event in leaks],
        "violations": run.verdict()["violations"],
    }
    (Path("/sys/bus/dax/drivers/device_dax") / "bind").write_text(device.name)
    return seen


def full_disk() -> dict[str, Any]:
    """A run whose disk gets full and stays so beyond its end."""
    SMALL.mkdir()
    checked(LIBC.mount(b"none", bytes(SMALL), b"tmpfs", 0, b"size=80m"), "mount")
    configure(CONFIG, "10m")
    run = Run(CONFIG, directory=SMALL / "run")
    run.soaks()
    filler = SMALL / "filler"
    with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(1 << 16)):
            pass
    samples = run.samples()
    # Samples are what fills the last block, and the ledger is copied with each.
    run.until("samples on a full disk", lambda: run.samples() > samples + 1)
    begun = run.operations()
    run.until("operations on a full disk", lambda: run.operations() > begun)
    seen: dict[str, Any] = {"code": run.end(signal.SIGTERM), "said": run.said, "left": left()}
    seen["verdict"] = run.verdict()
    filler.unlink()
    seen["restore"] = command("restore").stdout
    seen["begun"] = [begun, run.operations()]
    seen["after"] = left()
    seen["report"] = command("report", str(run.directory)).stdout
    return seen


def main() -> None:
    listen_on_loopback()
    play({"ordinary": ordinary, "killed": killed, "full": full_disk, "gone": device_gone})


main()
