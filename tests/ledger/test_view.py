# SPDX-License-Identifier: GPL-2.0-only
"""One reading of a ledger: exporter, live view and lab show the same of the same ledger."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import pytest
from prometheus_client.exposition import generate_latest

from exporter.collector import LedgerCollector
from soak.lab.progress import Progress
from soak.ledger.reader import LedgerReader
from soak.ledger.schema import NO_KNOWN_ISSUE, RECORDER_COLUMNS, leaks_field
from soak.ledger.view import HEARTBEAT_LIMIT_NS, NANOSECONDS, LedgerView
from soak.model.vocabulary import RunState, VerdictWord, Violation, WorkerState
from soak.report.top.view import Reading, View, make_view
from tests.exporter.support import KNOWN_ISSUE, MAP_FS_DAX, OFFSET_NS, Samples, make_ledger, parse, value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from soak.ledger.reader import BlockSnapshot
    from soak.ledger.writer import Ledger

# The supervisor of `make_ledger` sent its last heartbeat at this monotonic time.
BEAT: Final = 100 * NANOSECONDS
NOW: Final = OFFSET_NS + BEAT
HOUR: Final = 3600 * NANOSECONDS
SECONDS_IN_FLIGHT: Final = 10.0
MAP: Final = {"operation": "map", "region": "fs-dax"}


# Violations by kind and known issue.
Found = dict[tuple[str, str], int]


@dataclass(frozen=True)
class Shown:
    """What all three show; `age` is how long the map of mapper-0 is in flight, in seconds."""

    state: RunState
    active: bool
    verdict: VerdictWord = VerdictWord.UNKNOWN
    age: float | None = None
    found: Found = field(default_factory=dict)


FOUND: Final[dict[tuple[str, str], int]] = {
    (Violation.STALL, NO_KNOWN_ISSUE): 2,
    (Violation.LEAK, KNOWN_ISSUE): 5,
}
LOST: Final[dict[tuple[str, str], int]] = {(Violation.LOST_MACHINE, NO_KNOWN_ISSUE): 1}


def at_work(path: Path, *, lab: bool) -> Ledger:
    """Make a ledger of a run with a map in flight and two kinds of violations."""
    ledger = make_ledger(path, lab=lab)
    mapper, supervisor = ledger.block("mapper-0"), ledger.block("supervisor")
    cell = mapper.index("counts", MAP_FS_DAX.label, "done")[0]
    start_ns = BEAT - int(SECONDS_IN_FLIGHT * NANOSECONDS)
    for column, word in (("cell", cell), ("start_ns", start_ns)):
        mapper.set("recorder", word, 0, RECORDER_COLUMNS.index(column))
    mapper.set("begun", 1)
    mapper.set_word("state", WorkerState.RUNNING)
    mapper.set_at("counts", 7, MAP_FS_DAX.label, "done")
    for (kind, issue), count in FOUND.items():
        supervisor.set_at("violations", count, kind, issue)
    supervisor.set_word("verdict", VerdictWord.FAIL)
    if lab:
        ledger.block("host").set("guest_heartbeat_realtime_ns", NOW)
    return ledger


def lose(ledger: Ledger) -> None:
    host = ledger.block("host")
    host.set_word("state", RunState.LOST)
    host.set_word("verdict", VerdictWord.FAIL)
    host.add("lost_machines", 1)


def end(ledger: Ledger) -> None:
    ledger.block("supervisor").set_word("state", RunState.ENDED)


def give_up_worker(ledger: Ledger) -> None:
    ledger.block("supervisor").set_at("dead", 1, "mapper-0")


def reap_worker(ledger: Ledger) -> None:
    ledger.block("mapper-0").set_word("state", WorkerState.DEAD)


def hang(ledger: Ledger) -> None:
    ledger.block("supervisor").set("heartbeat_ns", BEAT - HEARTBEAT_LIMIT_NS)


def fall_silent(ledger: Ledger) -> None:
    hang(ledger)
    ledger.block("host").set("guest_heartbeat_realtime_ns", NOW - HEARTBEAT_LIMIT_NS)


def set_wrong_clock(ledger: Ledger) -> None:
    ledger.block("supervisor").set("realtime_offset_ns", OFFSET_NS - HOUR)


def set_wrong_clock_and_fall_silent(ledger: Ledger) -> None:
    """Have the guest's clock be ahead by as long as its last heartbeat is ago."""
    fall_silent(ledger)
    ledger.block("supervisor").set("realtime_offset_ns", OFFSET_NS + HEARTBEAT_LIMIT_NS)


def boot_again(ledger: Ledger) -> None:
    """Be a run that its host resumes: all other blocks are those of the guest that died."""
    host = ledger.block("host")
    host.set_word("state", RunState.PREPARING)
    host.set("guest_heartbeat_realtime_ns", NOW - HOUR)
    host.set("heartbeat_realtime_ns", NOW)


