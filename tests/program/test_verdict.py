# SPDX-License-Identifier: GPL-2.0-only
"""The verdict, from hand-written journals: fail over unknown over pass, and nothing is guessed."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soak.cli import main
from soak.journal.writer import FileJournal, Level, read_journal
from soak.model.exit_codes import PLAIN
from soak.model.vocabulary import VerdictWord, Violation
from soak.report.text import text_report
from soak.verdict import REQUIRED_ATTEMPTS, Judge, judge, lost_machine_event
from tests.support.journal import BOOT, valid_fields, valid_line
from tests.support.soak import KNOWN_ISSUE, deterministic

MAP, PUNCH = "map device-dax vfio-type1", "punch-hole fs-dax none"
PROMISED = {MAP: REQUIRED_ATTEMPTS, PUNCH: REQUIRED_ATTEMPTS}
FIELDS = {
    "format",
    "run_id",
    "verdict",
    "reasons",
    "kernel",
    "boot_ids",
    "started",
    "ended",
    "seed",
    "violations",
    "coverage",
    "canaries",
}
VIOLATION_FIELDS = {
    "kind",
    "region",
    "interface",
    "operation",
    "count",
    "first_event",
    "known_issue",
    "summary",
}
COVERAGE_FIELDS = {"operation", "region", "interface", "attempts", "required"}

Fields = dict[str, Any]
Event = tuple[str, Fields]

BOOTED: Event = ("machine.booted", {"kernel": "6.1.0-56-amd64"})
STARTED: Event = (
    "run.started",
    {"run_id": "run-1", "seed": 7, "promised": PROMISED, "swept": ["dax", "files"]},
)
ENDED: Event = ("run.ended", {})


def sample(mapped: int = 900, punched: int = 100, dax: int = 3, files: int = 1) -> Event:
    completed = {MAP: mapped, PUNCH: punched, "unmap device-dax vfio-type1": 5}
    return "sample.taken", {"completed": completed, "sweeps": {"dax": dax, "files": files}}


def violation(
    kind: str = "leak", count: int = 3, issue: str | None = None, summary: str = "pages leak"
) -> Event:
    return "violation.found", {
        "kind": kind,
        "region": "device-dax",
        "interface": "vfio-type1",
        "operation": "map",
        "count": count,
        "known_issue": issue,
        "summary": summary,
        "evidence": {"some": "thing"},
    }


def trouble(event: str, summary: str = "something broke") -> Event:
    return event, {"summary": summary}


GOOD = [BOOTED, STARTED, sample(), ENDED]
TROUBLES = ["detector.failed", "expectation.missing", "harness.failed"]


def lines(events: list[Event]) -> list[Fields]:
    return [valid_line(seq, event, **fields) for seq, (event, fields) in enumerate(events, start=1)]


def word(events: list[Event], *, strict: bool = False) -> VerdictWord:
    return judge(lines(events), strict=strict).verdict


def inserted(event: Event) -> list[Event]:
    """Return the journal of a good run in which this happened, too."""
    return [BOOTED, STARTED, event, sample(), ENDED]


def test_covered_run_without_violations_passes() -> None:
    verdict = judge(lines(GOOD))
    assert verdict.verdict is VerdictWord.PASS
    assert verdict.reasons == ("every expectation was met",)
    assert (verdict.run_id, verdict.seed, verdict.kernel) == ("run-1", 7, "6.1.0-56-amd64")
    assert verdict.boot_ids == (BOOT,)
    assert (verdict.started, verdict.ended) == (lines(GOOD)[1]["time"], lines(GOOD)[3]["time"])
    assert [(cell.attempts, cell.required) for cell in verdict.coverage] == [(900, 100), (100, 100)]


@pytest.mark.parametrize("kind", list(Violation))
def test_unexplained_violation_fails(kind: str) -> None:
    verdict = judge(lines(inserted(violation(kind))))
    assert verdict.verdict is VerdictWord.FAIL
    assert verdict.reasons == ("pages leak",)
    (found,) = verdict.violations
    assert (found.kind, found.count, found.first_event, found.known_issue) == (kind, 3, 3, None)


def test_a_known_issue_passes_and_stays_visible() -> None:
    events = inserted(violation(issue=KNOWN_ISSUE))
    verdict = judge(lines(events))
    assert verdict.verdict is VerdictWord.PASS
    assert KNOWN_ISSUE in verdict.reasons[0]
    assert [found.known_issue for found in verdict.violations] == [KNOWN_ISSUE]
    assert word(events, strict=True) is VerdictWord.FAIL


def test_strict_mode_changes_nothing_else() -> None:
    assert word(GOOD, strict=True) is VerdictWord.PASS
    assert word(inserted(trouble("detector.failed")), strict=True) is VerdictWord.UNKNOWN


def test_equal_violations_add_up_and_keep_first_event() -> None:
    verdict = judge(
        lines([*GOOD[:3], violation(count=3), violation(count=4), violation(issue=KNOWN_ISSUE), ENDED])
    )
    assert [(v.count, v.first_event, v.known_issue) for v in verdict.violations] == [
        (7, 4, None),
        (3, 6, KNOWN_ISSUE),
    ]


def test_lost_machine_fails_an_unfinished_run() -> None:
    lost = ("violation.found", lost_machine_event("the guest's kernel panicked", {"console": "..."}))
    verdict = judge(lines([BOOTED, STARTED, sample(), lost]))
    assert verdict.verdict is VerdictWord.FAIL
    assert verdict.reasons[0] == "the guest's kernel panicked"
    (found,) = verdict.violations
    assert (found.kind, found.region, found.interface, found.operation) == ("lost-machine", *["none"] * 3)


@pytest.mark.parametrize("event", TROUBLES)
def test_hindered_detector_makes_the_verdict_unknown(event: str) -> None:
    verdict = judge(lines(inserted(trouble(event))))
    assert verdict.verdict is VerdictWord.UNKNOWN
    assert verdict.reasons == ("something broke",)


def test_repeated_trouble_is_reported_once() -> None:
    events = [*inserted(trouble("detector.failed"))[:3], *inserted(trouble("detector.failed"))[2:]]
    assert judge(lines(events)).reasons == ("something broke",)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (sample(mapped=99), "map of device-dax over vfio-type1 completed 99 times, expected"),
        (sample(punched=0), "punch-hole of fs-dax over none completed 0 times, expected at least 100"),
        (sample(dax=0), "region dax was never swept"),
        (sample(files=0), "region files was never swept"),
    ],
)
def test_missing_coverage_makes_the_verdict_unknown(changed: Event, reason: str) -> None:
    verdict = judge(lines([BOOTED, STARTED, sample(), changed, ENDED]))
    assert verdict.verdict is VerdictWord.UNKNOWN
    assert len(verdict.reasons) == 1
    assert reason in verdict.reasons[0]


def test_unmet_requirements_shrink_as_the_run_progresses() -> None:
    """Its end alone is not lacking: whoever asks is about to decide on that."""
    judging, left = Judge(), []
    events = [
        BOOTED,
        with_canaries()[1],
        canary("seen"),
        sample(mapped=99, dax=0),
        canary("seen", "stalls"),
        sample(),
    ]
    for line in lines(events):
        judging.add(line)
        left.append(len(judging.unmet()))
    # Two cells, two sweeps and two detectors, of which one after the other is seen.
    assert left == [1, 6, 5, 3, 2, 0]


def test_no_sample_means_no_coverage() -> None:
    verdict = judge(lines([BOOTED, STARTED, ENDED]))
    assert verdict.verdict is VerdictWord.UNKNOWN
    assert len(verdict.reasons) == 4


@pytest.mark.parametrize(
    ("events", "reason"),
    [([], "no run was started"), ([BOOTED], "no run was started"), (GOOD[:-1], "the run did not finish")],
)
def test_incomplete_run_is_unknown(events: list[Event], reason: str) -> None:
    verdict = judge(lines(events))
    assert verdict.verdict is VerdictWord.UNKNOWN
    assert verdict.reasons == (reason,)


def test_failure_prevails_and_keeps_the_doubts() -> None:
    events = [BOOTED, STARTED, trouble("harness.failed", "it died"), violation(), sample(mapped=1)]
    verdict = judge(lines(events))
    assert verdict.verdict is VerdictWord.FAIL
    assert verdict.reasons[0] == "pages leak"
    assert "it died" in verdict.reasons
    assert len(verdict.reasons) == 4
    known = [BOOTED, STARTED, trouble("harness.failed"), violation(issue=KNOWN_ISSUE), sample(), ENDED]
    assert word(known) is VerdictWord.UNKNOWN


@pytest.mark.parametrize(
    "event",
    [
        ("worker.died", {"worker": "mapper-0", "signal": 9, "summary": "mapper-0 was killed"}),
        ("leak.reconciled", {"pages": 3, "summary": "3 pages"}),
    ],
)
def test_other_events_do_not_change_the_verdict(event: Event) -> None:
    assert word(inserted(event)) is VerdictWord.PASS


summaries = st.sampled_from(["one", "two"])
any_event = st.one_of(
    st.sampled_from([BOOTED, STARTED, ENDED, sample(), sample(mapped=5), sample(dax=0)]),
    st.builds(trouble, st.sampled_from(TROUBLES), summaries),
    st.builds(
        violation,
        st.sampled_from(list(Violation)),
        st.integers(1, 5),
        st.sampled_from([None, KNOWN_ISSUE]),
        summaries,
    ),
)
event_lists = st.lists(any_event, max_size=8) | st.lists(any_event, max_size=3).map(
    lambda more: [*GOOD[:3], *more, sample(), ENDED]
)
unexplained = st.builds(violation, st.sampled_from(list(Violation)), st.integers(1, 5))


@given(event_lists, unexplained, st.data(), st.booleans())
@deterministic
def test_an_unexplained_violation_never_passes(
    events: list[Event],
    added: Event,
    data: st.DataObject,
    strict: bool,  # noqa: FBT001 - drawn
) -> None:
    place = data.draw(st.integers(0, len(events)))
    assert word([*events[:place], added, *events[place:]], strict=strict) is VerdictWord.FAIL


@given(event_lists)
@deterministic
def test_verdict_word_follows_from_its_lists(events: list[Event]) -> None:
    verdict = judge(lines(events))
    kinds = [event for event, _ in events]
    failed = any(found.known_issue is None for found in verdict.violations)
    assert (verdict.verdict is VerdictWord.FAIL) == failed
    if verdict.verdict is VerdictWord.PASS:
        assert not set(kinds) & set(TROUBLES)
        assert {"run.started", "run.ended", "sample.taken"} <= set(kinds)
        assert all(cell.attempts >= cell.required for cell in verdict.coverage)
    assert verdict.reasons
    assert sum(found.count for found in verdict.violations) == sum(
        fields["count"] for event, fields in events if event == "violation.found"
    )


@given(event_lists, st.booleans())
@deterministic
def test_verdict_json_has_the_fields_of_its_format(
    events: list[Event],
    strict: bool,  # noqa: FBT001 - drawn
) -> None:
    table = json.loads(judge(lines(events), strict=strict).to_json())
    assert set(table) == FIELDS
    assert table["format"] == 1
    assert table["verdict"] in {"pass", "fail", "unknown"}
    assert all(set(entry) == VIOLATION_FIELDS for entry in table["violations"])
    assert all(set(entry) == COVERAGE_FIELDS for entry in table["coverage"])
    assert all(isinstance(reason, str) for reason in table["reasons"])


@given(event_lists)
@deterministic
def test_file_and_events_give_the_same_verdict(events: list[Event]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "journal.jsonl"
        with FileJournal(path) as journal:
            for line in lines(events):
                journal.append({name: value for name, value in line.items() if name != "seq"})
        read = list(read_journal(path))
    assert judge(read) == judge(lines(events))
    # Whoever follows a run judges as it goes, and comes to the same end.
    following = Judge()
    for line in read:
        following.add(line)
        following.verdict()
    assert following.verdict() == judge(read)


def test_each_word_has_its_exit_code() -> None:
    assert {str(word): code for word, code in PLAIN.verdicts.items()} == {
        "pass": 0,
        "fail": 1,
        "unknown": 3,
    }
    assert PLAIN.usage == 2


@pytest.mark.parametrize(
    ("events", "strict", "code"),
    [
        (GOOD, False, 0),
        (inserted(violation()), False, 1),
        (GOOD[:-1], False, 3),
        (inserted(violation(issue=KNOWN_ISSUE)), False, 0),
        (inserted(violation(issue=KNOWN_ISSUE)), True, 1),
    ],
)
def test_report_prints_the_verdict_and_returns_its_code(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    events: list[Event],
    strict: bool,  # noqa: FBT001 - a parameter of the test
    code: int,
) -> None:
    with FileJournal(tmp_path / "journal.jsonl") as journal:
        for event, fields in events:
            valid = valid_fields(event, **fields)
            journal.write(event, Level(valid.pop("level")), **valid)
    options = ["--strict"] if strict else []
    assert main(["report", str(tmp_path), *options]) == code
    verdict = judge(read_journal(tmp_path / "journal.jsonl"), strict=strict)
    assert capsys.readouterr().out == text_report(verdict, tmp_path.resolve())
    assert main(["report", str(tmp_path), "--format", "json", *options]) == code
    assert json.loads(capsys.readouterr().out)["verdict"] == str(verdict.verdict)


def canary(word: str, detector: str = "leaks") -> Event:
    return f"canary.{word}", {"detector": detector, "made": "a pin", "summary": f"blind: {detector}"}


def with_canaries(*events: Event) -> list[Event]:
    started = (STARTED[0], {**STARTED[1], "canaries": ["leaks", "stalls"]})
    return [BOOTED, started, *events, sample(), ENDED]


def test_seen_canaries_are_counted_and_pass() -> None:
    seen = [canary("seen"), canary("seen"), canary("seen", "stalls")]
    verdict = judge(lines(with_canaries(*seen)))
    assert verdict.verdict is VerdictWord.PASS
    assert json.loads(verdict.to_json())["canaries"] == [
        {"detector": "leaks", "made": 2, "seen": 2},
        {"detector": "stalls", "made": 1, "seen": 1},
    ]
    assert "canaries  detector leaks: 2 of 2 seen" in text_report(verdict, Path("run"))


def test_missed_canary_makes_the_verdict_unknown() -> None:
    events = with_canaries(canary("seen"), canary("missed"), canary("seen", "stalls"))
    verdict = judge(lines(events))
    assert verdict.verdict is VerdictWord.UNKNOWN
    assert verdict.reasons == ("blind: leaks",)
    assert verdict.canaries[0] == {"detector": "leaks", "made": 2, "seen": 1}
    assert judge(lines([*events[:-1], violation(), ENDED])).verdict is VerdictWord.FAIL


def test_detector_without_canary_makes_the_verdict_unknown() -> None:
    failed = ("canary.failed", {"detector": "stalls", "summary": "busy"})
    verdict = judge(lines(with_canaries(canary("seen"), failed)))
    assert verdict.verdict is VerdictWord.UNKNOWN
    assert verdict.reasons == ("detector stalls had no canary",)
    assert verdict.canaries[1] == {"detector": "stalls", "made": 0, "seen": 0}


def test_run_without_promised_canaries_needs_none() -> None:
    assert judge(lines(GOOD)).canaries == ()


def gap(first: int, last: int, **given_up: int) -> Event:
    counts = {"info": 0, "warning": 0, "error": 0, **given_up}
    return "journal.gap", {
        "first": first,
        "last": last,
        "given_up": counts,
        "summary": "the journal dropped lines",
    }


def numbered(*entries: tuple[int, Event]) -> list[Fields]:
    return [
        {**line, "seq": seq}
        for (seq, _), line in zip(entries, lines([e for _, e in entries]), strict=True)
    ]


HELD: Event = ("journal.held", {"summary": "the disk is full"})
CAUGHT_UP: Event = ("journal.caught-up", {"summary": "it is not any more"})
WAITS = "journal lines wait in memory for disk space"


@pytest.mark.parametrize(
    ("numbers", "told"), [((1, 2, 3, 4), None), ((1, 2, 4, 9), "3, 5-8"), ((5, 6, 7, 8), "1-4")]
)
def test_missing_lines_make_the_verdict_unknown(numbers: tuple[int, ...], told: str | None) -> None:
    verdict = judge(numbered(*zip(numbers, GOOD, strict=True)))
    expected = (f"lines of the journal are missing: {told}",) if told else ("every expectation was met",)
    assert verdict.reasons == expected
    assert verdict.verdict is (VerdictWord.UNKNOWN if told else VerdictWord.PASS)


def test_many_gaps_are_abbreviated() -> None:
    entries = [*zip(range(2, 80, 2), [ENDED] * 39, strict=True)]
    (reason, *_) = judge(numbered(*entries)).reasons
    assert reason == ("lines of the journal are missing: 1, 3, 5, 7, 9, 11, 13, 15, 17, 19 and 29 more")


@pytest.mark.parametrize(
    ("given_up", "word_", "reason"),
    [
        (gap(3, 6, info=3), VerdictWord.PASS, "every expectation was met"),
        (gap(3, 6, info=2, error=1), VerdictWord.UNKNOWN, "the journal dropped lines"),
        (gap(3, 6, info=2, warning=1), VerdictWord.UNKNOWN, "the journal dropped lines"),
        # Fewer were given up than are missing, or others.
        (gap(3, 6, info=2), VerdictWord.UNKNOWN, "lines of the journal are missing: 3-4, 6"),
        (gap(3, 5, info=3), VerdictWord.UNKNOWN, "lines of the journal are missing: 6"),
    ],
)
def test_journal_gap_explains_missing_lines(given_up: Event, word_: VerdictWord, reason: str) -> None:
    verdict = judge(numbered((1, BOOTED), (2, STARTED), (5, sample()), (7, given_up), (8, ENDED)))
    assert (verdict.verdict, verdict.reasons) == (word_, (reason,))


def test_waiting_lines_make_the_verdict_unknown() -> None:
    assert judge(lines([BOOTED, STARTED, HELD, sample(), ENDED])).reasons == (WAITS,)
    assert word([BOOTED, STARTED, HELD, sample(), CAUGHT_UP, ENDED]) is VerdictWord.PASS


def test_waiting_lines_of_a_dead_writer_are_lost() -> None:
    verdict = judge(lines([BOOTED, STARTED, HELD, HELD, sample(), CAUGHT_UP, ENDED]))
    assert verdict.verdict is VerdictWord.UNKNOWN
    assert verdict.reasons == ("journal lines that waited for disk space were lost",)
