# SPDX-License-Identifier: GPL-2.0-only
"""Damaged journals: judged without a traceback, and never better than undamaged."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, Final

import pytest

from soak.journal.events import event_problem
from soak.journal.line import LineError, decode_line, encode_line
from soak.journal.reading import DAMAGED, UNFINISHED, read_journal
from soak.model.vocabulary import VerdictWord
from soak.report.text import text_report
from soak.run_directory import JOURNAL
from soak.supervisor.resume import RunHistory
from soak.verdict import Verdict, judge
from tests.support.fuzz import damaged_bytes, damaged_json, fuzz, many_inputs, odd_sequence
from tests.support.journal import valid_line
from tests.support.soak import KNOWN_ISSUE

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence
    from pathlib import Path

MAP, PUNCH = "map device-dax vfio-type1", "punch-hole fs-dax none"
RUN: Final = {
    "run_id": "run-1",
    "seed": 7,
    "promised": {MAP: 100, PUNCH: 100},
    "swept": ["dax"],
    "canaries": ["leaks"],
}
LEAK: Final = {
    "kind": "leak",
    "count": 3,
    "region": "device-dax",
    "interface": "vfio-type1",
    "operation": "unmap",
    "level": "error",
    "evidence": {"pages": [1, 2, 3]},
}
EXPECTED: Final = ("violation.found", {**LEAK, "known_issue": KNOWN_ISSUE, "summary": "3 leaked"})
UNDECIDED: Final = (
    "violation.found",
    {**LEAK, "known_issue": None, "undecided": KNOWN_ISSUE, "summary": "2 more leaked"},
)
UNEXPLAINED: Final = (
    "violation.found",
    {**LEAK, "known_issue": None, "summary": "\u001b[2Jan unexplained leak"},
)
PROBED: Final = (
    "known-issue.probed",
    {"known_issue": KNOWN_ISSUE, "result": "confirmed", "applies": True, "region": "dax"},
)
COMPLETED: Final = ("sample.taken", {"completed": {MAP: 900, PUNCH: 150}, "sweeps": {"dax": 5}})

Event = tuple[str, dict[str, Any]]


def run_of(*found: Event) -> list[Event]:
    """Return the events of a run in which these things happened, and which saw enough."""
    return [
        ("lab.started", {"kernel": "debian:6.1", "qemu_pid": 7}),
        ("machine.booted", {"kernel": "6.1.0-56-amd64"}),
        ("run.started", RUN),
        PROBED,
        ("workers.started", {"workers": 5}),
        ("sample.taken", {"completed": {MAP: 10, PUNCH: 1}, "sweeps": {}}),
        ("canary.seen", {"detector": "leaks", "made": "a pin that stays"}),
        EXPECTED,
        *found,
        COMPLETED,
        ("summary.written", {"seconds": {"total": 60}, "total": {"stalls": 0}}),
        ("run.ended", {"why": "duration elapsed"}),
        ("change.restored", {"summary": "vm.overcommit_memory is 0 again"}),
    ]


JOURNALS: Final[dict[VerdictWord, list[Event]]] = {
    VerdictWord.FAIL: run_of(UNEXPLAINED, UNDECIDED),
    VerdictWord.UNKNOWN: run_of(
        ("detector.failed", {"detector": "leaks", "summary": "the BPF program is gone"}),
        ("journal.held", {"error": "No space left on device"}),
        ("journal.caught-up", {"lines": 2}),
    ),
    VerdictWord.PASS: run_of(UNDECIDED, ("worker.died", {"in_flight": None})),
}
LINES: Final = {
    word: [valid_line(seq, event, **fields) for seq, (event, fields) in enumerate(events, 1)]
    for word, events in JOURNALS.items()
}
TEXTS: Final = {word: [encode_line(line) for line in lines] for word, lines in LINES.items()}
# With one of these a report says why a run that failed is not known to have failed any more.
TOLD: Final = ("damaged", "missing", "not understood", "did not finish", "no run was started")


def judged(directory: Path, content: bytes) -> tuple[Verdict, list[dict[str, Any]]]:
    """Read a journal by everything that reads one; return its verdict and its understood lines."""
    path = directory / JOURNAL
    path.write_bytes(content)
    lines = list(read_journal(path))
    verdict = judge(lines)
    verdict.to_json()
    assert judge(read_journal(path), strict=True).verdict in VerdictWord
    report = text_report(verdict, directory)
    assert report.isascii() or all(line.isprintable() for line in report.splitlines())
    assert "\u001b" not in report
    RunHistory.of(directory)
    understood = [line for line in lines if event_problem(line) is None]
    return verdict, understood


def check(word: VerdictWord, verdict: Verdict, understood: Sequence[dict[str, Any]]) -> None:
    """Check what became of a verdict when of its journal this is left."""
    whole = [decode_line(text) for text in TEXTS[word]]
    ended = next(n for n, line in enumerate(whole, 1) if line["event"] == "run.ended")
    complete = len(understood) >= ended and list(understood) == whole[: len(understood)]
    if verdict.verdict is VerdictWord.PASS:
        # Nobody can say of a run that came to its end that its journal had more whole lines.
        assert complete
        assert word is VerdictWord.PASS
    if word is not VerdictWord.FAIL:
        assert verdict.verdict is not VerdictWord.FAIL
    elif verdict.verdict is VerdictWord.UNKNOWN:
        assert not complete
        assert any(told in reason for told in TOLD for reason in verdict.reasons)


def damage(draw: random.Random, texts: Sequence[bytes]) -> bytes:
    """Damage a journal as a disk, a crash or an editor does, without a checksum that fits."""
    match draw.randrange(4):
        case 0:
            flipped = bytearray(b"".join(texts))
            flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
            return bytes(flipped)
        case 1:
            return b"".join(odd_sequence(draw, texts))
        case 2:
            whole = b"".join(texts)
            return whole[: draw.randrange(len(whole))]
        case _:
            return damaged_bytes(draw, b"".join(texts))


def replaced(draw: random.Random, line: dict[str, Any]) -> bytes:
    """Return a line in which a value is odd and the checksum right."""
    body = damaged_json(draw, {"format": 1, **line})[:-1].encode()
    return b'%s,"crc32":"%08x"}\n' % (body, zlib.crc32(body))


def is_odd(text: bytes) -> bool:
    """Whether a text is no line that means something. One that is, somebody has forged."""
    try:
        return event_problem(decode_line(text)) is not None
    except LineError:
        return True


def test_undamaged_journals_are_judged(tmp_path: Path) -> None:
    for word, texts in TEXTS.items():
        verdict, understood = judged(tmp_path, b"".join(texts))
        assert verdict.verdict is word, verdict.reasons
        assert len(understood) == len(texts)
        check(word, verdict, understood)


@many_inputs
def test_no_damage_makes_a_verdict_better(tmp_path: Path, count: int) -> None:
    def try_input(draw: random.Random) -> None:
        word = draw.choice(list(TEXTS))
        if draw.random() < 0.6:
            check(word, *judged(tmp_path, damage(draw, TEXTS[word])))
            return
        texts = list(TEXTS[word])
        place = draw.randrange(len(texts))
        texts[place] = replaced(draw, LINES[word][place])
        verdict, understood = judged(tmp_path, b"".join(texts))
        # Who can make a checksum fit can write any journal: only what means nothing is damage.
        if is_odd(texts[place]):
            check(word, verdict, understood)

    fuzz("journal", count, try_input)


@pytest.mark.parametrize("event", [DAMAGED, UNFINISHED])
def test_reserved_events_in_a_file_are_damage(tmp_path: Path, event: str) -> None:
    """A line that bears such a name takes nothing away from the verdict."""
    texts = list(TEXTS[VerdictWord.PASS])
    odd = encode_line({**LINES[VerdictWord.PASS][4], "event": event})
    verdict, _ = judged(tmp_path, b"".join([*texts[:4], odd, *texts[5:]]))
    assert verdict.verdict is VerdictWord.UNKNOWN
