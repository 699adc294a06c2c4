"""Run in a guest: `dax-soak run` as on a machine of its own, ended in every way, and gone on with.

It prints what it saw as JSON; tests/test_lab_run.py says what must have been seen.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pyroute2 import IPRoute

from soak.journal import read_journal
from soak.ledger import LedgerReader

if TYPE_CHECKING:
    from collections.abc import Callable

RUNS: Final = Path("/var/lib/dax-soak/runs")
CONFIG: Final = Path("/run/soak.toml")
PCI: Final = Path("/sys/bus/pci")
LOG: Final = Path("/run/soak.log")
MOUNT: Final = Path("/mnt/dax")
DEADLINE: Final = 120.0
START: Final = [sys.executable, "-m", "soak.cli"]
ENVIRONMENT: Final = {**os.environ, "PYTHONPATH": "/usr/lib/dax-soak"}
KILLS: Final = 200
# Of so many kills one is of the supervisor: each costs a start, which is slow under emulation.
SUPERVISOR_EVERY: Final = 20
EXPORTER_EVERY: Final = 10


def functions() -> list[str]:
    return sorted(
        path.name
        for path in (PCI / "devices").iterdir()
        if (path / "device").read_text().strip() == "0x11e8"
    )


def bound() -> list[str]:
    return [name for name in functions() if (PCI / "devices" / name / "driver").exists()]


def configure(duration: str, **workload: int) -> None:
    device = next(path for path in Path("/dev").glob("dax*") if path.name != "dax")
    keys = "\n".join(f"{key} = {value}" for key, value in workload.items())
    CONFIG.write_text(
        f"""
        [run]
        duration = "{duration}"
        [vfio]
        devices = {json.dumps(functions())}
        [workload]
        mappers = 1
        {keys}
        [leaks]
        sweep = 3
        [[region]]
        name = "dax"
        kind = "device-dax"
        path = "{device}"
        size = "64M"
        [[region]]
        name = "files"
        kind = "fs-dax"
        path = "{MOUNT}"
        [[region]]
        name = "control"
        kind = "anonymous"
        """
    )


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*START, *words],
        check=False, capture_output=True, text=True, timeout=DEADLINE * 2, env=ENVIRONMENT,
    )  # fmt: skip


class Run:
    """`dax-soak run`, started and watched from outside."""

    def __init__(self, *words: str) -> None:
        with LOG.open("ab") as log:
            self.process = subprocess.Popen(
                [*START, "run", "-c", str(CONFIG), *words],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=ENVIRONMENT,
            )  # fmt: skip

    @property
    def directory(self) -> Path:
        return (RUNS / "latest").resolve()

    def events(self, name: str) -> list[dict[str, Any]]:
        journal = self.directory / "journal.jsonl"
        if not journal.exists():
            return []
        return [event for event in read_journal(journal) if event["event"] == name]

    def until(self, what: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline:
                said = LOG.read_text()[-3000:]
                sys.exit(f"not seen: {what} (exit code {self.process.poll()})\n{said}")
            time.sleep(0.05)

    def begun(self) -> int:
        if not (self.directory / "ledger").exists():
            return 0  # not yet, or not any more where a run was refused
        with LedgerReader.open(self.directory / "ledger") as reader:
            return sum(block.get("begun") for block in reader.blocks("worker"))

    def pids(self) -> dict[str, int]:
        with LedgerReader.open(self.directory / "ledger") as reader:
            return {block.block.name: block.get("pid") for block in reader.blocks("worker")}

    def soaks(self, starts: int = 1) -> None:
        """Wait until the workers of this start are at work."""
        self.until("its start", lambda: len(self.events("workers.started")) == starts)
        before = self.begun()
        self.until("operations", lambda: self.begun() > before + 20)

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(DEADLINE)


def exporters() -> list[int]:
    found = []
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                words = (place / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"exporter" in words:
                found.append(int(place.name))
    return found


def metrics() -> str:
    with urllib.request.urlopen("http://127.0.0.1:9823/metrics", timeout=30) as answer:
        return str(answer.read().decode())


def tidy() -> dict[str, Any]:
    """Say what is left of a soak on the machine."""
    return {
        "bound": bound(),
        "files": [path.name for path in MOUNT.iterdir() if path.name != "lost+found"],
        "memory": [path.name for path in Path("/run/dax-soak").iterdir()],
        "exporters": exporters(),
    }


def given_back() -> dict[str, Any]:
    """Kill a run, and have what it took given back without another run."""
    configure("10m")
    run = Run()
    run.soaks()
    run.process.kill()
    run.process.wait(DEADLINE)
    before = bound()
    done = command("restore")
    again = command("restore")
    return {
        "before": before,
        "code": done.returncode,
        "said": done.stdout.splitlines(),
        "again": again.stdout,
        "bound": bound(),
        "ledger": (run.directory / "ledger").is_symlink(),
        "memory": tidy()["memory"],
    }


def ordinary_end() -> dict[str, Any]:
    """A run that is paused, continued and told to end by SIGTERM."""
    configure("10m")
    run = Run()
    run.soaks()
    seen: dict[str, Any] = {"functions": functions(), "bound": bound()}
    seen["served"] = "dax_soak_run_active 1.0" in metrics()
    seen["pause"] = command("pause", "latest").stdout
    rested = run.begun()
    seen["rests"] = run.begun() == rested
    seen["continue"] = command("continue", "latest").stdout
    run.until("it goes on", lambda: run.begun() > rested)
    second = command("run", "-c", str(CONFIG))
    seen["second"] = [second.returncode, second.stderr]
    scores = {
        name: Path(f"/proc/{pid}/oom_score_adj").read_text().strip()
        for name, pid in run.pids().items()
    }
    seen["oom"] = sorted(set(scores.values()))
    seen["code"] = run.end(signal.SIGTERM)
    seen["left"] = tidy()
    seen["verdict"] = json.loads((run.directory / "verdict.json").read_text())
    seen["ledger"] = (run.directory / "ledger").is_symlink()
    seen["events"] = [event["event"] for event in read_journal(run.directory / "journal.jsonl")]
    return seen


def killed() -> dict[str, Any]:
    """Kill the processes of one run again and again; what was acknowledged must be there at the end."""
    configure("60m")
    choose = random.Random(7)  # noqa: S311 - repeatable on purpose
    run = Run()
    run.soaks()
    starts, counts, lost = 1, [], []
    kills = {"supervisor": 0, "worker": 0, "exporter": 0}
    acknowledged: set[int] = set()
    for number in range(1, KILLS + 1):
        time.sleep(choose.uniform(0.0, 0.3))
        counts.append(run.begun())
        if number % SUPERVISOR_EVERY == 0:
            written = read_journal(run.directory / "journal.jsonl")
            acknowledged |= {line["seq"] for line in written}
            run.process.kill()
            run.process.wait(DEADLINE)
            kills["supervisor"] += 1
            starts += 1
            run = Run("--resume")
            run.soaks(starts)
        elif number % EXPORTER_EVERY == 0 and exporters():
            os.kill(choose.choice(exporters()), signal.SIGKILL)
            kills["exporter"] += 1
        else:
            pid = choose.choice(list(run.pids().values()))
            try:
                os.kill(pid, signal.SIGKILL)
                kills["worker"] += 1
            except ProcessLookupError:
                # It died a moment ago, and the ledger has not heard of the next one yet.
                continue
        lost += [seen for seen in counts[-2:] if seen > run.begun()]
    # Left alone for a while, it goes on as ever: each detector sees what is made for it.
    run.until("canaries", lambda: len({line["detector"] for line in run.events("canary.seen")}) > 2)
    code = run.end(signal.SIGTERM)
    lines = list(read_journal(run.directory / "journal.jsonl"))
    numbers = [line["seq"] for line in lines]
    return {
        "kills": kills,
        "starts": starts,
        "resumed": sum(line["event"] == "run.resumed" for line in lines),
        "code": code,
        "gone_back": counts != sorted(counts) or bool(lost),
        "missing": sorted(acknowledged - set(numbers)),
        "in_order": numbers == list(range(1, len(numbers) + 1)),
        "left": tidy(),
        "verdict": json.loads((run.directory / "verdict.json").read_text()),
    }


def device_gone() -> dict[str, Any]:
    """The device under test is taken away in the middle of a run."""
    configure("10m", trials=0, holders=0, invalidators=0)
    run = Run()
    run.soaks()
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
    seen = {"code": code, "why": ended["why"], "device": device.name, "left": tidy()}
    (Path("/sys/bus/dax/drivers/device_dax") / "bind").write_text(device.name)
    return seen


def main() -> None:
    # An exporter listens on loopback, which nobody has brought up.
    with IPRoute() as route:
        route.link("set", index=1, state="up")
    scenes = {
        "restore": given_back,
        "ordinary": ordinary_end,
        "killed": killed,
        "gone": device_gone,
    }
    print(json.dumps({name: scene() for name, scene in scenes.items()}))


main()
