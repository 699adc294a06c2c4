# SPDX-License-Identifier: GPL-2.0-only
"""What it takes to add a thing, measured: toys are added to a copy of the program by registration alone.

Each is a file of its own and at most two lines that list it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.program import ROOT
from tests.support.soak import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Mapping

MOST_LISTING = 2

TOY_DETECTOR = """
from soak.detectors.base import Detector, Finding
from soak.model.vocabulary import DetectorName, Interface, Operation, RegionKind, Violation


class Toy(Detector):
    name = DetectorName.TOY

    def __init__(self, reporter):
        self._reporter, self._done = reporter, False

    def look(self):
        if not self._done:
            self._done = True
            self._reporter.report(
                Finding(
                    Violation.STALL, RegionKind.ANONYMOUS, Interface.NONE, Operation.MAP, 3, "a toy"
                )
            )

    def uncovered(self):
        return ["play of anonymous over none"]
"""

TOY_METRIC = """
from exporter.families import plain


def toys(view):
    yield plain("toys", {("soft",): 7})
"""


TOY_OPERATION = """
from soak.model.vocabulary import Operation
from soak.workload.operations.base import FileOperation


def _touch(file, offset, length):
    file.memory[0] = 1
    return 0


TOY = FileOperation(Operation.TOY, _touch, lambda pages, random: (0, 1), weight=10.0)
"""

TOY_PIN = """
import ctypes
import errno

from soak.model.expectations import Expectation
from soak.model.vocabulary import Backing, Interface, Operation, RegionKind
from soak.workload.pins.long_term import LongTermInterface

MADV_FREE = 8
madvise = ctypes.CDLL(None, use_errno=True).madvise
madvise.argtypes = (ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int)


class ToyPin:
    # MADV_FREE is done on anonymous memory and refused on that of files, as a long-term pin is.
    unmapped = 0

    def __init__(self, function):
        self._live = {}

    def map(self, address, iova, size, access):
        if not access:
            return errno.EINVAL
        if madvise(address, size, MADV_FREE):
            return errno.EOPNOTSUPP
        self._live[iova] = size
        return 0

    def unmap(self, iova, size):
        self.unmapped = self._live.pop(iova, 0)
        return 0

    def close(self):
        self._live.clear()


