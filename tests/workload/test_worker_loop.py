# SPDX-License-Identifier: GPL-2.0-only
"""The worker's loop: whatever a call returns is noted where a reader expects it.

No kernel is modelled here: the calls are tables of results, and only the book-keeping is tested.
"""

from __future__ import annotations

import errno
import itertools
import tempfile
import threading
import time
from bisect import bisect_left
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soak.ledger.reader import LedgerReader
from soak.ledger.schema import (
    BUCKET_BOUNDS_NS,
    COUNT_COLUMNS,
    RECORDER_COLUMNS,
    RECORDER_LENGTH,
    RUN_WORD,
    STOP_WORD,
)
from soak.ledger.writer import Ledger
from soak.model.vocabulary import ERRNOS, OTHER_ERRNO, RegionKind, Role, errno_name
from soak.workload.choices import Choice
from soak.workload.loop import SKIPPED, outcome_columns, work
from tests.support.soak import DEADLINE, deterministic, make_ledger, workers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from soak.ledger.reader import BlockSnapshot
    from soak.workload.worker_plan import WorkerPlan

RELEASE = (6, 12)
MAPPER: WorkerPlan = next(plan for plan in workers() if plan.role is Role.MAPPER)
CELLS = range(len(MAPPER.cells))
RESULTS = [
    0,
    SKIPPED,
    errno.EINTR,
    errno.EOPNOTSUPP,
    errno.EFAULT,
    errno.ENOMEM,
    errno.ENOTTY,
    errno.EXDEV,
    133,
    4095,
]


def choice_of(number: int, cell: int) -> Choice:
    return Choice(number, cell, MAPPER.cells[cell].operation, 1, 2, number * 4096, 8192, 3)


class Bench:
    """A ledger, and a worker's loop that runs over a script of cells and results."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ledger = make_ledger(path)
        self.block = self.ledger.block(MAPPER.name)
        self.pause = self.ledger.block("supervisor").view("pause")
        self.columns = outcome_columns(MAPPER.cells, RELEASE)

    def run(
        self, script: Sequence[tuple[int, int]], seen: Callable[[Choice], None] | None = None
    ) -> None:
        results = iter([result for _, result in script])

        def call(choice: Choice) -> int:
            if seen is not None:
                seen(choice)
            return next(results)

        choices = [choice_of(number, cell) for number, (cell, _) in enumerate(script)]
        self.drive(iter(choices), call)

    def drive(self, choices: Iterator[Choice], call: Callable[[Choice], int]) -> None:
        calls = dict.fromkeys((cell.operation for cell in MAPPER.cells), call)
        work(self.block, self.pause, choices, calls, self.columns)

    def read(self) -> BlockSnapshot:
        with LedgerReader.open(self.path) as reader:
            return reader.block(MAPPER.name)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "ledger")


def column_name(cell: int, result: int) -> str:
    """Say by the rules of the design in which column a result belongs."""
    if result == 0:
        return "done"
    if result == errno.EINTR:
        return "interrupted"
    name = errno_name(result)
    planned = MAPPER.cells[cell]
    refused = planned.region is RegionKind.FS_DAX and result == errno.EOPNOTSUPP
    return f"{'refused' if refused else 'failed'} {name if name in ERRNOS else OTHER_ERRNO}"


scripts = st.lists(st.tuples(st.sampled_from(CELLS), st.sampled_from(RESULTS)), max_size=60)


@given(scripts)
@deterministic
def test_every_result_is_counted_once_in_its_column(script: list[tuple[int, int]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(Path(directory) / "ledger")
        bench.run(script)
        block = bench.read()
    counted = [(cell, result) for cell, result in script if result != SKIPPED]
    expected = Counter((MAPPER.cells[cell].label, column_name(cell, r)) for cell, r in counted)
    found = {
        (label, column): count
        for label, row in block.named_rows("counts").items()
        for column, count in row.items()
        if count
    }
    assert found == expected
    per_cell = Counter(cell for cell, _ in counted)
    assert [sum(row) for row in block.rows("duration_buckets")] == [per_cell[c] for c in CELLS]
    assert [sum(row) for row in block.rows("counts")] == [per_cell[cell] for cell in CELLS]
    assert block.get("begun") == block.get("ended") == len(script)


def test_named_errnos_have_their_own_column(bench: Bench) -> None:
    named = [getattr(errno, name) for name in ERRNOS if name != OTHER_ERRNO]
    for cell in CELLS:
        bench.run([(cell, number) for number in named])
    for row in bench.read().rows("counts"):
        assert sorted(row, reverse=True) == [1] * len(named) + [0] * (len(COUNT_COLUMNS) - len(named))


def lines_of(block: BlockSnapshot) -> list[dict[str, int]]:
    return [dict(zip(RECORDER_COLUMNS, row, strict=True)) for row in block.rows("recorder")]


@pytest.mark.parametrize("count", [1, RECORDER_LENGTH, RECORDER_LENGTH + 3])
def test_the_flight_recorder_holds_the_newest_operations(bench: Bench, count: int) -> None:
    script = [
        (cell, 0 if number % 3 else errno.EFAULT)
        for number, cell in zip(range(count), itertools.cycle(CELLS), strict=False)
    ]
    bench.run(script)
    lines = lines_of(bench.read())
    last_end = 0
    for number in range(max(count - RECORDER_LENGTH, 0), count):
        line = lines[number % RECORDER_LENGTH]
        choice = choice_of(number, script[number][0])
        assert line["choice"] == number
        assert line["cell"] == choice.cell
        assert (line["region"], line["offset"], line["length"]) == choice[3:4] + choice[5:7]
        assert line["result"] == script[number][1]
        assert last_end <= line["start_ns"] <= line["end_ns"]
        last_end = line["end_ns"]
    for line in lines[count:]:
        assert set(line.values()) == {0}


def test_durations_match_the_recorder(bench: Bench) -> None:
    bench.run([(cell, 0) for cell in CELLS for _ in range(20)])
    block = bench.read()
    spans: dict[int, list[int]] = {cell: [] for cell in CELLS}
    for line in lines_of(block)[: block.get("ended")]:
        spans[line["cell"]].append(line["end_ns"] - line["start_ns"])
    assert block.flat("duration_sum_ns") == [sum(spans[cell]) for cell in CELLS]
    for cell, buckets in enumerate(block.rows("duration_buckets")):
        expected = Counter(bisect_left(BUCKET_BOUNDS_NS, span) for span in spans[cell])
        assert {index: count for index, count in enumerate(buckets) if count} == expected


def test_skipped_operations_are_recorded_without_an_end(bench: Bench) -> None:
    bench.run([(0, 0), (1, SKIPPED), (0, 0)])
    block = bench.read()
    lines = lines_of(block)
    assert lines[1]["choice"] == 1
    assert lines[1]["end_ns"] == 0
    assert [line["end_ns"] > 0 for line in lines[:3]] == [True, False, True]
    assert sum(block.flat("counts")) == sum(block.flat("duration_buckets")) == 2
    assert block.get("ended") == 3


def test_an_operation_is_recorded_before_it_begins(bench: Bench) -> None:
    seen: list[tuple[int, int, dict[str, int], int]] = []

    def look(_choice: Choice) -> None:
        block = bench.read()
        begun = block.get("begun")
        line = lines_of(block)[(begun - 1) % RECORDER_LENGTH]
        seen.append((begun, block.get("ended"), line, sum(block.flat("counts"))))

    script = [(0, 0), (1, errno.EFAULT), (2, SKIPPED), (0, 0)]
    bench.run(script, look)
    for number, (begun, ended, line, counted) in enumerate(seen):
        assert (begun, ended) == (number + 1, number)
        assert line["choice"] == number
        assert line["cell"] == script[number][0]
        assert line["start_ns"] > 0
        assert line["end_ns"] == 0
        assert counted == sum(result != SKIPPED for _, result in script[:number])


def test_a_dead_worker_leaves_its_operation_in_flight(bench: Bench) -> None:
    def die(_choice: Choice) -> int:
        raise KeyboardInterrupt

    bench.run([(0, 0)])
    with pytest.raises(KeyboardInterrupt):
        bench.drive(iter([choice_of(1, 2)]), die)
    block = bench.read()
    assert (block.get("begun"), block.get("ended")) == (2, 1)
    assert lines_of(block)[1]["cell"] == 2
    assert sum(block.flat("counts")) == 1


def test_stop_is_honoured_before_the_next_operation(bench: Bench) -> None:
    def stop(choice: Choice) -> None:
        if choice.number == 4:
            bench.pause[0] = STOP_WORD

    bench.run([(0, 0)] * 10, stop)
    assert bench.read().get("ended") == 5
    bench.run([(0, 0)] * 10)
    assert bench.read().get("ended") == 5


class Worker:
    """The loop in a thread, until the pause word stops it."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        self.bench.drive((choice_of(n, 0) for n in itertools.count()), lambda _choice: 0)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bench.pause[0] = STOP_WORD
        self.thread.join(DEADLINE)
        assert not self.thread.is_alive()


