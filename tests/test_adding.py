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

from tests.test_exporter_support import DEADLINE, ROOT

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


def toys(snapshot):
    yield plain("toys", {("soft",): 7})
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


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Soak for a second with the toys, in a copy of the program."""
    place = tmp_path_factory.mktemp("adding")
    for package in ("soak", "exporter"):
        shutil.copytree(ROOT / package, place / package, ignore=shutil.ignore_patterns("__pycache__"))
    for toy in (DETECTOR, METRIC):
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


@pytest.mark.parametrize("toy", [DETECTOR, METRIC], ids=["detector", "metric"])
def test_a_toy_is_listed_in_two_places_at_most(toy: Toy) -> None:
    assert len(toy.listed) <= MOST_LISTING


def test_a_detector_is_run_and_shows_in_ledger_and_exposition(ran: Mapping[str, Any]) -> None:
    assert ran["ledger"]["toy"] is True
    assert "dax_soak_detector_success toy" in ran["exposition"]
    assert "dax_soak_canaries_total toy missed" in ran["exposition"]


def test_what_it_finds_is_journalled_and_judged(ran: Mapping[str, Any]) -> None:
    assert ran["found"] == [["stall", "a toy"]]
    assert ran["verdict"] == "fail"


def test_what_it_has_no_expectation_for_is_missing(ran: Mapping[str, Any]) -> None:
    assert ran["missing"] == ["no expectation covers play of anonymous over none"]


def test_a_metric_is_exposed(ran: Mapping[str, Any]) -> None:
    assert "dax_soak_toys soft" in ran["exposition"]
