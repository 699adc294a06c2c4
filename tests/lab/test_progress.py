# SPDX-License-Identifier: GPL-2.0-only
"""What a lab run shows while it runs."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

import pytest

from soak.lab.progress import Progress
from soak.ledger.reader import LedgerReader
from soak.ledger.view import NANOSECONDS, LedgerView
from tests.support.soak import make_ledger

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from soak.ledger.writer import Ledger


class Shown:
    """A soak of which its line is looked at twice a second."""

    def __init__(self, ledger: Ledger, reader: LedgerReader) -> None:
        self.now = 1000.0
        self._mapper = ledger.block("mapper-0")
        self._supervisor = ledger.block("supervisor")
        self._reader = reader
        self._out = io.StringIO()
        self._progress = Progress(self._out)
        self._started = self.now

    def soak(self, seconds: float, cycles_a_second: float) -> None:
        done = 0.0
        for _ in range(round(2 * seconds)):
            self.now += 0.5
            done += 0.5 * cycles_a_second
            self._mapper.add_at("counts", int(done), "unmap device-dax vfio-type1", "done")
            done -= int(done)
            self._supervisor.set("soaked_ns", int((self.now - self._started) * NANOSECONDS))
            view = LedgerView(self._reader, 0)
            self._progress.tick(self._progress.ledger_line(view, 120.0))

    def rates(self) -> list[str]:
        return re.findall(r"([\d.]+) cycles/s", self._out.getvalue())


@pytest.fixture
def shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shown]:
    ledger = make_ledger(tmp_path / "ledger")
    with LedgerReader.open(tmp_path / "ledger") as reader:
        found = Shown(ledger, reader)
        monkeypatch.setattr("soak.lab.progress.time.monotonic", lambda: found.now)
        yield found


def test_a_rate_is_of_the_last_interval(shown: Shown) -> None:
    shown.soak(10, 100)
    shown.soak(5, 40)
    shown.soak(5, 0)
    shown.soak(10, 0)
    shown.soak(1, 0)
    rates = [float(rate) for rate in shown.rates()]
    # The first is that of the soak so far.
    assert rates[0] == 100
    assert rates[1] == pytest.approx(100, abs=5)
    assert rates[2] == pytest.approx(20, abs=3)
    assert rates[3] == 0


def test_few_cycles_are_not_shown_as_zero(shown: Shown) -> None:
    """A slow machine does less than one in the half second between two looks."""
    shown.soak(41, 0.4)
    assert [float(rate) for rate in shown.rates()[1:]] == pytest.approx([0.4] * 4, abs=0.1)


def test_messages_have_no_foreign_control_characters() -> None:
    out = io.StringIO()
    Progress(out).say("the guest said \x1b[2Jowned\nand more")
    assert out.getvalue() == "the guest said \\x1b[2Jowned\nand more\n"