def eventually(condition: Callable[[], Any]) -> bool:
    end = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.002)
    return True


def test_a_pause_is_acknowledged_and_stops_operations(bench: Bench) -> None:
    block = bench.block

    def state() -> str:
        return bench.read().word("state")

    def wait_for(name: str, least: int) -> None:
        assert eventually(lambda: block.get(name) >= least)

    with Worker(bench):
        wait_for("ended", 10)
        for barrier in (1, 2):
            bench.pause[0] = barrier
            wait_for("acknowledged", barrier)
            done = block.get("ended")
            assert eventually(lambda: state() == "paused")
            time.sleep(0.05)
            assert (block.get("begun"), block.get("ended")) == (done, done)
            bench.pause[0] = RUN_WORD
            wait_for("ended", done + 1)
            assert eventually(lambda: state() == "running")
            assert block.get("acknowledged") == 0


def test_barriers_can_follow_without_an_operation_between(bench: Bench) -> None:
    with Worker(bench):
        bench.pause[0] = 1
        assert eventually(lambda: bench.block.get("acknowledged") == 1)
        done = bench.block.get("ended")
        bench.pause[0] = 2
        assert eventually(lambda: bench.block.get("acknowledged") == 2)
        assert bench.block.get("begun") == bench.block.get("ended") == done


def test_a_resting_worker_stops(bench: Bench) -> None:
    with Worker(bench) as worker:
        bench.pause[0] = 1
        assert eventually(lambda: bench.block.get("acknowledged") == 1)
        bench.pause[0] = STOP_WORD
        assert eventually(lambda: not worker.thread.is_alive())
    assert bench.block.get("begun") == bench.block.get("ended")


def test_writes_reach_the_ledger_file(bench: Bench) -> None:
    bench.run([(0, 0)])
    other = Ledger.open(bench.path).block(MAPPER.name)
    assert list(other.view("counts")) == list(bench.block.view("counts"))