def tear(ledger: Ledger) -> None:
    ledger.block("supervisor").view(leaks_field("pmem-a"))[0] += 1


def leave(_: Ledger) -> None:
    pass


UNKNOWN, FAIL = VerdictWord.UNKNOWN, VerdictWord.FAIL
RUNNING, ENDED, LOST_STATE = RunState.RUNNING, RunState.ENDED, RunState.LOST
CASES: Final[dict[str, tuple[bool, Callable[[Ledger], None], Shown]]] = {
    "supervised": (False, leave, Shown(RUNNING, True, FAIL, SECONDS_IN_FLIGHT, FOUND)),
    "supervised, hung": (False, hang, Shown(RUNNING, False, FAIL, SECONDS_IN_FLIGHT, FOUND)),
    "supervised, ended": (False, end, Shown(ENDED, False, FAIL, None, FOUND)),
    "lab": (True, leave, Shown(RUNNING, True, UNKNOWN, SECONDS_IN_FLIGHT, FOUND)),
    "lab, ended": (True, end, Shown(ENDED, False, UNKNOWN, None, FOUND)),
    "lost machine": (True, lose, Shown(LOST_STATE, False, FAIL, None, FOUND | LOST)),
    "worker given up": (False, give_up_worker, Shown(RUNNING, True, FAIL, None, FOUND)),
    "killed worker": (True, reap_worker, Shown(RUNNING, True, UNKNOWN, None, FOUND)),
    "torn group": (False, tear, Shown(RUNNING, True, FAIL, SECONDS_IN_FLIGHT, FOUND)),
    "silent guest": (True, fall_silent, Shown(RUNNING, False, UNKNOWN, SECONDS_IN_FLIGHT, FOUND)),
    "wrong clock": (True, set_wrong_clock, Shown(RUNNING, True, UNKNOWN, SECONDS_IN_FLIGHT, FOUND)),
    "silent guest, wrong clock": (
        True,
        set_wrong_clock_and_fall_silent,
        Shown(RUNNING, False, UNKNOWN, SECONDS_IN_FLIGHT, FOUND),
    ),
    "booting again": (True, boot_again, Shown(RunState.PREPARING, False, UNKNOWN, None, FOUND)),
}


@dataclass(frozen=True)
class Case:
    """A ledger as three programs show it, and what they should show."""

    expected: Shown
    samples: Samples
    view: View
    line: str


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Case]:
    lab, change, expected = CASES[request.param]
    path = tmp_path / "ledger"
    change(at_work(path, lab=lab))
    with LedgerReader.open(path) as reader:
        collector = LedgerCollector(lambda: reader, lambda: NOW)
        yield Case(
            expected,
            parse(generate_latest(collector).decode()),
            make_view(Reading.take(reader, 1, NOW)),
            Progress(io.StringIO()).ledger_line(LedgerView(reader, NOW), 60.0),
        )


def test_state_and_activity_agree(case: Case) -> None:
    assert case.view.state == case.expected.state
    assert value(case.samples, "run_active") == case.expected.active
    over = case.view.state in {RunState.ENDED, RunState.LOST}
    if case.expected.active:
        assert not over
        assert case.view.silent is None
    else:
        # A dead run is never shown as live; one that boots is kept alive by its host.
        assert over or (case.view.silent is None) == (case.view.state is RunState.PREPARING)


def test_verdicts_agree(case: Case) -> None:
    assert case.view.verdict == case.expected.verdict
    for word in VerdictWord:
        assert value(case.samples, "verdict", verdict=word) == (word == case.expected.verdict)


def test_operations_in_flight_agree(case: Case) -> None:
    age = case.expected.age
    doing = {line.name: line.doing for line in case.view.workers if line.doing}
    assert doing == ({} if age is None else {"mapper-0": "map fs-dax"})
    assert value(case.samples, "operations_in_flight", **MAP) == len(doing)
    start = value(case.samples, "oldest_operation_start_timestamp_seconds", **MAP)
    ages = [line.seconds for line in case.view.workers if line.seconds is not None]
    assert ages == ([] if age is None else pytest.approx([NOW / NANOSECONDS - start]))
    if age is None:
        assert start == 0


def test_violations_agree(case: Case) -> None:
    found = {(line.kind, line.known_issue or NO_KNOWN_ISSUE): line.count for line in case.view.violations}
    assert found == case.expected.found
    exported = {
        (labels["kind"], labels["known_issue"]): int(count)
        for (name, pairs), count in case.samples.items()
        for labels in [dict(pairs)]
        if name == "dax_soak_violations_total" and count
    }
    assert exported == found
    unexplained = sum(count for (_, issue), count in found.items() if issue == NO_KNOWN_ISSUE)
    assert f" {unexplained} unexplained" in case.line
    assert f" {found[Violation.LEAK, KNOWN_ISSUE]} leaked" in case.line


