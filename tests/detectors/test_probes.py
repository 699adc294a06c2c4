# SPDX-License-Identifier: GPL-2.0-only
"""Probes of known issues: what they show, what an inconclusive one leaves open, and how it is settled."""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from exporter.collector import LedgerCollector
from soak.detectors.base import Finding
from soak.detectors.leaks import probe as leak_probes
from soak.detectors.leaks.probe import PinProbe
from soak.detectors.reporter import Reporter
from soak.detectors.stalls import probe as stall_probes
from soak.detectors.stalls.probe import WakeupAnswer, WakeupProbe
from soak.journal.writer import Level
from soak.ledger.reader import LedgerReader
from soak.ledger.schema import NO_KNOWN_ISSUE
from soak.model.known_issues import KNOWN_ISSUES
from soak.model.vocabulary import Interface, Operation, ProbeResult, RegionKind, VerdictWord, Violation
from soak.verdict import judge
from tests.program.test_verdict import BOOTED, ENDED, STARTED, Event, lines, sample, violation
from tests.support.soak import KNOWN_ISSUE, make_ledger

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ASLEEP = {"state": "S", "stack": ["ext4_break_layouts+0x1a/0x30", "ext4_setattr+0x2b0/0x700"]}
# It was woken, and waits for a processor.
RUNNABLE = {**ASLEEP, "state": "R"}
WOKEN = WakeupProbe(waited=True, woken=True, unmapped=False, freed=False, task={})
LOST = WakeupProbe(waited=True, woken=False, unmapped=False, freed=True, task=ASLEEP)
# The truncate came when the transfer was over.
TOO_LATE = replace(WOKEN, waited=False)
STARVED = replace(LOST, task=RUNNABLE)
# It sleeps where it should, and not even a signal ends it: that is another bug.
STUCK = replace(LOST, freed=False)
CONFIRMED, REFUTED, INCONCLUSIVE = ProbeResult


@pytest.mark.parametrize(
    ("probe", "control", "result"),
    [
        (LOST, WOKEN, CONFIRMED),
        (replace(LOST, freed=False, unmapped=True), WOKEN, CONFIRMED),
        (WOKEN, WOKEN, REFUTED),
        (STUCK, WOKEN, REFUTED),
        # No pin wakes what waits: that is not what the issue predicts.
        (LOST, LOST, REFUTED),
        (TOO_LATE, WOKEN, INCONCLUSIVE),
        (STARVED, WOKEN, INCONCLUSIVE),
        (LOST, TOO_LATE, INCONCLUSIVE),
        (LOST, STARVED, INCONCLUSIVE),
        (WOKEN, STARVED, INCONCLUSIVE),
    ],
)
def test_probe_without_a_wait_is_inconclusive(
    probe: WakeupProbe, control: WakeupProbe, result: ProbeResult
) -> None:
    answer = WakeupAnswer(probe, control)
    assert answer.result is result
    assert (answer.facts["lost"], answer.facts["control"]["woken"]) == (probe.lost, control.woken)


@pytest.mark.parametrize(
    ("probe", "result"),
    [
        (PinProbe(pinned=1, left=1), CONFIRMED),
        (PinProbe(pinned=1024, left=1024), CONFIRMED),
        (PinProbe(pinned=1024, left=0), REFUTED),
        # Not what the issue predicts: another bug, and no explanation.
        (PinProbe(pinned=1024, left=1), REFUTED),
        (PinProbe(pinned=0, left=0, refused=errno.ENOMEM), INCONCLUSIVE),
        (PinProbe(pinned=0, left=0), INCONCLUSIVE),
    ],
)
def test_pin_probe_result_follows_the_references(probe: PinProbe, result: ProbeResult) -> None:
    assert probe.result is result


def test_each_known_issue_has_one_probe() -> None:
    probed = [*stall_probes.PROBES, *leak_probes.PROBES]
    assert sorted(probed) == sorted(issue.name for issue in KNOWN_ISSUES)


def probed(result: ProbeResult, *, applies: bool = True, region: str | None = None) -> Event:
    return "known-issue.probed", {
        "known_issue": KNOWN_ISSUE,
        "result": str(result),
        "applies": applies,
        "region": region,
    }


def undecided(count: int = 3) -> Event:
    name, fields = violation(count=count)
    return name, {**fields, "undecided": KNOWN_ISSUE}


def judged(*events: Event, strict: bool = False) -> tuple[VerdictWord, tuple[str, ...]]:
    verdict = judge(lines([BOOTED, STARTED, *events, sample(), ENDED]), strict=strict)
    return verdict.verdict, verdict.reasons


def test_inconclusive_probe_makes_the_verdict_unknown() -> None:
    word, reasons = judged(probed(INCONCLUSIVE))
    assert word is VerdictWord.UNKNOWN
    assert reasons == (f"the probe for {KNOWN_ISSUE} was inconclusive",)


@pytest.mark.parametrize("result", [CONFIRMED, REFUTED])
def test_conclusive_retry_does_not_affect_the_verdict(result: ProbeResult) -> None:
    assert judged(probed(INCONCLUSIVE), probed(result))[0] is VerdictWord.PASS


def test_inapplicable_issue_is_never_undecided() -> None:
    assert judged(probed(INCONCLUSIVE, applies=False))[0] is VerdictWord.PASS