GRANTED = Expectation(
    (Operation.MAP, Operation.UNMAP),
    RegionKind.ANONYMOUS,
    Interface.TOY_PIN,
    Backing.PRIVATE,
    None,
    "a toy is granted",
)
REFUSED = Expectation(
    (Operation.MAP,),
    RegionKind.FS_DAX,
    Interface.TOY_PIN,
    Backing.SHARED,
    errno.EOPNOTSUPP,
    "a toy of a file is refused",
)
TOY = LongTermInterface(
    Interface.TOY_PIN,
    ToyPin,
    lambda pin, address: pin.map(address, 0, 4096, 0),
    (GRANTED, REFUSED),
    needs_function=False,
)
"""


@dataclass(frozen=True)
class Toy:
    """A file of its own, and the lines that list it: by file, what stands there and what comes behind."""

    file: str
    text: str
    listed: Mapping[str, tuple[str, str]]


DETECTOR = Toy(
    "soak/detectors/toy.py",
    TOY_DETECTOR,
    {
        "soak/model/vocabulary.py": ('    LEAKS = "leaks"\n', '    TOY = "toy"\n'),
        "soak/supervisor/assembly.py": (
            "            detectors=[",
            "__import__('soak.detectors.toy').detectors.toy.Toy(reporter), ",
        ),
    },
)
METRIC = Toy(
    "exporter/toy.py",
    TOY_METRIC,
    {
        "exporter/catalogue.py": (
            "METRICS: Final = (\n",
            '    Metric("toys", MetricType.GAUGE, "Toys.", ("kind",)),\n',
        ),
        "exporter/groups.py": (
            '    "the run": _run,\n',
            '    "toys": __import__("exporter.toy").toy.toys,\n',
        ),
    },
)


OPERATION = Toy(
    "soak/workload/operations/toy.py",
    TOY_OPERATION,
    {
        "soak/model/vocabulary.py": ('    FAULT = "fault"\n', '    TOY = "toy"\n'),
        "soak/workload/operations/table.py": (
            "FILE_OPERATIONS: Final = (\n",
            "    __import__('soak.workload.operations.toy').workload.operations.toy.TOY,\n",
        ),
    },
)
PIN = Toy(
    "soak/workload/pins/toy.py",
    TOY_PIN,
    {
        "soak/model/vocabulary.py": ('    VFIO_TYPE1 = "vfio-type1"\n', '    TOY_PIN = "toy-pin"\n'),
        "soak/workload/pins/interfaces.py": (
            "(VFIO_TYPE1,",
            " __import__('soak.workload.pins.toy').workload.pins.toy.TOY,",
        ),
    },
)
TOYS = {"detector": DETECTOR, "metric": METRIC, "operation": OPERATION, "pin": PIN}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Soak for a second with the toys, in a copy of the program."""
    place = tmp_path_factory.mktemp("adding")
    for package in ("soak", "exporter"):
        shutil.copytree(ROOT / package, place / package, ignore=shutil.ignore_patterns("__pycache__"))
    for toy in TOYS.values():
        (place / toy.file).write_text(toy.text)
        for name, (after, line) in toy.listed.items():
            text = (place / name).read_text()
            assert text.count(after) == 1, f"{name} has no longer one line {after!r}"
            (place / name).write_text(text.replace(after, after + line))
    done = subprocess.run(
        [sys.executable, "-P", Path(__file__).with_name("toy_run.py"), place],
        env={**os.environ, "PYTHONPATH": str(place)},
        check=False,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    assert Path(told["program"]).is_relative_to(place)
    return told


@pytest.mark.parametrize("toy", TOYS.values(), ids=TOYS)
def test_a_toy_needs_at_most_two_listings(toy: Toy) -> None:
    assert len(toy.listed) <= MOST_LISTING


def test_a_detector_runs_and_is_exposed(ran: Mapping[str, Any]) -> None:
    assert ran["ledger"]["toy"] is True
    assert "dax_soak_detector_success toy" in ran["exposition"]
    assert "dax_soak_canaries_total toy missed" in ran["exposition"]


def test_findings_are_journalled_and_judged(ran: Mapping[str, Any]) -> None:
    assert ran["found"] == [["stall", "a toy"]]
    assert ran["verdict"] == "fail"


def test_a_metric_is_exposed(ran: Mapping[str, Any]) -> None:
    assert "dax_soak_toys soft" in ran["exposition"]


@pytest.mark.parametrize(
    ("cell", "outcome"),
    [
        ("toy fs-dax none", "done"),
        ("map anonymous toy-pin", "done"),
        ("unmap anonymous toy-pin", "done"),
        ("map fs-dax toy-pin", "refused"),
    ],
)
def test_operation_and_pin_are_counted_and_exposed(
    ran: Mapping[str, Any], cell: str, outcome: str
) -> None:
    assert ran["completed"][cell] > 0
    assert f"dax_soak_operations_total {cell} {outcome}" in ran["exposition"]


def test_mapped_bytes_of_a_pin_are_exposed(ran: Mapping[str, Any]) -> None:
    assert "dax_soak_mapped_bytes anonymous toy-pin" in ran["exposition"]


def test_uncovered_cells_are_reported_missing(ran: Mapping[str, Any]) -> None:
    uncovered = {"play of anonymous over none", "toy fs-dax none"}
    assert {f"no expectation covers {cell}" for cell in uncovered} == set(ran["missing"])


def test_a_pin_has_a_canary(ran: Mapping[str, Any]) -> None:
    assert ["refusals", "map of fs-dax over toy-pin ended with EINVAL"] in ran["canaries"]


def test_all_toys_appear_in_the_report(ran: Mapping[str, Any]) -> None:
    report = "\n".join(ran["report"])
    for shown in ("a toy", "toy fs-dax none", "map anonymous toy-pin", "play of anonymous over none"):
        assert shown in report
