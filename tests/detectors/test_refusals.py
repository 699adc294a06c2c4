# SPDX-License-Identifier: GPL-2.0-only
"""The refusal detector: what was counted is compared with what the kernel owes, once."""

from __future__ import annotations

import errno
import tempfile
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soak.detectors.refusals import RefusalDetector
from soak.ledger.schema import COUNT_COLUMNS, RECORDER_COLUMNS, RECORDER_LENGTH, judged_field
from soak.model.cell import Cell
from soak.model.vocabulary import ERRNOS, Interface, Operation, RegionKind, Violation
from soak.workload.expectations import EXPECTATIONS
from tests.support.soak import deterministic, make_ledger

if TYPE_CHECKING:
    from soak.ledger.writer import BlockWriter

RELEASE = (6, 12)
DEVICE, FS = "map device-dax vfio-type1", "map fs-dax vfio-type1"
UNMAP, PUNCH = "unmap anonymous vfio-type1", "punch-hole fs-dax none"


class Scene:
    """A real ledger whose counts are set by hand, and a detector that looks at it."""

    def __init__(self, directory: Path, release: tuple[int, int] = RELEASE) -> None:
        ledger = make_ledger(directory / "ledger")
        self.blocks = [ledger.block("mapper-0"), ledger.block("invalidator-0")]
        supervisor = ledger.block("supervisor")
        self.judged = [supervisor.view(judged_field(block.block.name)) for block in self.blocks]
        self.release = release
        self.detector = RefusalDetector(self.blocks, release, self.judged)

    def succeed(self) -> None:
        """Put another detector in the place of this one, as after a crash."""
        self.detector = RefusalDetector(self.blocks, self.release, self.judged)

    def block(self, label: str) -> BlockWriter:
        return next(block for block in self.blocks if label in block.names("counts"))

    def count(self, label: str, column: str, number: int = 1) -> None:
        self.block(label).add_at("counts", number, label, column)

    def record(self, label: str, result: int, end_ns: int = 2) -> None:
        """Write a line of the flight recorder as a worker does."""
        block = self.block(label)
        number, width = block.get("begun"), len(RECORDER_COLUMNS)
        line = {
            "choice": number,
            "cell": block.names("counts").index(label),
            "start_ns": 1,
            "region": 1,
            "place": 0,
            "offset": 4096,
            "length": 8192,
            "end_ns": end_ns,
            "result": result,
        }
        start = number % RECORDER_LENGTH * width
        for position, column in enumerate(RECORDER_COLUMNS):
            block.view("recorder")[start + position] = line[column]
        block.add("begun", 1)
        block.add("ended", 1)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_expected_counts_yield_no_finding(scene: Scene) -> None:
    assert scene.detector.look() == []
    for block in scene.blocks:
        for label in block.names("counts"):
            scene.count(label, "interrupted", 3)
            if label != FS:
                scene.count(label, "done", 100)
    scene.count(FS, "refused EOPNOTSUPP", 1000)
    assert scene.detector.look() == []
    assert scene.detector.uncovered() == []


def test_granted_file_pin_is_unexpected(scene: Scene) -> None:
    scene.count(FS, "done", 4)
    (found,) = scene.detector.look()
    assert found.kind is Violation.UNEXPECTED_PIN
    assert (found.operation, found.region, found.interface, found.count) == (
        Operation.MAP,
        RegionKind.FS_DAX,
        Interface.VFIO_TYPE1,
        4,
    )
    assert found.known_issue is None
    assert "EOPNOTSUPP" in found.summary


@pytest.mark.parametrize("name", [name for name in ERRNOS if name != "EOPNOTSUPP"])
def test_unexpected_errno_is_wrong(scene: Scene, name: str) -> None:
    scene.count(FS, f"failed {name}", 2)
    (found,) = scene.detector.look()
    assert (found.kind, found.count) == (Violation.WRONG_ERRNO, 2)
    assert f"failed with {name}" in found.summary
    assert found.evidence["errno"] == name


@pytest.mark.parametrize("label", [DEVICE, UNMAP, PUNCH])
@pytest.mark.parametrize("name", ERRNOS)
def test_refusal_of_an_allowed_operation_is_unexpected(scene: Scene, label: str, name: str) -> None:
    scene.count(label, f"failed {name}", 5)
    (found,) = scene.detector.look()
    assert (found.kind, found.count) == (Violation.UNEXPECTED_REFUSAL, 5)
    assert Cell(found.operation, found.region, found.interface) == Cell.parse(label)
    assert f"failed with {name}" in found.summary
    assert "expected success" in found.summary


