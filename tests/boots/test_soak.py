# SPDX-License-Identifier: GPL-2.0-only
"""A clean soak of Debian's kernel: one boot, in which a worker is killed on the way.

The kernel comes out of a build tree, as that of a commit which a bisection finds good.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest

from soak.journal.writer import read_journal
from soak.verdict import judge
from tests.boots.harness.build_tree import build
from tests.boots.harness.evidence import check_lost_wakeups
from tests.boots.harness.lab import STALLING, LabProcess, lab
from tests.boots.harness.nvdimm import NvdimmReader
from tests.boots.harness.scrape import total
from tests.lab.test_build_tree import shown
from tests.support.processes import alive
from tests.support.program import dax_soak

if TYPE_CHECKING:
    from contextlib import ExitStack
    from pathlib import Path

    from tests.boots.harness.shared_setups import SharedSetUps

pytestmark = pytest.mark.lab(seconds=100)

SEED = "77"
KNOWN_LEAK = "type1-device-dax-leak"
LOST_WAKEUP = "o-direct-lost-wakeup"


@dataclass
class Soaked:
    """What was seen of a run from outside while it ran, and after."""

    process: LabProcess
    code: int = -1
    leaked_by_image: int = -1
    scrapes: list[Any] = field(default_factory=list)
    first_choices: dict[str, list[tuple[int, int, int]]] = field(default_factory=dict)
    qemu_pid: int = 0
    release: str = ""
    # What was in the kernel's build tree before and after.
    tree: list[Any] = field(default_factory=list)

    @property
    def last(self) -> Any:  # noqa: ANN401 - metrics by name and labels
        """The last scrape of the run while it was active."""
        return next(scrape for scrape in reversed(self.scrapes) if total(scrape, "run_active"))


@pytest.fixture
def soaked(request: pytest.FixtureRequest, shared: SharedSetUps) -> Soaked:
    """Soak once, until all is covered and a worker was killed and replaced on the way."""
    return shared.get(request, "soak", _soak)


def _soak(place: Path, stack: ExitStack) -> Soaked:
    directory, built = place / "run", build(place / "tree")
    built.list_modules("objects")
    tree = [shown(built.place)]
    arguments = (
        "--kernel",
        str(built.place),
        "--duration",
        "1h",
        "--seed",
        SEED,
        "--bisect",
        "--until-covered",
        "--linger",
        "5s",
        "--keep",
    )
    process = stack.enter_context(lab(directory, *arguments, workload=STALLING))
    seen = Soaked(process, release=built.kernel.release, tree=tree)
    process.wait_until("QEMU is started", lambda: process.events("lab.started") != [])
    image = stack.enter_context(contextlib.closing(NvdimmReader(directory / ".nvdimm")))
    # QEMU has it open, too; without --keep it would have no name.
    (directory / ".nvdimm").unlink()
    (directory / ".erst").unlink()
    seen.qemu_pid = process.qemu_pid()
    process.soaks()
    # While canaries are made: one that this disturbs is made again.
    process.plant("kill-worker")

    def covered() -> bool:
        """Look at the run from outside each time that it is asked whether it is over."""
        if process.events("lab.covered"):
            return True
        seen.scrapes.append(process.scrape())
        _note_choices(process, seen)
        return False

    process.wait_until("everything was covered", covered, poll_seconds=1.0)
    seen.code = process.finish()
    seen.leaked_by_image = image.extra_references()
    tree.append(shown(built.place))
    return seen


def _note_choices(process: LabProcess, seen: Soaked) -> None:
    """Keep an early reading of each flight recorder, as long as the choices are few to print."""
    reader = process.ledger()
    if reader is None:
        return
    with reader:
        for name in [block.block.name for block in reader.blocks("worker")]:
            before = reader.block(name).get("ended")
            if name in seen.first_choices or before == 0:
                continue
            block = reader.block(name)
            names = block.block.fields["recorder"].axes[1]
            assert not isinstance(names, int)
            rows = [dict(zip(names, row, strict=True)) for row in block.rows("recorder")]
            # The ring goes on while it is read: what may have been written over is left out.
            oldest = reader.block(name).get("begun") - len(rows)
            kept = [rows[number % len(rows)] for number in range(max(oldest + 1, 0), before)]
            seen.first_choices[name] = [
                (row["choice"], row["offset"], row["length"]) for row in kept if row["end_ns"]
            ]


def test_only_this_kernels_leak_is_found(soaked: Soaked) -> None:
    """The reading of the image says what the kernel did; the soak must have found just that."""
    verdict = soaked.process.verdict()
    leaks = soaked.process.violations("leak")
    if soaked.leaked_by_image:
        assert [(leak["known_issue"], leak["count"]) for leak in leaks] == [
            (KNOWN_LEAK, soaked.leaked_by_image)
        ]
    else:
        assert leaks == []
    others = [entry for entry in verdict["violations"] if entry["kind"] != "leak"]
    assert {entry["known_issue"] for entry in others} <= {LOST_WAKEUP}
    assert verdict["verdict"] == "pass"
    assert soaked.code == 0


def test_probe_at_the_start_agrees_with_the_image(soaked: Soaked) -> None:
    probes = {event["known_issue"]: event for event in soaked.process.events("known-issue.probed")}
    assert (probes[KNOWN_LEAK]["result"] == "confirmed") == (soaked.leaked_by_image > 0)


def test_lost_wakeups_follow_transfers_only(soaked: Soaked) -> None:
    check_lost_wakeups(soaked.process)


def test_wakeups_are_measured_for_every_pin(soaked: Soaked) -> None:
    for interface in ("vmsplice", "process-vm"):
        assert total(soaked.last, "wakeup_delay_seconds_count", interface=interface) > 0
    stalls = sum(entry["count"] for entry in soaked.process.violations("stall"))
    assert 0 <= total(soaked.last, "stalls_total") <= stalls
    assert (total(soaked.last, "stall_seconds_total") > 0) == (stalls > 0)


def test_until_covered_ends_a_run_early(soaked: Soaked) -> None:
    """It ended then, and not when its time was over; the tree is as it was."""
    (ended,) = soaked.process.events("run.ended")
    assert ended["why"].startswith("stopped by")
    assert soaked.process.verdict()["kernel"] == soaked.release
    before, after = soaked.tree
    assert before == after


def test_strict_fails_on_the_known_issue(soaked: Soaked) -> None:
    strict = judge(read_journal(soaked.process.directory / "journal.jsonl"), strict=True)
    assert strict.verdict == ("fail" if soaked.leaked_by_image else "pass")


def test_every_cell_was_covered(soaked: Soaked) -> None:
    coverage = soaked.process.verdict()["coverage"]
    assert {(cell["operation"], cell["region"]) for cell in coverage} >= {
        ("map", "device-dax"),
        ("map", "fs-dax"),
        ("map", "anonymous"),
        ("unmap", "device-dax"),
        ("truncate-down", "fs-dax"),
        ("truncate-up", "fs-dax"),
        ("punch-hole", "fs-dax"),
        ("zero-range", "fs-dax"),
        ("unlink", "fs-dax"),
        ("hold", "fs-dax"),
    }
    assert all(cell["attempts"] >= cell["required"] > 0 for cell in coverage)


def test_fs_dax_is_refused_with_the_right_errno(soaked: Soaked) -> None:
    last = soaked.last
    refused = total(last, "pin_refusals_total", region="fs-dax", errno="EOPNOTSUPP", expected="true")
    assert refused >= 100
    assert total(last, "pin_refusals_total", expected="false") == 0
    assert total(last, "unexpected_pins_total") == 0


def test_a_killed_worker_is_no_violation(soaked: Soaked) -> None:
    deaths = soaked.process.events("worker.died")
    assert [(death["worker"], death["signal"]) for death in deaths] == [("mapper-0", 9)]
    assert len(soaked.process.events("worker.restarted")) == 1
    assert total(soaked.last, "worker_restarts_total", role="mapper") == 1


def test_metrics_are_served_during_the_run(soaked: Soaked) -> None:
    active = [scrape for scrape in soaked.scrapes if total(scrape, "run_active")]
    assert len(active) >= 3
    assert all(total(scrape, "up") == 1 for scrape in soaked.scrapes)
    operations = [total(scrape, "operations_total") for scrape in active]
    assert operations == sorted(operations)
    assert operations[-1] > operations[0]
    assert total(active[-1], "foll_pins_acquired_total") > 0
    info = next(labels for (name, labels) in active[-1] if name == "dax_soak_run_info")
    assert dict(info)["kernel_release"].startswith("6.1.")
    assert dict(info)["filesystem"] == "ext4"


def test_leak_metrics_equal_the_prediction_in_every_scrape(soaked: Soaked) -> None:
    for scrape in soaked.scrapes:
        leaked = total(scrape, "leaked_page_references", known_issue=KNOWN_LEAK)
        assert leaked == total(scrape, "predicted_leaked_page_references", known_issue=KNOWN_LEAK)
        assert total(scrape, "leaked_page_references", known_issue="none") == 0


def test_workers_follow_the_seed(soaked: Soaked) -> None:
    """`--print-choices` needs no kernel, and tells what the flight recorders of the guest hold."""
    assert all(soaked.first_choices.values())
    assert soaked.first_choices.keys() >= {"mapper-0", "mapper-1", "invalidator-0"}
    count = 1 + max(row[0] for rows in soaked.first_choices.values() for row in rows)
    configuration = str(soaked.process.directory.with_suffix(".toml"))
    printed = dax_soak("lab", "--seed", SEED, "-c", configuration, "--print-choices", str(count))
    assert printed.returncode == 0, printed.stderr
    told = {
        (words[0], int(words[1])): (int(_after(words, "offset")), int(_after(words, "length")))
        for words in map(str.split, printed.stdout.splitlines())
    }
    for worker, rows in soaked.first_choices.items():
        for number, offset, length in rows:
            assert told[worker, number] == (offset, length)


def _after(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


def test_the_journal_is_numbered_and_complete(soaked: Soaked) -> None:
    events = soaked.process.events()
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    names = [event["event"] for event in events]
    for wanted in ("lab.started", "machine.booted", "run.started", "sample.taken", "run.ended"):
        assert wanted in names
    assert {"time", "monotonic", "boot_id", "event", "level"} <= set(events[0])


def test_verdict_can_be_computed_from_the_journal(soaked: Soaked) -> None:
    recomputed = judge(read_journal(soaked.process.directory / "journal.jsonl"))
    written = soaked.process.verdict()
    assert recomputed.verdict == written["verdict"]
    assert [vars(entry) for entry in recomputed.violations] == written["violations"]
    assert [vars(entry) for entry in recomputed.coverage] == written["coverage"]


def test_the_run_directory_is_complete_without_scratch(soaked: Soaked) -> None:
    left = {path.name for path in soaked.process.directory.iterdir()}
    assert left == {
        "console.log",
        "journal.jsonl",
        "ledger",
        "report.txt",
        "run.toml",
        "verdict.json",
        ".lock",
    }


def test_the_report_fits_80_columns(soaked: Soaked) -> None:
    shown = dax_soak("report", str(soaked.process.directory))
    assert shown.returncode == soaked.code
    assert shown.stdout.endswith("\nverdict   PASS\n")
    for line in shown.stdout.splitlines():
        assert len(line) < 80 or str(soaked.process.directory) in line
    assert shown.stdout == soaked.process.stdout


def test_nothing_is_left_running(soaked: Soaked) -> None:
    assert not alive(soaked.qemu_pid)
