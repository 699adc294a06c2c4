# SPDX-License-Identifier: GPL-2.0-only
"""The bench's arithmetic: turns in order, ratios of one round, a report that says all of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soak.cli import main
from soak.lab.bench.contenders import LENGTH, Subject
from soak.lab.bench.report import Bench, Scrape, json_report, rows, text_report
from soak.lab.bench.series import Series, take_turns
from soak.model.vocabulary import Operation, RegionKind, Role
from tests.support.soak import deterministic, workers

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MAPPER = next(plan for plan in workers() if plan.role is Role.MAPPER)
RELEASE = (6, 12)


def series(**nanoseconds: list[int]) -> Series:
    completed = {name: 10 * len(taken) for name, taken in nanoseconds.items()}
    return Series("a subject", 10, ["first", "second"], completed, nanoseconds)


def test_contenders_take_turns_and_each_turn_is_counted() -> None:
    order: list[tuple[str, int]] = []
    beats: list[int] = []

    def prepare(name: str) -> Callable[[int], Callable[[], int]]:
        def in_round(number: int) -> Callable[[], int]:
            def turn() -> int:
                order.append((name, number))
                return 3

            return turn

        return in_round

    found = take_turns(
        Series("s", 3, ["a"]),
        {name: prepare(name) for name in "abc"},
        0.0,
        lambda: beats.append(len(order)),
    )
    assert order == [(name, number) for number in range(found.rounds) for name in "abc"]
    assert found.rounds >= 5
    assert found.completed == dict.fromkeys("abc", 3 * found.rounds)
    assert beats == list(range(1, len(order) + 1))


def test_ratios_compare_turns_of_one_round() -> None:
    """A machine that became ten times slower in between changes no ratio."""
    first, second, third = rows(
        series(
            first=[100, 100, 1000, 1000, 1000],
            second=[200, 200, 2000, 2000, 2000],
            third=[400, 400, 4000, 4000, 4000],
        )
    )
    assert first.ratios == ()
    assert [(r.of, r.median, r.low, r.high) for r in second.ratios] == [("first", 0.5, 0.5, 0.5)]
    assert [(r.of, r.median) for r in third.ratios] == [("first", 0.25), ("second", 0.5)]
    assert third.rate == pytest.approx(10 * 1e9 / 4000)


turns = st.lists(st.tuples(*[st.integers(1, 10**9)] * 2), min_size=5, max_size=40)


@given(turns)
@deterministic
def test_quartiles_enclose_the_median(taken: list[tuple[int, int]]) -> None:
    _, second = rows(series(first=[a for a, _ in taken], second=[b for _, b in taken]))
    (ratio,) = second.ratios
    seen = [a / b for a, b in taken]
    assert min(seen) <= ratio.low <= ratio.median <= ratio.high <= max(seen)


def test_both_reports_have_every_row() -> None:
    nanoseconds = {name: [5, 6, 7, 8, 9] for name in ("first", "second", "third")}
    result = Bench("6.1.0", [series(**nanoseconds)], Scrape(582, 4.85), mirrored=True)
    text = text_report(result)
    assert all(len(line) < 80 for line in text.splitlines())
    assert "582 series in 4.8 ms" in text or "582 series in 4.9 ms" in text
    assert "tmpfs" in text
    (subject,) = json.loads(json_report(result))["subjects"]
    assert [row["contender"] for row in subject["contenders"]] == list(nanoseconds)
    assert all(row["contender"] in text for row in subject["contenders"])
    assert (subject["rounds"], subject["operations"]) == (5, 10)


def test_shortfall_names_the_contender() -> None:
    found = series(first=[5] * 6, second=[6] * 6)
    assert found.shortfall() is None
    found.completed["second"] -= 1
    sentence = found.shortfall()
    assert sentence is not None
    assert "second" in sentence
    assert "59 of 60" in sentence


@pytest.mark.parametrize(
    ("kind", "steps"),
    [(RegionKind.DEVICE_DAX, [Operation.MAP, Operation.UNMAP]), (RegionKind.FS_DAX, [Operation.MAP])],
)
def test_worker_choices_match_the_subject(kind: RegionKind, steps: list[Operation]) -> None:
    subject = Subject(MAPPER, kind, RELEASE)
    choices = subject.choices(4 * LENGTH, 3)
    assert [choice.operation for choice in choices] == steps * 3
    assert subject.operations == len(steps)
    assert [choice.number for choice in choices] == list(range(len(choices)))
    assert {(choice.offset, choice.length) for choice in choices} == {(4 * LENGTH, LENGTH)}
    for choice in choices:
        cell = MAPPER.cells[choice.cell]
        assert (cell.operation, cell.region) == (choice.operation, kind)
        assert MAPPER.regions[choice.region].kind is kind


def test_a_missing_compiler_is_reported_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("DAX_SOAK_CACHE", str(tmp_path / "cache"))
    assert main(["bench"]) == 2
    (sentence,) = capsys.readouterr().err.splitlines()
    assert "apt-get install" in sentence
    assert "gcc" in sentence
    assert not list(tmp_path.iterdir())