@pytest.mark.parametrize(
    ("after", "word", "issues"),
    [
        ((), VerdictWord.UNKNOWN, [None]),
        ((probed(INCONCLUSIVE),), VerdictWord.UNKNOWN, [None]),
        ((probed(CONFIRMED),), VerdictWord.PASS, [KNOWN_ISSUE]),
        ((probed(REFUTED),), VerdictWord.FAIL, [None]),
    ],
)
def test_violation_stays_undecided_until_the_probe(
    after: tuple[Event, ...], word: VerdictWord, issues: list[str | None]
) -> None:
    events = (probed(INCONCLUSIVE), undecided(), *after)
    assert judged(*events)[0] is word
    verdict = judge(lines([BOOTED, STARTED, *events, sample(), ENDED]))
    assert [(entry.known_issue, entry.count) for entry in verdict.violations] == [
        (issue, 3) for issue in issues
    ]
    # Whoever is strict lets no issue explain anything.
    assert judged(*events, strict=True)[0] is VerdictWord.FAIL


def test_late_decisions_are_added_to_known_ones() -> None:
    events = [probed(INCONCLUSIVE), undecided(3), probed(CONFIRMED), violation(issue=KNOWN_ISSUE)]
    verdict = judge(lines([BOOTED, STARTED, *events, sample(), ENDED]))
    assert [(entry.known_issue, entry.count, entry.first_event) for entry in verdict.violations] == [
        (KNOWN_ISSUE, 6, 4)
    ]


def test_unexplained_violation_fails_despite_inconclusive_probe() -> None:
    assert judged(probed(INCONCLUSIVE), violation("corruption"))[0] is VerdictWord.FAIL


class Lines:
    """A journal that keeps what it is given."""

    errors = 0

    def __init__(self) -> None:
        self.written: list[tuple[str, dict[str, Any]]] = []

    def write(self, event: str, level: Level = Level.INFO, **fields: Any) -> None:  # noqa: ANN401 - as the protocol has it
        self.written.append((event, {"level": level, **fields}))

    def retry(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("settle", "column"),
    [
        (lambda reporter: reporter.probed(KNOWN_ISSUE, CONFIRMED, applies=True), KNOWN_ISSUE),
        (lambda reporter: reporter.probed(KNOWN_ISSUE, REFUTED, applies=True), NO_KNOWN_ISSUE),
        (lambda reporter: reporter.give_up_deciding(), NO_KNOWN_ISSUE),
    ],
)
def test_undecided_violation_is_written_but_not_counted(
    tmp_path: Path, settle: Callable[[Reporter], None], column: str
) -> None:
    block, journal = make_ledger(tmp_path / "ledger").block("supervisor"), Lines()
    reporter = Reporter(block, journal)
    reporter.probed(KNOWN_ISSUE, INCONCLUSIVE, applies=True)
    reporter.report(
        Finding(
            Violation.STALL,
            RegionKind.FS_DAX,
            Interface.O_DIRECT,
            Operation.PUNCH_HOLE,
            2,
            "slept",
            undecided=KNOWN_ISSUE,
        )
    )
    event, fields = journal.written[-1]
    assert (event, fields["undecided"], fields["known_issue"]) == ("violation.found", KNOWN_ISSUE, None)
    assert sum(block.view("violations")) == 0
    reporter.probed(KNOWN_ISSUE, INCONCLUSIVE, applies=True)
    assert sum(block.view("violations")) == 0
    # A supervisor that takes over decides what the one before it could not.
    reporter = Reporter(block, journal)
    settle(reporter)
    assert block.get("violations", *block.index("violations", Violation.STALL, column)) == 2
    settle(reporter)
    assert sum(block.view("violations")) == 2


@pytest.mark.parametrize(
    ("results", "shown"),
    [
        ((CONFIRMED, CONFIRMED), CONFIRMED),
        ((REFUTED, REFUTED), REFUTED),
        ((INCONCLUSIVE, CONFIRMED), INCONCLUSIVE),
        ((CONFIRMED, INCONCLUSIVE), INCONCLUSIVE),
        ((REFUTED, CONFIRMED), INCONCLUSIVE),
    ],
)
def test_an_issue_is_decided_when_all_regions_agree(
    tmp_path: Path, results: tuple[ProbeResult, ...], shown: ProbeResult
) -> None:
    block = make_ledger(tmp_path / "ledger").block("supervisor")
    reporter = Reporter(block, Lines())
    for region, result in zip("ab", results, strict=True):
        reporter.probed(KNOWN_ISSUE, result, applies=True, region=region)
    assert [
        column
        for column in ProbeResult
        if block.get("probes", *block.index("probes", KNOWN_ISSUE, column))
    ] == [shown]


@pytest.mark.parametrize(
    ("result", "confirmed", "inconclusive"),
    [(CONFIRMED, [1], [0]), (REFUTED, [0], [0]), (INCONCLUSIVE, [], [1]), (None, [], [0])],
)
def test_metrics_export_probe_results(
    tmp_path: Path, result: ProbeResult | None, confirmed: list[int], inconclusive: list[int]
) -> None:
    block = make_ledger(tmp_path / "ledger").block("supervisor")
    if result is not None:
        block.set_at("probes", 1, KNOWN_ISSUE, result)
    collector = LedgerCollector(lambda: LedgerReader.open(tmp_path / "ledger"))
    shown = {
        family.name: [sample.value for sample in family.samples]
        for family in collector.collect()
        if family.name.startswith("dax_soak_known_issue_")
    }
    assert shown.get("dax_soak_known_issue_confirmed", []) == confirmed
    assert shown["dax_soak_known_issue_probe_inconclusive"] == inconclusive
