# SPDX-License-Identifier: GPL-2.0-only
"""The rate of the host's time-stamp counter."""

from __future__ import annotations

import mmap
import platform
from typing import TYPE_CHECKING, Final

from soak.lab.host.host_clock import counter_khz

if TYPE_CHECKING:
    import pytest

# Two readings on a machine that is busy.
_MOST_APART: Final = 0.001


def test_clock_rate_is_repeatable() -> None:
    first, second = counter_khz(), counter_khz()
    if platform.machine() != "x86_64":
        assert first is second is None
        return
    assert first is not None
    assert second is not None
    assert first > 100_000
    assert abs(first - second) < _MOST_APART * first


def test_other_architectures_have_no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert counter_khz() is None


def test_no_clock_without_executable_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError

    monkeypatch.setattr(mmap, "mmap", refuse)
    assert counter_khz() is None
