"""Running the lab as a user does, as a process, and watching it from outside."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from prometheus_client.parser import text_string_to_metric_families

from exporter.collector import LedgerCollector
from soak.journal import read_journal
from soak.lab.cache import Cache, cache_directory
from soak.lab.kernel_build import built_kernel
from soak.ledger import LedgerReader
from soak.ledger_layout import LedgerError
from soak.vocabulary import Detector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

ROOT = Path(__file__).parent.parent
SHARED_KERNEL = ROOT.parent / "shared/kernels/6.12-iommufd/bzImage"
# It has everything built in; the shared one spares the minutes that `build:` takes.
MODULELESS_KERNEL = (
    SHARED_KERNEL if SHARED_KERNEL.exists() else built_kernel(Cache(cache_directory()), "6.12")
)
# Faults are shown on the kernel that boots quickest; without it Debian's does as well.
QUICK_KERNEL = str(MODULELESS_KERNEL or "debian:6.12")
DEADLINE_SECONDS = 420.0
_END_SECONDS = 60.0

# struct nd_pfn_sb, drivers/nvdimm/pfn.h: where a namespace keeps its own struct pages.
_SUPERBLOCK_OFFSET = 4096
_SIGNATURE = b"NVDIMM_DAX_INFO\0"
_DATA_OFFSET_FIELD = 56
# struct page on x86-64: a constant of the images under test, found with pahole, not with this project.
_STRUCT_PAGE_WORDS = 64 // 4
_REFCOUNT_WORD = 52 // 4


class LabTimeoutError(AssertionError):
    """Something did not happen before its deadline; the text has what the lab printed."""


@dataclass
class LabProcess:
    """`dax-soak lab` in a process of its own; `close` ends it whatever happened."""

    run_dir: Path
    arguments: list[str]
    # Whether the command line names the run directory: a run that is resumed has it already.
    named: bool = True
    scrapes: list[dict[tuple[str, tuple[tuple[str, str], ...]], float]] = field(
        default_factory=list
    )

    def start(self) -> Self:
        self._out = self.run_dir.with_suffix(".out")
        self._err = self.run_dir.with_suffix(".err")
        command = [
            *(sys.executable, "-m", "soak.cli", "lab"),
            *(("--run-dir", str(self.run_dir)) if self.named else ()),
            *("--listen", "127.0.0.1:0", *self.arguments),
        ]
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(command, stdout=out, stderr=err, cwd=ROOT)
        return self

    @property
    def stdout(self) -> str:
        return self._out.read_text()

    @property
    def stderr(self) -> str:
        return self._err.read_text()

    def wait_until(
        self, what: str, condition: Callable[[], bool], seconds: float = DEADLINE_SECONDS
    ) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None and not condition():
                raise LabTimeoutError(f"the lab ended before {what}:\n{self.stderr}{self.stdout}")
            if time.monotonic() > deadline:
                raise LabTimeoutError(f"{what} took too long:\n{self.stderr}{self.stdout}")
            time.sleep(0.1)

    def finish(self, seconds: float = DEADLINE_SECONDS) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise LabTimeoutError(f"the lab did not end:\n{self.stderr}{self.stdout}") from None

    def finish_when_covered(self) -> int:
        """Let it soak until every promised cell is covered and each detector has seen its canary.

        Then end it: that takes as long as it takes, however slow the machine is.
        """

        def covered() -> bool:
            scrape = self.scrape()
            required = total(scrape, "coverage_cells_required")
            seen = [
                total(scrape, "canaries_total", detector=detector, result="seen")
                for detector in Detector
            ]
            return 0 < required <= total(scrape, "coverage_cells") and all(seen)

        self.wait_until("everything was covered", covered)
        self.interrupt()
        return self.finish()

    def again(self, *arguments: str) -> LabProcess:
        """Return another process for the same run directory, to be entered."""
        return LabProcess(self.run_dir, list(arguments), named=False)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def scraped_at_end(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
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
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_END_SECONDS)
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    @property
    def address(self) -> str | None:
        match = re.search(r"Metrics at (http://\S+)", self.stderr)
        return match[1] if match else None

    def scrape(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
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
        journal = self.run_dir / "journal.jsonl"
        if not journal.exists():
            return []
        return [line for line in read_journal(journal) if name in {None, line["event"]}]

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
        return int(self.events("lab.started")[0]["qemu_pid"])


def total(
    scrape: dict[tuple[str, tuple[tuple[str, str], ...]], float], name: str, **labels: str
) -> float:
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
        # The open file outlives its name, which the lab removes at the end of the run.
        self._file = os.open(image, os.O_RDONLY | os.O_CLOEXEC)

    def reference_sum(self) -> int | None:
        """Sum the reference counts of all pages, or None while there is no device-dax yet."""
        head = os.pread(self._file, 4096, _SUPERBLOCK_OFFSET)
        if not head.startswith(_SIGNATURE):
            return None
        data = int.from_bytes(head[_DATA_OFFSET_FIELD : _DATA_OFFSET_FIELD + 8], "little")
        # The array lies between the superblock and the data, on a 2 MiB boundary of its own.
        start = 2 << 20
        words = memoryview(os.pread(self._file, data - start, start)).cast("I")
        return sum(words[_REFCOUNT_WORD::_STRUCT_PAGE_WORDS])

    def close(self) -> None:
        os.close(self._file)


@contextlib.contextmanager
def lab(run_dir: Path, *arguments: str) -> Iterator[LabProcess]:
    """Start the lab, and end it when the test is done with it."""
    process = LabProcess(run_dir, list(arguments)).start()
    try:
        yield process
    finally:
        process.close()


def run_script(
    tmp_path: Path,
    script: str,
    *arguments: str,
    kernel: str = QUICK_KERNEL,
    seconds: float = DEADLINE_SECONDS,
) -> subprocess.CompletedProcess[str]:
    """Boot the lab and run a script in the guest, as root, with this program importable.

    It has a namespace of device DAX, a DAX file system at /mnt/dax and unbound edu functions, and
    may import `tests.guest_support`. What it prints is `stdout`, its exit code `returncode`; the
    guest's console is in `stderr` when it does not come up.
    """
    file = tmp_path / "script.py"
    file.write_text(textwrap.dedent(script))
    command = [
        *(sys.executable, "-m", "soak.cli", "lab", "--kernel", kernel),
        *("--script", str(file), "tests/guest_support.py"),
        *("--run-dir", str(tmp_path / "script-run"), "--duration", f"{seconds:g}s", *arguments),
    ]
    return subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=ROOT, timeout=3 * seconds
    )


def seen_in_guest(
    place: Path, script: str, *arguments: str, kernel: str = QUICK_KERNEL, seconds: float = 600.0
) -> Mapping[str, Any]:
    """Run a script that prints what it saw as one JSON object, and return that."""
    done = run_script(place, script, *arguments, kernel=kernel, seconds=seconds)
    if done.returncode:
        raise LabTimeoutError(done.stderr + done.stdout)
    found: Mapping[str, Any] = json.loads(done.stdout)
    return found


def told_in_guest(
    place: Path, script: str, hardware: Sequence[str], disk_bytes: int, kernel: str = QUICK_KERNEL
) -> dict[str, Any]:
    """Run a script that tells facts one by one, in a guest with more QEMU devices; return the facts.

    The devices may use a block device named `disk`, which is empty.
    """
    disk = place / "disk.img"
    with disk.open("wb") as file:
        file.truncate(disk_bytes)
    devices = [f"--device=-blockdev driver=file,filename={disk},node-name=disk"]
    devices += [f"--device={device}" for device in hardware]
    result = run_script(place, script, *devices, kernel=kernel)
    facts = dict(json.loads(line) for line in result.stdout.splitlines() if line.startswith("["))
    assert result.returncode == 0, result.stdout + result.stderr
    assert facts["end"]
    return facts


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
    assert any(event["evidence"]["held"] for event in stalls)
    assert process.events("operation.freed")


def alive(pid: int) -> bool:
    """Say whether a process is there and is no zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
