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
    STATE,
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
# Where runs are kept: a file system of their own, which gets full.
RUNS: Final = STATE / "runs"
# Bytes that hold what the end of a run writes, and not its ledger.
LEFT: Final = 256 << 10
NO_CANARIES: Final = "[canaries]\nevery = 0"
# More of them in 'make soak-long', which changes this line.
KILLS: Final = 100
# Of so many kills one is of that process: each costs a start, which is slow under emulation.
SUPERVISOR_EVERY: Final = 60
EXPORTER_EVERY: Final = 33
# Operations a second: what a pass needs has come together when all are killed.
RATE: Final = 60
# A worker is killed at most so often in a row before it has begun an operation: after five such deaths
# the soak does not restart it, because it seems to die of itself.
IDLE_DEATHS: Final = 3


def ordinary() -> dict[str, Any]:
    """A run that is paused and continued, killed, and restored without another run."""
    configure(CONFIG, "60m", rate=RATE)
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


class Killer:
    """Kills the processes of one run again and again; what was acknowledged must be there at the end."""

    def __init__(self) -> None:
        # The scene before has killed the first supervisor.
        self.kills = {"supervisor": 1, "worker": 0, "exporter": 0}
        self.acknowledged: set[int] = set()
        self.gone_back: list[str] = []
        self._choose = random.Random(7)  # noqa: S311 - repeatable on purpose
        self._begun = 0
        # By worker: how many operations had begun at its last death, and its deaths since then.
        self._deaths: dict[str, tuple[int, int]] = {}
        self.run = self._start()

    def kill_all(self) -> None:
        # Now and then one has died already that was to be killed, which is none.
        while (number := sum(self.kills.values()) + 1) <= KILLS:
            time.sleep(self._choose.uniform(0.0, 0.3))
            self._look(f"before kill {number}")
            if number % SUPERVISOR_EVERY == 0:
                self._kill_supervisor()
            elif number % EXPORTER_EVERY == 0 and exporters():
                os.kill(self._choose.choice(exporters()), signal.SIGKILL)
                self.kills["exporter"] += 1
            else:
                self._kill_worker(number)
            self._look(f"after kill {number}")

    def _start(self) -> Run:
        step(f"start {self.kills['supervisor'] + 1}, after {sum(self.kills.values())} kills")
        run = Run(CONFIG, "--resume")
        run.soaks(self.kills["supervisor"] + 1)
        return run

    def _kill_supervisor(self) -> None:
        self.acknowledged |= {line["seq"] for line in self.run.events()}
        self.run.process.kill()
        self.run.process.wait(DEADLINE)
        self.kills["supervisor"] += 1
        self.run = self._start()

    def _kill_worker(self, number: int) -> None:
        name, pid = self._choose.choice(list(self.run.pids().items()))
        begun = self.run.begun()[name]
        before, deaths = self._deaths.get(name, (-1, 0))
        deaths = deaths + 1 if begun == before else 1
        if deaths > IDLE_DEATHS:
            return
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            # It died a moment ago, and the ledger has not heard of the next one yet.
            return
        self._deaths[name] = begun, deaths
        self.kills["worker"] += 1
        self._look(f"when {name} was killed, {number}")

    def _look(self, when: str) -> None:
        """Note where fewer operations have begun than had before."""
        before, self._begun = self._begun, self.run.operations()
        if self._begun < before:
            there = "" if self.run.ledger() else ", and there is no ledger"
            self.gone_back.append(f"{before} before, {self._begun} {when}{there}")


def killed() -> dict[str, Any]:
    """The run goes on, and is killed again and again."""
    killer = Killer()
    killer.kill_all()
    run = killer.run
    # Left alone for a while, it goes on as ever: all is covered, and each detector sees its canary.
    run.until("all that a pass needs", lambda: not run.uncovered())
    code = run.end(signal.SIGTERM)
    lines = run.events()
    numbers = [line["seq"] for line in lines]
    return {
        "tried": KILLS,
        "kills": killer.kills,
        "starts": len(run.events("workers.started")),
        "resumed": sum(line["event"] == "run.resumed" for line in lines),
        "code": code,
        "gone_back": killer.gone_back,
        "missing": sorted(killer.acknowledged - set(numbers)),
        "in_order": numbers == list(range(1, len(numbers) + 1)),
        "verdict": run.verdict(),
        "events": [line["event"] for line in lines],
        "unexplained": [
            line for line in lines if line["event"] == "violation.found" and line["known_issue"] is None
        ],
        "left": left(),
        "ledger": (run.directory / "ledger").is_symlink(),
    }


def full_disk() -> dict[str, Any]:
    """A run whose disk gets full and stays so beyond its end."""
    configure(CONFIG, "10m")
    run = Run(CONFIG)
    run.soaks()
    filler, reserve = RUNS / "filler", run.directory / ".journal.reserve"
    fill(filler)
    run.until("a violation has spent the reserve", lambda: not is_allocated(reserve))
    # Of the reserve is left what the end of a run writes, and not what its ledger takes.
    fill(filler)
    os.truncate(filler, filler.stat().st_size - LEFT)
    samples = run.samples()
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


def fill(filler: Path) -> None:
    """Take all the space of the disk."""
    with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(1 << 16)):
            pass


def is_allocated(path: Path) -> bool:
    return path.exists() and path.stat().st_blocks > 0


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


def main() -> None:
    listen_on_loopback()
    RUNS.mkdir(parents=True)
    checked(LIBC.mount(b"none", bytes(RUNS), b"tmpfs", 0, b"size=80m"), "mount")
    play({"ordinary": ordinary, "killed": killed, "full": full_disk, "gone": device_gone})


main()
