# SPDX-License-Identifier: GPL-2.0-only
"""The verdict of a run: computed from its journal alone, so that anyone can compute it again.

Fail prevails over unknown, unknown over pass. A violation that a known issue explains does not fail a
run unless it is judged strictly. Whatever keeps the detectors from having seen enough makes it unknown.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from soak.journal.events import complaint
from soak.journal.reading import DAMAGED, UNFINISHED
from soak.model.vocabulary import Level, ProbeResult, VerdictWord, Violation

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

FORMAT: Final = 1

# Completed operations that a cell of the run's mix must have seen.
REQUIRED_ATTEMPTS: Final = 100
# The same for an operation against a pin: each takes as long as the pin lasts, or a stall.
REQUIRED_TRIALS: Final = 3

# What is found by a duration, which takes a clock that is right.
_TIMED: Final = frozenset({Violation.STALL, Violation.LATE_WAKEUP})

_NONE: Final = "none"
_MOST_SPANS: Final = 10
# Kind, region, interface, operation and known issue of a violation.
_Key = tuple[str, str, str, str, str | None]


@dataclass(frozen=True)
class ViolationSummary:
    """All violations of one kind in one place. `count`: operations, or page references for a leak."""

    kind: str
    region: str
    interface: str
    operation: str
    count: int
    first_event: int
    known_issue: str | None
    summary: str


@dataclass(frozen=True)
class Coverage:
    """How often one kind of operation was completed, and how often it had to be."""

    operation: str
    region: str
    interface: str
    attempts: int
    required: int


@dataclass(frozen=True)
class Verdict:
    """What a run has shown. The fields are those of verdict.json."""

    run_id: str
    verdict: VerdictWord
    reasons: tuple[str, ...]
    kernel: str
    boot_ids: tuple[str, ...]
    started: str
    ended: str
    seed: int
    violations: tuple[ViolationSummary, ...] = ()
    coverage: tuple[Coverage, ...] = ()
    canaries: tuple[Mapping[str, Any], ...] = ()

    def to_json(self) -> str:
        """Return the text of verdict.json."""
        table = {
            "format": FORMAT,
            "run_id": self.run_id,
            "verdict": str(self.verdict),
            "reasons": list(self.reasons),
            "kernel": self.kernel,
            "boot_ids": list(self.boot_ids),
            "started": self.started,
            "ended": self.ended,
            "seed": self.seed,
            "violations": [vars(entry) for entry in self.violations],
            "coverage": [vars(entry) for entry in self.coverage],
            "canaries": [dict(entry) for entry in self.canaries],
        }
        return json.dumps(table, indent=1) + "\n"


@dataclass
class Judge:
    """Reads events in order and can give the verdict so far at any moment."""

    strict: bool = False
    _run: dict[str, Any] = field(default_factory=dict)
    _kernel: str = ""
    _boots: dict[str, None] = field(default_factory=dict)
    _last_time: str = ""
    _ended: bool = False
    # By all that makes two of them the same, the known issue that a probe has yet to decide on, and the
    # boot in which they were found.
    _violations: dict[tuple[_Key, str | None, str], ViolationSummary] = field(default_factory=dict)
    # The boots whose clock was wrong.
    _mistimed: set[str] = field(default_factory=set)
    # The last result of each probe, by known issue and region, of those that apply.
    _probes: dict[tuple[str, str | None], str] = field(default_factory=dict)
    _troubles: dict[str, int] = field(default_factory=dict)
    # Why the harness itself ended early: forgotten when the run is resumed, for nothing was lost.
    _deaths: dict[str, int] = field(default_factory=dict)
    _completed: Counter[str] = field(default_factory=Counter)
    _journal_errors: int = 0
    _last_seq: int = 0
    # The first and last number of each row of lines that are missing and nothing explains yet.
    _missing: list[tuple[int, int]] = field(default_factory=list)
    _held: bool = False
    # How many lines could not be read or understood, and what was wrong with the first.
    _damaged: int = 0
    _damage: str = ""
    # What is wrong with a line that no other follows: a crash may have cut it short.
    _unfinished: str = ""
    _odd: int = 0
    _oddity: str = ""
    _sweeps: Counter[str] = field(default_factory=Counter)
    # How many canaries of each detector were made, and seen.
    _made: Counter[str] = field(default_factory=Counter)
    _seen: Counter[str] = field(default_factory=Counter)

    def see(self, event: Mapping[str, Any]) -> None:
        """Take in one line of the journal, or of the damage that is in the place of one."""
        if event["event"] == DAMAGED:
            self._damage = self._damage or event["summary"]
            self._damaged += 1
            return
        self._unfinished = event["summary"] if event["event"] == UNFINISHED else ""
        if self._unfinished:
            return
        if event["seq"] > self._last_seq + 1:
            self._missing.append((self._last_seq + 1, event["seq"] - 1))
        self._last_seq = max(self._last_seq, event["seq"])
        wrong = complaint(event)
        if wrong is not None:
            self._oddity = self._oddity or f"line {event['seq']}: {wrong}"
            self._odd += 1
            return
        if event["event"] != "lab.ended":  # which holds this verdict
            self._last_time = event["time"]
        handler = _HANDLERS.get(event["event"])
        if handler is not None:
            handler(self, event)

    def verdict(self) -> Verdict:
        """Judge what was seen so far."""
        coverage = tuple(self._coverage())
        violations, open_ones = self._decided()
        failures = [
            entry.summary
            for entry in (*violations, *(open_ones.values() if self.strict else ()))
            if self.strict or entry.known_issue is None
        ]
        doubts = [*self._troubles, *self._deaths, *self._inconclusive(open_ones), *self._gaps(coverage)]
        if failures:
            word, reasons = VerdictWord.FAIL, [*failures, *doubts]
        elif doubts:
            word, reasons = VerdictWord.UNKNOWN, doubts
        else:
            word, reasons = VerdictWord.PASS, [_passed(violations)]
        return Verdict(
            run_id=self._run.get("run_id", ""),
            verdict=word,
            reasons=tuple(reasons),
            kernel=self._kernel,
            boot_ids=tuple(self._boots),
            started=self._run.get("time", ""),
            ended=self._last_time,
            seed=self._run.get("seed", 0),
            violations=(*violations, *open_ones.values()),
            coverage=coverage,
            canaries=tuple(
                {"detector": detector, "made": self._made[detector], "seen": self._seen[detector]}
                for detector in dict.fromkeys((*self._run.get("canaries", ()), *self._made))
            ),
        )

    def lacking(self) -> list[str]:
        """Return what a run that goes on still has to do before its verdict can be pass."""
        return [*self._unseen(self._coverage())] if self._run else ["no run was started"]

    def _decided(self) -> tuple[list[ViolationSummary], dict[tuple[_Key, str], ViolationSummary]]:
        """Return the violations that a known issue explains or none does, and the undecided ones."""
        decided: dict[_Key, ViolationSummary] = {}
        open_ones: dict[tuple[_Key, str], ViolationSummary] = {}
        for (key, undecided, boot), entry in self._violations.items():
            if entry.kind in _TIMED and boot in self._mistimed:
                continue
            result = self._result(undecided) if undecided else None
            if undecided and result not in {ProbeResult.CONFIRMED, ProbeResult.REFUTED}:
                open_ones[key, undecided] = _summed(open_ones.get((key, undecided)), entry)
                continue
            issue = undecided if result == ProbeResult.CONFIRMED else entry.known_issue
            place = (*key[:4], issue)
            decided[place] = _summed(decided.get(place), replace(entry, known_issue=issue))
        return list(decided.values()), open_ones

    def _result(self, issue: str) -> str | None:
        """Return what the probes of an issue have shown: all of them, if there is one a region."""
        results = {result for (name, _), result in self._probes.items() if name == issue}
        return results.pop() if len(results) == 1 else None

    def _inconclusive(self, open_ones: Mapping[tuple[_Key, str], ViolationSummary]) -> Iterable[str]:
        for (issue, region), result in self._probes.items():
            if result == ProbeResult.INCONCLUSIVE:
                where = f" on region {region}" if region else ""
                yield f"the probe for {issue}{where} was inconclusive"
        for (_, issue), entry in open_ones.items():
            yield f"{entry.summary}: {issue} may explain that, and its probe was inconclusive"

    def _coverage(self) -> Iterable[Coverage]:
        for label, required in self._run.get("promised", {}).items():
            operation, region, interface = label.split(" ")
            yield Coverage(operation, region, interface, self._completed[label], required)

    def _gaps(self, coverage: Iterable[Coverage]) -> Iterable[str]:
        if self._held:
            yield "lines of the journal wait in memory for space on the disk"
        if self._missing:
            yield f"lines of the journal are missing: {_spans(self._missing)}"
        if self._damaged:
            yield f"{_lines(self._damaged)} damaged; the first is {self._damage}"
        if self._unfinished and self._ended:
            yield f"{_lines(1)} damaged, behind the end of the run: {self._unfinished}"
        if self._odd:
            yield f"{_lines(self._odd)} not understood; the first is {self._oddity}"
        if self._journal_errors:
            yield f"{self._journal_errors} lines of the journal could not be written"
        if not self._run:
            yield "no run was started"
            return
        if not self._ended:
            yield "the run did not come to its end"
        yield from self._unseen(coverage)

    def _unseen(self, coverage: Iterable[Coverage]) -> Iterable[str]:
        """Say what the run promised to look at, and looked at too seldom."""
        for cell in coverage:
            if cell.attempts < cell.required:
                yield (
                    f"{cell.operation} of {cell.region} over {cell.interface} was completed "
                    f"{cell.attempts} times of the {cell.required} that are needed"
                )
        for region in self._run.get("swept", []):
            if not self._sweeps[region]:
                yield f"the pages of region {region} were never swept"
        for detector in self._run.get("canaries", []):
            if not self._made[detector]:
                yield f"no fault was made to see whether the detector {detector} finds it"

    def _run_started(self, event: Mapping[str, Any]) -> None:
        if not self._run:
            self._run = dict(event)

    def _machine_booted(self, event: Mapping[str, Any]) -> None:
        self._kernel = event["kernel"]
        self._boots[event["boot_id"]] = None

    def _run_ended(self, _event: Mapping[str, Any]) -> None:
        self._ended = True

    def _violation(self, event: Mapping[str, Any]) -> None:
        kind, issue = event["kind"], event.get("known_issue")
        region = str(event.get("region") or _NONE)
        interface = str(event.get("interface") or _NONE)
        operation = str(event.get("operation") or _NONE)
        place = (kind, region, interface, operation, issue)
        key = (place, event.get("undecided"), event["boot_id"])
        before = self._violations.get(key)
        self._violations[key] = ViolationSummary(
            kind,
            region,
            interface,
            operation,
            count=event["count"] + (before.count if before else 0),
            first_event=before.first_event if before else event["seq"],
            known_issue=issue,
            summary=event["summary"],
        )

    def _probed(self, event: Mapping[str, Any]) -> None:
        if event["applies"]:
            self._probes[event["known_issue"], event.get("region")] = event["result"]

    def _clock_wrong(self, event: Mapping[str, Any]) -> None:
        self._mistimed.add(event["guest_boot_id"])
        self._trouble(event)

    def _run_resumed(self, _event: Mapping[str, Any]) -> None:
        self._ended = False
        self._deaths.clear()

    def _harness_failed(self, event: Mapping[str, Any]) -> None:
        kept = self._deaths if event.get("ended") else self._troubles
        kept.setdefault(event["summary"], event["seq"])

    def _trouble(self, event: Mapping[str, Any]) -> None:
        self._troubles.setdefault(event["summary"], event["seq"])

    def _canary_seen(self, event: Mapping[str, Any]) -> None:
        self._made[event["detector"]] += 1
        self._seen[event["detector"]] += 1

    def _canary_missed(self, event: Mapping[str, Any]) -> None:
        self._made[event["detector"]] += 1
        self._trouble(event)

    def _journal_held(self, event: Mapping[str, Any]) -> None:
        if self._held:
            # A writer that was resumed knows nothing of what the one before it held.
            self._troubles.setdefault(
                "lines of the journal that waited for space on the disk were lost", event["seq"]
            )
        self._held = True

    def _journal_caught_up(self, _event: Mapping[str, Any]) -> None:
        self._held = False

    def _journal_gap(self, event: Mapping[str, Any]) -> None:
        """Take in which lines were given up: what else is missing among them stays unexplained."""
        first, last, given_up = event["first"], event["last"], event["given_up"]
        inside = [span for span in self._missing if first <= span[0] and span[1] <= last]
        if sum(end - begin + 1 for begin, end in inside) <= sum(given_up.values()):
            self._missing = [span for span in self._missing if span not in inside]
        if given_up[Level.ERROR] or given_up[Level.WARNING]:
            self._trouble(event)

    def _sample(self, event: Mapping[str, Any]) -> None:
        self._completed = Counter(event["completed"])
        self._journal_errors = event.get("journal_errors", 0)
        self._sweeps = Counter(event["sweeps"])


_HANDLERS: Final = {
    "run.started": Judge._run_started,  # noqa: SLF001 - the table belongs to the class
    "run.ended": Judge._run_ended,  # noqa: SLF001
    "run.resumed": Judge._run_resumed,  # noqa: SLF001
    "machine.booted": Judge._machine_booted,  # noqa: SLF001
    "violation.found": Judge._violation,  # noqa: SLF001
    "known-issue.probed": Judge._probed,  # noqa: SLF001
    "sample.taken": Judge._sample,  # noqa: SLF001
    "canary.seen": Judge._canary_seen,  # noqa: SLF001
    "canary.missed": Judge._canary_missed,  # noqa: SLF001
    "journal.held": Judge._journal_held,  # noqa: SLF001
    "journal.caught-up": Judge._journal_caught_up,  # noqa: SLF001
    "journal.gap": Judge._journal_gap,  # noqa: SLF001
    "detector.failed": Judge._trouble,  # noqa: SLF001
    "job.failed": Judge._trouble,  # noqa: SLF001
    "limit.reached": Judge._trouble,  # noqa: SLF001
    "expectation.missing": Judge._trouble,  # noqa: SLF001
    "guest.clock-wrong": Judge._clock_wrong,  # noqa: SLF001
    "guest.garbled": Judge._trouble,  # noqa: SLF001
    "guest.lines-lost": Judge._trouble,  # noqa: SLF001
    "harness.failed": Judge._harness_failed,  # noqa: SLF001
}


def _summed(before: ViolationSummary | None, entry: ViolationSummary) -> ViolationSummary:
    """Return both as one, which tells of the later what it says of itself."""
    if before is None:
        return entry
    first = min(before.first_event, entry.first_event)
    return replace(entry, count=entry.count + before.count, first_event=first)


def _passed(violations: Iterable[ViolationSummary]) -> str:
    known = {entry.known_issue for entry in violations if entry.known_issue}
    if known:
        return f"every violation is explained by a known issue ({', '.join(sorted(known))})"
    return "every expectation was met"


def _lines(count: int) -> str:
    return f"{count} line{'' if count == 1 else 's'} of the journal {'is' if count == 1 else 'are'}"


def _spans(spans: Sequence[tuple[int, int]]) -> str:
    told = [f"{begin}-{end}" if begin < end else f"{begin}" for begin, end in spans[:_MOST_SPANS]]
    more = len(spans) - len(told)
    return ", ".join(told) + (f" and {more} more" if more else "")


def judge(events: Iterable[Mapping[str, Any]], *, strict: bool = False) -> Verdict:
    """Compute the verdict of a whole journal."""
    judging = Judge(strict)
    for event in events:
        judging.see(event)
    return judging.verdict()


def lost_machine_event(summary: str, evidence: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of the violation that only a host can see."""
    return {
        "kind": str(Violation.LOST_MACHINE),
        "region": None,
        "interface": None,
        "operation": None,
        "count": 1,
        "known_issue": None,
        "summary": summary,
        "evidence": dict(evidence),
    }
