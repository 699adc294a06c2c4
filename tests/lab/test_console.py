# SPDX-License-Identifier: GPL-2.0-only
"""The file of the guest's console: it is bounded, and what came last is found in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from soak.lab.host import console
from soak.lab.host.console import begin_console, console_tail, keep_console_short

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

FULL = 4096


def test_the_console_log_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_FULL", FULL)
    path = tmp_path / "console.log"
    begin_console(path)
    with path.open("ab", buffering=0) as qemu:
        for number in range(2000):
            qemu.write(b"line %d\n" % number)
            keep_console_short(path)
            assert path.stat().st_size < FULL
            expected = [f"line {found}" for found in range(max(number - 9, 0), number + 1)]
            assert console_tail(path, 10) == expected
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 2 * FULL + 64
    begin_console(path)
    assert console_tail(path, 10) == []


def test_the_tail_is_found_after_any_garbage(tmp_path: Path) -> None:
    path = tmp_path / "console.log"
    path.write_bytes(b"\xff" * (8 << 20) + b"\n\n  \npanic \x1b[2J\n")
    *_, last = console_tail(path, 60)
    assert last == "panic \\x1b[2J"
    assert all(len(line) <= 400 for line in console_tail(path, 60))
    assert console_tail(tmp_path / "none", 5) == []
