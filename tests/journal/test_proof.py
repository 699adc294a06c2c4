# SPDX-License-Identifier: GPL-2.0-only
"""A journal proves itself: no damage to it makes a verdict better, and none is a traceback."""

from __future__ import annotations

import ast
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import soak
from soak.cli import main
from soak.journal.events import EVENTS, event_problem
from soak.journal.line import MAX_NUMBER, CutLineError, LineError, decode_line, encode_line
from soak.journal.writer import FileJournal, Level, read_journal
from soak.model.vocabulary import VerdictWord
from soak.verdict import judge
from tests.support.journal import valid_fields, valid_line
from tests.support.soak import deterministic

if TYPE_CHECKING:
    from collections.abc import Sequence

EVENT = r"^[a-z-]+\.[a-z-]+$"
LABEL = "map device-dax vfio-type1"
RUN = {"run_id": "run-1", "seed": 7, "promised": {LABEL: 1}, "swept": [], "canaries": []}
PIN = {"kind": "unexpected-pin", "count": 1, "region": "fs-dax", "summary": "it was granted"}
FAILING: Sequence[tuple[str, dict[str, Any]]] = (
    ("machine.booted", {"kernel": "6.1.0"}),
    ("run.started", RUN),
    ("violation.found", {**PIN, "known_issue": None}),
    ("sample.taken", {"completed": {LABEL: 5}, "sweeps": {}}),
    ("run.ended", {"why": "duration elapsed"}),
    ("change.restored", {}),
)


def write(path: Path, events: Sequence[tuple[str, dict[str, Any]]] = FAILING) -> bytes:
    """Write a journal and return what is in its file."""
    with FileJournal(path) as journal:
        for event, fields in events:
            valid = valid_fields(event, **fields)
            journal.write(event, Level(valid.pop("level")), **valid)
    return path.read_bytes()


def test_an_undamaged_journal_is_judged(tmp_path: Path) -> None:
    write(tmp_path / "journal.jsonl")
    assert judge(read_journal(tmp_path / "journal.jsonl")).verdict is VerdictWord.FAIL
    passing = [entry for entry in FAILING if entry[0] != "violation.found"]
    write(tmp_path / "good.jsonl", passing)
    assert judge(read_journal(tmp_path / "good.jsonl")).verdict is VerdictWord.PASS


