# SPDX-License-Identifier: GPL-2.0-only
"""The events of the journal, each declared once with its levels and fields.

The verdict uses only lines that pass `event_problem`: an undeclared event, or a field that is missing
or of the wrong type, makes the verdict unknown.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from soak.files.printable import shown
from soak.model.vocabulary import Level, ProbeResult, VerdictWord

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

_LABEL_WORDS: Final = 3
_LARGEST_COUNT: Final = (1 << 64) - 1


class Check(NamedTuple):
    """The type of a field: its description and its predicate."""

    what: str
    holds: Callable[[Any], bool]

    def or_null(self) -> Check:
        return Check(f"{self.what} or null", lambda value: value is None or self.holds(value))


class Event(NamedTuple):
    """Allowed levels, required fields and optional fields; undeclared extra fields are allowed."""

    levels: frozenset[Level]
    fields: Mapping[str, Check]
    optional: Mapping[str, Check] = MappingProxyType({})

    def may_have(self, **optional: Check) -> Event:
        return self._replace(optional=optional)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= _LARGEST_COUNT


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_label(text: str) -> bool:
    return len(text.split(" ")) == _LABEL_WORDS


def _one_of(words: type[ProbeResult | VerdictWord | Level]) -> Check:
    return Check(f"one of {', '.join(words)}", lambda value: value in tuple(words))


TEXT: Final = Check("text", lambda value: isinstance(value, str))
FLAG: Final = Check("true or false", lambda value: isinstance(value, bool))
COUNT: Final = Check("a whole number from 0", _is_count)
NUMBER: Final = Check("a number", _is_number)
# A line that was not read from a file may have a tuple instead of a list.
LIST: Final = Check("a list", lambda value: isinstance(value, (list, tuple)))
TEXTS: Final = Check(
    "a list of texts", lambda value: LIST.holds(value) and all(isinstance(item, str) for item in value)
)
TABLE: Final = Check("an object", lambda value: isinstance(value, dict))
COUNTS: Final = Check(
    "whole numbers by name",
    lambda value: isinstance(value, dict) and all(_is_count(count) for count in value.values()),
)
# Labels of soak.model.cell.Cell: operation, region and interface.
LABELLED: Final = Check(
    "whole numbers by operation, region and interface",
    lambda value: COUNTS.holds(value) and all(_is_label(label) for label in value),
)
GIVEN_UP: Final = Check(
    "whole numbers by level", lambda value: COUNTS.holds(value) and set(value) == set(Level)
)

_COMMON: Final = {"time": TEXT, "monotonic": NUMBER, "boot_id": TEXT, "level": _one_of(Level)}


def _event(*levels: Level, **fields: Check) -> Event:
    return Event(frozenset(levels or {Level.INFO}), fields)


_INFO, _WARNING, _ERROR = Level.INFO, Level.WARNING, Level.ERROR
_SETTLED: Final = {"kind": TEXT, "target": TEXT, "of_run": TEXT, "summary": TEXT}

EVENTS: Final[Mapping[str, Event]] = {
    "run.started": _event(run_id=TEXT, seed=COUNT, promised=LABELLED, swept=TEXTS, canaries=TEXTS),
    "run.resumed": _event(_WARNING, starts=COUNT, rebooted=FLAG, soaked_seconds=NUMBER, summary=TEXT),
    "run.paused": _event(_WARNING, late=TEXTS, summary=TEXT),
    "run.continued": _event(_WARNING, summary=TEXT),
    "run.ended": _event(why=TEXT),
    "machine.booted": _event(kernel=TEXT),
    "violation.found": _event(
        _WARNING,
        _ERROR,
        # Any text: a kind that only a later version knows must still fail the run.
        kind=TEXT,
        region=TEXT.or_null(),
        interface=TEXT.or_null(),
        operation=TEXT.or_null(),
        count=COUNT,
        known_issue=TEXT.or_null(),
        summary=TEXT,
        evidence=TABLE,
    ).may_have(undecided=TEXT.or_null()),
    "known-issue.probed": _event(
        _INFO, _WARNING, known_issue=TEXT, result=_one_of(ProbeResult), applies=FLAG
    ).may_have(region=TEXT.or_null()),
    "canary.seen": _event(detector=TEXT, made=TEXT, evidence=TABLE),
    "canary.missed": _event(_ERROR, detector=TEXT, made=TEXT, evidence=TABLE, summary=TEXT),
    "canary.failed": _event(_WARNING, detector=TEXT, summary=TEXT),
    "detector.failed": _event(_ERROR, detector=TEXT, summary=TEXT),
    "expectation.missing": _event(_ERROR, summary=TEXT),
    "job.failed": _event(_ERROR, job=TEXT, summary=TEXT),
    "limit.reached": _event(_ERROR, limit=TEXT, summary=TEXT),
    "harness.failed": _event(_ERROR, summary=TEXT).may_have(ended=FLAG),
    "sample.taken": _event(completed=LABELLED, sweeps=COUNTS, journal_errors=COUNT),
    "summary.written": _event(seconds=COUNTS, since=TABLE, total=TABLE),
    "leak.reconciled": _event(region=TEXT, pages=COUNT, uncertain=COUNT, summary=TEXT),
    "region.differs": _event(_WARNING, region=TEXT, pages=LIST, summary=TEXT),
    "region.recycled": _event(
        region=TEXT, headroom_before=NUMBER, headroom=NUMBER, leaked=COUNT, seconds=NUMBER
    ),
    "workers.started": _event(workers=COUNT),
    "workers.killed": _event(_WARNING, workers=TEXTS, summary=TEXT),
    "worker.died": _event(
        _WARNING,
        worker=TEXT,
        incarnation=COUNT,
        signal=COUNT,
        exit_code=NUMBER,
        in_flight=TABLE.or_null(),
        summary=TEXT,
    ),
    "worker.restarted": _event(worker=TEXT),
    "worker.waits": _event(_WARNING, worker=TEXT, summary=TEXT),
    "worker.wedged": _event(_ERROR, worker=TEXT, task=TABLE, summary=TEXT),
    "operation.freed": _event(worker=TEXT, by=TEXT, seconds=NUMBER),
    "device.changed": _event(_INFO, _WARNING, device=TEXT, in_use=FLAG, summary=TEXT),
    "uevents.failed": _event(_WARNING, summary=TEXT),
    "files.left": _event(_WARNING, files=TEXTS, summary=TEXT),
    "change.restored": _event(*Level, **_SETTLED),
    "change.forgotten": _event(*Level, **_SETTLED),
    "change.failed": _event(*Level, **_SETTLED),
    "ledger.unsaved": _event(_WARNING, summary=TEXT),
    "crash-log.found": _event(_WARNING, evidence=TABLE, summary=TEXT),
    "crash-log.absent": _event(_WARNING, summary=TEXT),
    "crash-log.unreadable": _event(_WARNING, summary=TEXT),
    "exporter.started": _event(address=TEXT),
    "exporter.failed": _event(_WARNING, address=TEXT, summary=TEXT),
    "exporter.restarted": _event(_WARNING, address=TEXT, summary=TEXT),
    "journal.held": _event(_WARNING, error=TEXT, summary=TEXT),
    "journal.caught-up": _event(_WARNING, seconds=NUMBER, lines=COUNT, summary=TEXT),
    "journal.gap": _event(*(_WARNING, _ERROR), first=COUNT, last=COUNT, given_up=GIVEN_UP, summary=TEXT),
    "lab.started": _event(kernel=TEXT, qemu_pid=COUNT, resumed=FLAG),
    "lab.soaking": _event(seconds_to_first_operation=NUMBER),
    "lab.covered": _event(seconds=NUMBER),
    "lab.ended": _event(verdict=_one_of(VerdictWord)),
    "fault.planted": _event(_WARNING, fault=TEXT),
    "guest.silent": _event(_WARNING, summary=TEXT),
    "guest.clock-wrong": _event(_ERROR, ratio=NUMBER, guest_boot_id=TEXT, summary=TEXT),
    "guest.left-on": _event(_WARNING, summary=TEXT),
    "guest.garbled": _event(_ERROR, port=TEXT, text=TEXT, summary=TEXT),
    "guest.lines-lost": _event(_ERROR, first=COUNT, last=COUNT, summary=TEXT),
    "bench.measured": _event(kernel=TEXT, mirrored=FLAG, series=LIST),
}


def event_problem(line: Mapping[str, Any]) -> str | None:
    """Return why an event is invalid, or None if it is valid."""
    name = line.get("event")
    if not isinstance(name, str):
        return f"its event is {shown(name)}, expected text"
    event = EVENTS.get(name)
    if event is None:
        return f"unknown event {shown(name)}"
    for field, check in (*_COMMON.items(), *event.fields.items(), *event.optional.items()):
        if field not in line:
            if field in event.optional:
                continue
            return f"{name} has no field '{field}'"
        if not check.holds(line[field]):
            return f"field '{field}' of {name} is {shown(line[field])}, expected {check.what}"
    if line["level"] not in event.levels:
        return f"{name} has level {line['level']}, expected {' or '.join(sorted(event.levels))}"
    return None


def valid_events(lines: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the valid lines."""
    return (line for line in lines if event_problem(line) is None)
