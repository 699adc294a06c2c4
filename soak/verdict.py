# SPDX-License-Identifier: GPL-2.0-only
"""Compute the verdict of a run from its journal alone, so that it can be recomputed.

Fail prevails over unknown, and unknown over pass. A violation that a known issue explains fails the run
only in strict mode. Insufficient coverage by operations, sweeps or canaries makes the verdict unknown.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from soak.journal.events import event_problem
from soak.journal.reading import DAMAGED, UNFINISHED
from soak.model.vocabulary import Level, ProbeResult, VerdictWord, Violation

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

FORMAT: Final = 1

# Required completed operations of each cell in the run's mix.
REQUIRED_ATTEMPTS: Final = 100
# The same for trials: each lasts as long as its pin, or a stall.
REQUIRED_TRIALS: Final = 3

# Violations that a duration defines, and that are invalid with a wrong clock.
_TIMED: Final = frozenset({Violation.STALL, Violation.LATE_WAKEUP})

_NONE: Final = "none"
_MOST_SPANS: Final = 10
# Kind, region, interface, operation and known issue of a violation.
_Key = tuple[str, str, str, str, str | None]


@dataclass(frozen=True)
class ViolationSummary:
    """All violations with the same key. `count` is in operations, or page references for a leak."""

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
    """Completed and required operations of one cell."""

    operation: str
    region: str
    interface: str
    attempts: int
    required: int


@dataclass(frozen=True)
class Verdict:
    """The result of a run. The fields are those of verdict.json."""

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
    """Takes events in order, and computes the verdict so far at any time."""

    strict: bool = False
    _run: dict[str, Any] = field(default_factory=dict)
    _kernel: str = ""
    _boots: dict[str, None] = field(default_factory=dict)
    _last_time: str = ""
    _ended: bool = False
    # By key, the known issue that a probe has yet to decide, and the boot.
    _violations: dict[tuple[_Key, str | None, str], ViolationSummary] = field(default_factory=dict)
    # Boots with a wrong clock.
    _mistimed: set[str] = field(default_factory=set)
    # The last result of each applicable probe, by known issue and region.
    _probes: dict[tuple[str, str | None], str] = field(default_factory=dict)
    _troubles: dict[str, int] = field(default_factory=dict)
    # Why the harness ended early; cleared when the run resumes, because no data was lost.
    _deaths: dict[str, int] = field(default_factory=dict)
    _completed: Counter[str] = field(default_factory=Counter)
    _journal_errors: int = 0
    _last_seq: int = 0
    # First and last `seq` of each unexplained gap.
    _missing: list[tuple[int, int]] = field(default_factory=list)
    _held: bool = False
    # The number of damaged lines, and a description of the first.
    _damaged: int = 0
    _damage: str = ""
    # A description of a damaged last line, which a crash may have cut.
    _unfinished: str = ""
    # The number of invalid events, and a description of the first.
    _invalid: int = 0
    _first_invalid: str = ""
    _sweeps: Counter[str] = field(default_factory=Counter)
    # Canaries made and seen, by detector.
    _made: Counter[str] = field(default_factory=Counter)
    _seen: Counter[str] = field(default_factory=Counter)

    def add(self, event: Mapping[str, Any]) -> None:
        """Process one line of the journal, or an event that replaces a damaged line."""
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
        problem = event_problem(event)
        if problem is not None:
            self._first_invalid = self._first_invalid or f"line {event['seq']}: {problem}"
            self._invalid += 1
            return
        if event["event"] != "lab.ended":  # it comes after the end and contains the verdict
            self._last_time = event["time"]
        handler = _HANDLERS.get(event["event"])
        if handler is not None:
            handler(self, event)

    def verdict(self) -> Verdict:
        """Return the verdict so far."""
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

    def unmet(self) -> list[str]:
        """Return what a running soak still has to cover before its verdict can be pass."""
        return [*self._uncovered(self._coverage())] if self._run else ["no run was started"]

    def _decided(self) -> tuple[list[ViolationSummary], dict[tuple[_Key, str], ViolationSummary]]:
        """Return the violations that are decided, explained or not, and the undecided ones."""
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
        """Return the common result of an issue's probes, or None if those of its regions differ."""
        results = {result for (name, _), result in self._probes.items() if name == issue}
        return results.pop() if len(results) == 1 else None

    def _inconclusive(self, open_ones: Mapping[tuple[_Key, str], ViolationSummary]) -> Iterable[str]:
        for (issue, region), result in self._probes.items():
            if result == ProbeResult.INCONCLUSIVE:
                where = f" on region {region}" if region else ""
                yield f"the probe for {issue}{where} was inconclusive"
        for (_, issue), entry in open_ones.items():
            yield f"{entry.summary}: {issue} may explain it, but its probe was inconclusive"

    def _coverage(self) -> Iterable[Coverage]:
        for label, required in self._run.get("promised", {}).items():
            operation, region, interface = label.split(" ")
            yield Coverage(operation, region, interface, self._completed[label], required)

    def _gaps(self, coverage: Iterable[Coverage]) -> Iterable[str]:
        if self._held:
            yield "journal lines wait in memory for disk space"
        if self._missing:
            yield f"lines of the journal are missing: {_spans(self._missing)}"
        if self._damaged:
            yield f"{_lines(self._damaged)} damaged; the first is {self._damage}"
        if self._unfinished and self._ended:
            yield f"{_lines(1)} damaged, after the end of the run: {self._unfinished}"
        if self._invalid:
            yield f"{_lines(self._invalid)} not understood; the first is {self._first_invalid}"
        if self._journal_errors:
            yield f"{self._journal_errors} lines of the journal could not be written"
        if not self._run:
            yield "no run was started"
            return
        if not self._ended:
            yield "the run did not finish"
        yield from self._uncovered(coverage)

    def _uncovered(self, coverage: Iterable[Coverage]) -> Iterable[str]:
        """Yield what the run promised to cover and did not."""
        for cell in coverage:
            if cell.attempts < cell.required:
                yield (
                    f"{cell.operation} of {cell.region} over {cell.interface} completed "
                    f"{cell.attempts} times, expected at least {cell.required}"
                )
        for region in self._run.get("swept", []):
            if not self._sweeps[region]:
                yield f"region {region} was never swept"
        for detector in self._run.get("canaries", []):
            if not self._made[detector]:
                yield f"detector {detector} had no canary"

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
            # No `journal.caught-up` came before: the previous writer died with its waiting lines.
            self._troubles.setdefault("journal lines that waited for disk space were lost", event["seq"])
        self._held = True

    def _journal_caught_up(self, _event: Mapping[str, Any]) -> None:
        self._held = False

    def _journal_gap(self, event: Mapping[str, Any]) -> None:
        """Explain gaps by dropped lines, unless more lines are missing than were dropped."""
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
    """Merge two summaries: add the counts, and keep the text of the later one."""
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
    shown = [f"{begin}-{end}" if begin < end else f"{begin}" for begin, end in spans[:_MOST_SPANS]]
    more = len(spans) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def judge(events: Iterable[Mapping[str, Any]], *, strict: bool = False) -> Verdict:
    """Return the verdict of a whole journal."""
    judging = Judge(strict)
    for event in events:
        judging.add(event)
    return judging.verdict()


def lost_machine_event(summary: str, evidence: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a `lost-machine` violation, which only the lab's host can observe."""
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