def test_operation_counts_agree(case: Case) -> None:
    cell = {**MAP, "interface": "vfio-type1", "outcome": "done"}
    assert value(case.samples, "operations_total", **cell) == 7
    assert [line.total for line in case.view.operations if line.cell == MAP_FS_DAX] == [7]
    assert re.search(r"\b7 ops", case.line)


def test_torn_group_has_no_value_in_any_view(tmp_path: Path) -> None:
    tear(at_work(tmp_path / "ledger", lab=False))
    with LedgerReader.open(tmp_path / "ledger") as reader:
        view = make_view(Reading.take(reader, 1, NOW))
        samples = parse(generate_latest(LedgerCollector(lambda: reader, lambda: NOW)).decode())
    assert {line.name: line.found for line in view.regions}["pmem-a"] is None
    assert {line.name: line.found for line in view.regions}["pmem-b"] == 0
    assert not [name for name, _ in samples if name == "dax_soak_leaked_page_references"]
    assert value(samples, "up") == 0


@pytest.mark.parametrize("age_ns", [HEARTBEAT_LIMIT_NS - 1, HEARTBEAT_LIMIT_NS])
def test_heartbeat_expires_simultaneously_in_all_views(tmp_path: Path, age_ns: int) -> None:
    at_work(tmp_path / "ledger", lab=False)
    with LedgerReader.open(tmp_path / "ledger") as reader:
        view = make_view(Reading.take(reader, 1, NOW + age_ns))
        samples = parse(generate_latest(LedgerCollector(lambda: reader, lambda: NOW + age_ns)).decode())
    expired = age_ns >= HEARTBEAT_LIMIT_NS
    assert value(samples, "run_active") == (not expired)
    assert (view.silent is not None) == expired
    assert view.given_up == expired


def test_missing_heartbeat_is_shown(tmp_path: Path) -> None:
    """A supervisor that died before its first heartbeat must not look like one at work."""
    make_ledger(tmp_path / "ledger", lab=False).block("supervisor").clear()
    with LedgerReader.open(tmp_path / "ledger") as reader:
        view = make_view(Reading.take(reader, 1, NOW))
        assert view.state is RunState.PREPARING
        assert view.no_heartbeat
        assert not LedgerView(reader, NOW).active


def test_host_heartbeat_counts_before_the_guests(tmp_path: Path) -> None:
    """While the guest boots there is no supervisor; a host that is dead too is given up."""
    ledger = make_ledger(tmp_path / "ledger")
    ledger.block("supervisor").clear()
    ledger.block("host").set_word("state", RunState.PREPARING)
    ledger.block("host").set("heartbeat_realtime_ns", NOW)
    with LedgerReader.open(tmp_path / "ledger") as reader:
        booting = make_view(Reading.take(reader, 1, NOW))
        dead = make_view(Reading.take(reader, 1, NOW + HEARTBEAT_LIMIT_NS))
    assert (booting.state, booting.silent, booting.given_up) == (RunState.PREPARING, None, False)
    assert (dead.silent, dead.given_up) == (HEARTBEAT_LIMIT_NS / NANOSECONDS, True)


def test_each_block_is_read_once(tmp_path: Path) -> None:
    """A scrape costs one call for each block, and its groups see one moment of it."""
    at_work(tmp_path / "ledger", lab=True)
    blocks: list[str] = []

    class Counting(LedgerReader):
        def block(self, name: str) -> BlockSnapshot:
            blocks.append(name)
            return super().block(name)

    with Counting.open(tmp_path / "ledger") as reader:
        assert blocks == []
        LedgerCollector(lambda: reader, lambda: NOW).collect()
    assert len(blocks) == len(set(blocks))
    assert {"supervisor", "host", "mapper-0", "holder-0"} <= set(blocks)


def test_loaded_view_does_not_change(tmp_path: Path) -> None:
    """The live view compares readings of different times: what is read late would be too new."""
    ledger = at_work(tmp_path / "ledger", lab=True)
    with LedgerReader.open(tmp_path / "ledger") as reader:
        before = Reading.take(reader, 1, NOW)
        ledger.block("mapper-0").set_at("counts", 27, MAP_FS_DAX.label, "done")
        lose(ledger)
        now = Reading.take(reader, 1 + 2 * NANOSECONDS, NOW)
        view = make_view(now, before)
        assert make_view(before).state is RunState.RUNNING
    (rate,) = [line.rate for line in view.operations if line.cell == MAP_FS_DAX]
    assert rate == pytest.approx(10)