def test_no_flipped_bit_makes_a_failure_a_pass(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    whole = write(path)
    start = whole.index(b'"violation.found"')
    begin, end = whole.rindex(b"\n", 0, start) + 1, whole.index(b"\n", start) + 1
    words = set()
    # Of the violation's line every bit, its end of line with them.
    for position in range(begin, end):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            verdict = judge(read_journal(path))
            words.add(verdict.verdict)
            assert verdict.verdict is not VerdictWord.PASS, (position, bit)
    assert words == {VerdictWord.UNKNOWN}


@given(st.data())
@deterministic
def test_no_damage_anywhere_makes_a_failure_a_pass(data: st.DataObject) -> None:
    lines = [valid_line(seq, event, **fields) for seq, (event, fields) in enumerate(FAILING, 1)]
    whole = b"".join(encode_line(line) for line in lines)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "journal.jsonl"
        begin = data.draw(st.integers(0, len(whole)), "begin")
        end = data.draw(st.integers(begin, len(whole)), "end")
        new = data.draw(st.binary(max_size=30) | st.sampled_from([b"\n", b"}\n{"]), "new")
        path.write_bytes(whole[:begin] + new + whole[end:])
        assert judge(read_journal(path)).verdict is not VerdictWord.PASS


def test_damage_is_counted_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "journal.jsonl"
    lines = write(path).splitlines(keepends=True)
    lines[3] = lines[3].replace(b'"completed"', b'"Completed"')
    lines.insert(2, b"not a line\n")
    path.write_bytes(b"".join(lines))
    assert main(["report", str(tmp_path)]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "1 line of the journal is damaged; the first is line 5 of journal.jsonl: its checksum " in said


def test_line_cut_by_a_crash_is_not_damage(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    passing = [entry for entry in FAILING if entry[0] != "violation.found"]
    first = write(path, passing[:2])
    path.write_bytes(first + first[-30:-5])
    write(path, passing[2:])
    assert judge(read_journal(path)).verdict is VerdictWord.PASS


def test_cut_line_with_a_missing_number_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    lines = write(path).splitlines(keepends=True)
    lines[2] = lines[2][:50] + b"\n"
    path.write_bytes(b"".join(lines))
    reasons = judge(read_journal(path)).reasons
    assert "lines of the journal are missing: 3" in reasons
    assert any("1 line of the journal is damaged" in reason for reason in reasons)


def test_line_of_another_format_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"seq":1,"event":"run.ended"}\n')
    (reason, *_) = judge(read_journal(path)).reasons
    assert "line 1 of journal.jsonl: it does not end with its checksum" in reason
    newer = encode_line({"seq": 1, "event": "run.ended", "format": 2})
    with pytest.raises(LineError, match="format is 2, expected 1"):
        decode_line(newer)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@given(st.dictionaries(st.text(max_size=8), json_values, max_size=4), st.integers(1, MAX_NUMBER))
@deterministic
def test_a_line_is_read_back(fields: dict[str, Any], seq: int) -> None:
    line = {**fields, "seq": seq, "event": "a.b"}
    text = encode_line({**line})
    assert decode_line(text).items() >= {**line, "format": line.get("format", 1)}.items()


@given(st.binary(max_size=80))
@deterministic
def test_any_text_raises_line_error_only(text: bytes) -> None:
    with pytest.raises(LineError):
        decode_line(text)


@pytest.mark.parametrize("cut", [1, 2, 9, 20])
def test_cut_line_has_its_own_error(cut: int) -> None:
    text = encode_line({"seq": 1, "event": "a.b"})
    with pytest.raises(CutLineError):
        decode_line(text[: -cut - 1])


def test_program_writes_exactly_the_declared_events() -> None:
    named: set[object] = set()
    written: set[str] = set()
    for path in Path(soak.__file__).parent.rglob("*.py"):
        if path.name in {"journal_events.py", "verdict.py"}:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Constant(value):
                    named.add(value)
                case ast.Call(
                    ast.Attribute(attr="write" | "_journal_event"), [ast.Constant(str(name)), *_]
                ):
                    written |= set(re.findall(EVENT, name))
    assert written <= set(EVENTS)
    assert named >= set(EVENTS)


@pytest.mark.parametrize("event", EVENTS)
def test_declared_events_are_valid_with_all_fields_only(event: str) -> None:
    line = valid_line(1, event)
    assert event_problem(line) is None
    for field in EVENTS[event].fields:
        without = {name: value for name, value in line.items() if name != field}
        assert event_problem(without) == f"{event} has no field '{field}'"


@given(st.sampled_from([*EVENTS, "made.up"]), st.data())
@deterministic
def test_any_field_value_is_judged_without_error(event: str, data: st.DataObject) -> None:
    """Whatever passes for a line is judged, and whatever does not makes the verdict unknown."""
    line: dict[str, Any] = valid_line(1, event) if event in EVENTS else {**valid_line(1, "run.ended")}
    line["event"] = event
    field = data.draw(st.sampled_from(sorted(set(line) - {"seq"})))
    line[field] = data.draw(json_values)
    verdict = judge([line])
    verdict.to_json()
    if event_problem(line) is not None and line["event"] != "journal.damaged":
        assert any("not understood" in reason for reason in verdict.reasons)


def test_undeclared_event_makes_the_verdict_unknown() -> None:
    (reason, *_) = judge([{**valid_line(1, "run.ended"), "event": "made.up"}]).reasons
    assert reason == (
        "1 line of the journal is not understood; the first is line 1: unknown event 'made.up'"
    )
