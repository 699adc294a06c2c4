# SPDX-License-Identifier: GPL-2.0-only
"""Running the lab as a user does, as a process, and watching it from outside."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from prometheus_client.parser import text_string_to_metric_families

from exporter.collector import LedgerCollector
from soak.lab.cache import Cache, cache_directory
from soak.lab.kernels.build import built_kernel
from soak.ledger.layout import LedgerError
from soak.ledger.reader import LedgerReader
from soak.ledger.schema import SUPERVISOR
from soak.supervisor.control import PLANT, ask
from soak.verdict import Judge
from tests.boots.harness.journal_tail import JournalTail
from tests.boots.harness.progress_lines import keep, say
from tests.support.patience import MOST_BEATS, LateError, Patience, Signs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ROOT = Path(__file__).parents[3]
SHARED_KERNEL = ROOT.parent / "shared/kernels/6.12-iommufd/bzImage"
# It has everything built in; the shared one spares the minutes that `build:` takes.
MODULELESS_KERNEL = (
    SHARED_KERNEL if SHARED_KERNEL.exists() else built_kernel(Cache(cache_directory()), "6.12")
)
_WAITS = ("stall", "late-wakeup")
# Faults are shown on the kernel that boots quickest; without it Debian's does as well.
QUICK_KERNEL = str(MODULELESS_KERNEL or "debian:6.12")
# What a configuration has under [workload]. Processors are for what a test is about, and for the tests
# beside it.
CALM = "rate = 20\ntrials = 1\n"
# With this a hundred operations of each kind, which a pass needs, soon have come together.
COVERING = "rate = 200\n"
# Where each operation against a transfer sleeps until it is freed, more workers are no more work.
STALLING = "rate = 100\ninvalidators = 3\nholders = 2\ntrials = 4\n"
FULL_LOAD = ""
_END_SECONDS = 60.0
# A test run that is killed leaves no lab behind.
WITH_THE_TEST = ("setpriv", "--pdeathsig", "KILL", "--")
_MOST_PLANTED = 20
_ANSWER_SECONDS = 300.0

# struct nd_pfn_sb, drivers/nvdimm/pfn.h: where a namespace keeps its own struct pages.
_SUPERBLOCK_OFFSET = 4096
_SIGNATURE = b"NVDIMM_DAX_INFO\0"
_DATA_OFFSET_FIELD = 56
# struct page on x86-64: a constant of the images under test, found with pahole, not with this project.
_STRUCT_PAGE_WORDS = 64 // 4
_REFCOUNT_WORD = 52 // 4


# Values of metrics, by name and labels.
Scrape = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@dataclass
class LabProcess:
    """`dax-soak lab` in a process of its own; `close` ends it whatever happened."""

    run_dir: Path
    arguments: list[str]
    # Whether the command line names the run directory: a run that is resumed has it already.
    named: bool = True
    scrapes: list[Scrape] = field(default_factory=list)

    def start(self) -> Self:
        self._out = self.run_dir.with_suffix(".out")
        self._err = self.run_dir.with_suffix(".err")
        self._journal = JournalTail(self.run_dir / "journal.jsonl")
        self._judge, self._judged, self._beginnings = Judge(), 0, 0
        self._patience = Patience(self._signs, self._trouble, self._tell)
        command = [
            sys.executable,
            "-m",
            "soak.cli",
            "lab",
            *(("--run-dir", str(self.run_dir)) if self.named else ()),
            "--listen",
            "127.0.0.1:0",
            *self.arguments,
        ]
        keep(self.run_dir)
        say(f"dax-soak lab {shown(self.arguments)}")
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen([*WITH_THE_TEST, *command], stdout=out, stderr=err, cwd=ROOT)
        return self

    @property
    def stdout(self) -> str:
        return self._out.read_text()

    @property
    def stderr(self) -> str:
        return self._err.read_text()

    def wait_until(self, what: str, condition: Callable[[], bool], *, poll_seconds: float = 0.1) -> None:
        """Wait for as long as the lab moves.

        Raises:
            LateError: the condition does not hold; the text has what the lab printed.
        """
        try:
            replace(self._patience, poll_seconds=poll_seconds).wait_until(what, condition)
        except LateError as error:
            raise LateError(f"{error}\n{self.stderr}{self.stdout}") from None

    def finish(self, most_beats: int = MOST_BEATS) -> int:
        """Wait for the end of the lab and return its exit code."""
        patience = Patience(self._signs, news=self._tell, most_beats=most_beats)
        try:
            patience.wait_until("the lab's end", lambda: self.process.poll() is not None)
        except LateError as error:
            raise LateError(f"{error}\n{self.stderr}{self.stdout}") from None
        return self.process.wait()

    def finish_when_covered(self) -> int:
        """Let it soak until every promised cell is covered and each detector has seen its canary.

        Then end it: that takes as long as it takes, however slow the machine is.
        """
        self.wait_until("everything was covered", lambda: not self.uncovered())
        self.interrupt()
        return self.finish()

    def uncovered(self) -> list[str]:
        """Return what the verdict still needs: completed operations, sweeps and canaries."""
        lines = self._journal.lines()
        if self._beginnings != self._journal.beginnings:
            self._beginnings, self._judge, self._judged = self._journal.beginnings, Judge(), 0
        for event in lines[self._judged :]:
            self._judge.add(event)
            self._judged += 1
        return self._judge.unmet()

    def soaks(self) -> None:
        """Wait until the workers are at work."""
        self.wait_until("workers are at work", lambda: self.operations() > 0)

    def plant(self, fault: str) -> None:
        """Have a fault planted now, as `dax-soak plant` does, and wait until it is."""
        before = len(self.events("fault.planted"))
        say(f"plants {fault}")
        answer = ask(self.run_dir, f"{PLANT}{fault}", _ANSWER_SECONDS)
        assert answer == f"the guest plants {fault}"
        self.wait_until(f"{fault} was planted", lambda: len(self.events("fault.planted")) > before)

    def plant_until(self, fault: str, what: str, condition: Callable[[], bool]) -> None:
        """Plant a fault until it was found: on a slow machine not every one has something to hit."""
        for _ in range(_MOST_PLANTED):
            self.plant(fault)
            samples = len(self.events("sample.taken"))
            self.wait_until(
                f"{what}, or three samples were taken",
                lambda: condition() or len(self.events("sample.taken")) > samples + 3,  # noqa: B023 - called at once
            )
            if condition():
                return
        raise LateError(f"{fault} was planted {_MOST_PLANTED} times, and never {what}")

    def stand_still(self) -> None:
        """Stop the guest three times, each time in the middle of some trial.

        That lasts longer than what counts as a stall, and is none.
        """
        pid = self.qemu_pid()
        for _ in range(3):
            os.kill(pid, signal.SIGSTOP)
            time.sleep(3.0)
            os.kill(pid, signal.SIGCONT)
            time.sleep(1.0)

    def _signs(self) -> Signs:
        reader = self.ledger()
        beats = 0
        if reader is not None:
            with reader:
                beats = reader.block(SUPERVISOR).get("heartbeats")
        console = self.run_dir / "console.log"
        console_size = console.stat().st_size if console.exists() else 0
        return Signs(beats, (self._journal.size, console_size, self._err.stat().st_size))

    def _trouble(self) -> str | None:
        code = self.process.poll()
        return None if code is None else f"the lab has ended with exit code {code}"

    def _tell(self, what: str, seconds: float) -> None:
        lines = self.stderr.splitlines() or ["nothing yet"]
        say(f"still waiting after {seconds:.0f} s: {what}. The lab: {lines[-1].strip()}")

    def again(self, *arguments: str) -> LabProcess:
        """Return another process for the same run directory, to be entered."""
        return LabProcess(self.run_dir, list(arguments), named=False)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def scraped_at_end(self) -> Scrape:
        """Read what the ledger of a run that has ended says, as an exporter shows it."""
        collector = LedgerCollector(lambda: LedgerReader.open(self.run_dir / "ledger"))
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in collector.collect()
            for sample in family.samples
        }

    def interrupt(self) -> None:
        """Do what Ctrl-C does."""
        self.process.send_signal(signal.SIGINT)

    def close(self) -> None:
        end_process(self.process)

    @property
    def address(self) -> str | None:
        # A boot that was tried again has another exporter.
        found = re.findall(r"Metrics at (http://\S+)", self.stderr)
        return found[-1] if found else None

    def scrape(self) -> Scrape:
        """Fetch the metrics over HTTP, by name and labels."""
        self.wait_until("metrics are served", lambda: self.address is not None)
        with urllib.request.urlopen(self.address or "", timeout=30) as answer:  # noqa: S310 - loopback
            text = answer.read().decode()
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def metric(self, name: str, **labels: str) -> float:
        """Sum the series of a metric that have these labels, from a scrape of now."""
        return total(self.scrape(), name, **labels)

    def ledger(self) -> LedgerReader | None:
        """Open the ledger by its header alone, once it is there."""
        try:
            return LedgerReader.open(self.run_dir / "ledger")
        except (OSError, LedgerError):
            return None

    def operations(self) -> int:
        """Return how many operations were begun."""
        reader = self.ledger()
        if reader is None:
            return 0
        with reader:
            return sum(block.get("begun") for block in reader.blocks("worker"))

    def events(self, name: str | None = None) -> list[dict[str, Any]]:
        return [line for line in self._journal.lines() if name in {None, line["event"]}]

    def found(self, kind: str) -> bool:
        """Say whether a violation of this kind that no known issue explains is in the journal."""
        return any(
            event["kind"] == kind and event["known_issue"] is None
            for event in self.events("violation.found")
        )

    def samples_after(self, name: str) -> list[dict[str, Any]]:
        """Return the samples that were taken after the first event of this name."""
        first = min((event["seq"] for event in self.events(name)), default=None)
        samples = self.events("sample.taken")
        return [event for event in samples if first is not None and event["seq"] > first]

    def verdict(self) -> dict[str, Any]:
        verdict: dict[str, Any] = json.loads((self.run_dir / "verdict.json").read_text())
        return verdict

    def violations(self, kind: str) -> list[dict[str, Any]]:
        return [entry for entry in self.verdict()["violations"] if entry["kind"] == kind]

    def qemu_pid(self) -> int:
        return int(self.events("lab.started")[-1]["qemu_pid"])


def total(scrape: Scrape, name: str, **labels: str) -> float:
    """Sum the series of a scrape that have this name and these labels."""
    return sum(
        value
        for (found, own), value in scrape.items()
        if found == f"dax_soak_{name}" and labels.items() <= dict(own).items()
    )


class NvdimmReader:
    """Reads the guest's struct pages of the device-dax in the file that stands for the NVDIMM.

    It shares nothing with the soak's own way: no BPF, no type information, not even the guest.
    """

    def __init__(self, image: Path) -> None:
        # The open file outlives its name.
        self._file = os.open(image, os.O_RDONLY | os.O_CLOEXEC)

    def extra_references(self) -> int:
        """Sum the references to all pages beside the one that each has from the start.

        Of a compound page only the head has it (memmap_init_compound(), mm/mm_init.c), and pins of any
        of its pages count there.
        """
        head = os.pread(self._file, 4096, _SUPERBLOCK_OFFSET)
        assert head.startswith(_SIGNATURE), "there is no device-dax"
        data = int.from_bytes(head[_DATA_OFFSET_FIELD : _DATA_OFFSET_FIELD + 8], "little")
        # The array lies between the superblock and the data, on a 2 MiB boundary of its own.
        start = 2 << 20
        words = memoryview(os.pread(self._file, data - start, start)).cast("I")
        return sum(count - 1 for count in words[_REFCOUNT_WORD::_STRUCT_PAGE_WORDS] if count)

    def close(self) -> None:
        os.close(self._file)


@contextlib.contextmanager
def lab(run_dir: Path, *arguments: str, workload: str = CALM) -> Iterator[LabProcess]:
    """Start the lab, and end it when the test is done with it.

    `workload` is what its configuration has there, where the test brings none of its own.
    """
    words = list(arguments)
    if "-c" not in words:
        config = run_dir.with_suffix(".toml")
        config.write_text(f"[workload]\n{workload}")
        words += ["-c", str(config)]
    process = LabProcess(run_dir, words).start()
    try:
        yield process
    finally:
        process.close()


def is_lost(process: LabProcess) -> bool:
    """Say whether the machine was found to be lost, and the run judged."""
    return (
        any(event.get("kind") == "lost-machine" for event in process.events("violation.found"))
        and (process.run_dir / "verdict.json").exists()
    )


def check_lost_wakeups(process: LabProcess) -> None:
    """What a run must say of a kernel that loses wake-ups after O_DIRECT, and of one that does not.

    The probe at the start tells which of both this is; the trials then have to agree with it.
    """
    probes = {event["known_issue"]: event for event in process.events("known-issue.probed")}
    lost = probes["o-direct-lost-wakeup"]["lost"]
    # The control: the same truncate, waiting for a page in a pipe, woke up.
    assert probes["o-direct-lost-wakeup"]["control"]["waited"]
    assert probes["o-direct-lost-wakeup"]["control"]["woken"]
    stalls = process.violations("stall")
    assert {entry["interface"] for entry in stalls} == ({"o-direct"} if lost else set())
    assert {entry["known_issue"] for entry in stalls} <= {"o-direct-lost-wakeup"}
    if lost:
        # Of every operation against a transfer, not of a lucky one.
        assert len({entry["operation"] for entry in stalls}) >= len(stalls) - 1
        check_stall_evidence(process)


def check_stall_evidence(process: LabProcess) -> None:
    """What a stall leaves in the journal: who slept where, and who had held what until when."""
    stalls = [event for event in process.events("violation.found") if event["kind"] == "stall"]
    for event in stalls:
        evidence = event["evidence"]
        assert evidence["task"]["state"] in {"S", "D"}
        assert evidence["task"]["stack"]
        assert evidence["recorders"][evidence["worker"]]
        assert evidence["excess_ms"] > 0
    # A page that nobody of the run holds, which a fault plants, may be all that a stall waits for.
    waits = [event for event in process.events("violation.found") if event["kind"] in _WAITS]
    assert any(event["evidence"]["held"] for event in waits)
    assert process.events("operation.freed")


def end_process(process: subprocess.Popen[bytes]) -> None:
    """End a process in order, or by force."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_SECONDS)
    if process.poll() is None:
        process.kill()
        process.wait()


def shown(arguments: Sequence[str]) -> str:
    return " ".join(argument for argument in arguments if not argument.startswith("--device="))


def alive(pid: int) -> bool:
    """Say whether a process is there and is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