def test_each_errno_is_a_separate_finding(scene: Scene) -> None:
    scene.count(DEVICE, "failed ENOMEM", 1)
    scene.count(DEVICE, "failed EFAULT", 2)
    scene.count(FS, "done", 3)
    scene.count(PUNCH, "failed EIO", 4)
    found = scene.detector.look()
    assert Counter({(f.kind, f.evidence.get("errno")): f.count for f in found}) == {
        (Violation.UNEXPECTED_REFUSAL, "ENOMEM"): 1,
        (Violation.UNEXPECTED_REFUSAL, "EFAULT"): 2,
        (Violation.UNEXPECTED_PIN, None): 3,
        (Violation.UNEXPECTED_REFUSAL, "EIO"): 4,
    }


def test_operations_are_judged_once(scene: Scene) -> None:
    scene.count(FS, "done", 4)
    assert [found.count for found in scene.detector.look()] == [4]
    assert scene.detector.look() == []
    scene.count(FS, "refused EOPNOTSUPP", 7)
    assert scene.detector.look() == []
    scene.count(FS, "done", 1)
    assert [found.count for found in scene.detector.look()] == [1]


steps = st.lists(
    st.tuples(
        st.sampled_from([DEVICE, FS, UNMAP, PUNCH]),
        st.sampled_from(["done", "interrupted", "failed EFAULT", "failed other"]),
        st.integers(1, 9),
    )
    | st.just("look"),
    max_size=30,
)


@given(steps)
@deterministic
def test_findings_add_up_to_the_counts(taken: list[tuple[str, str, int] | str]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        scene = Scene(Path(directory))
        wrong: Counter[str] = Counter()
        found: Counter[str] = Counter()
        for step in [*taken, "look"]:
            if isinstance(step, str):
                for one in scene.detector.look():
                    found[Cell(one.operation, one.region, one.interface).label] += one.count
                assert found == wrong
                continue
            label, column, number = step
            scene.count(label, column, number)
            if column.startswith("failed") or (label == FS and column == "done"):
                wrong[label] += number


def test_evidence_has_the_newest_matching_operations(scene: Scene) -> None:
    for _ in range(8):
        scene.record(FS, errno.EOPNOTSUPP)
        scene.record(FS, 0)
        scene.record(DEVICE, 0)
    scene.count(FS, "done", 8)
    (found,) = scene.detector.look()
    assert found.evidence["worker"] == "mapper-0"
    operations = found.evidence["operations"]
    assert [line["choice"] for line in operations] == [22, 19, 16, 13, 10]
    assert {line["result"] for line in operations} == {0}
    assert set(operations[0]) == set(RECORDER_COLUMNS)
    assert found.evidence["owed"] == next(
        row.reason for row in EXPECTATIONS if row.covers(Cell.parse(FS), RELEASE)
    )


def test_evidence_is_limited_to_the_recorder(scene: Scene) -> None:
    scene.record(DEVICE, errno.ENOMEM)
    for _ in range(RECORDER_LENGTH):
        scene.record(DEVICE, 0)
    scene.count(DEVICE, "failed ENOMEM")
    (found,) = scene.detector.look()
    assert found.evidence["operations"] == []
    scene.record(DEVICE, errno.EFAULT)
    scene.count(DEVICE, "failed EFAULT")
    (found,) = scene.detector.look()
    assert [line["result"] for line in found.evidence["operations"]] == [errno.EFAULT]


def test_skipped_operation_is_not_evidence(scene: Scene) -> None:
    scene.record(PUNCH, errno.EIO)
    scene.record(PUNCH, errno.EIO, end_ns=0)
    scene.count(PUNCH, "failed EIO")
    (found,) = scene.detector.look()
    assert [line["choice"] for line in found.evidence["operations"]] == [0]


def test_cell_without_expectation_is_not_judged(tmp_path: Path) -> None:
    scene = Scene(tmp_path, (4, 15))
    assert scene.detector.uncovered() == [Cell.parse(FS)]
    scene.count(FS, "done", 3)
    scene.count(FS, "failed EFAULT", 3)
    scene.count(DEVICE, "failed EFAULT", 1)
    assert [found.region for found in scene.detector.look()] == [RegionKind.DEVICE_DAX]


def test_next_supervisor_judges_only_uncommitted_counts(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.count(DEVICE, "failed EFAULT", 2)
    assert [found.count for found in scene.detector.look()] == [2]
    scene.succeed()
    assert [found.count for found in scene.detector.look()] == [2]
    scene.detector.commit()
    scene.count(DEVICE, "failed EFAULT", 3)
    scene.succeed()
    assert [found.count for found in scene.detector.look()] == [3]


def test_every_column_is_either_judged_or_clean() -> None:
    assert set(COUNT_COLUMNS) == {
        "done",
        "interrupted",
        *(f"refused {name}" for name in ERRNOS),
        *(f"failed {name}" for name in ERRNOS),
    }
