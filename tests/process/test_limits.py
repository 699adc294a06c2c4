# SPDX-License-Identifier: GPL-2.0-only
"""Limits of the soak's own processes: each in a process of its own, where it may be lowered."""

from __future__ import annotations

import mmap
import os
import resource
from pathlib import Path
from typing import Any

import pytest

from soak.machine.changes import limit_worker, protect_supervisor, raise_limits
from soak.process.helper import HelperError, in_helper
from soak.process.limits import LIMITS, OOM_SCORES, private_bytes
from tests.support.soak import DEADLINE

MIB = 1 << 20


def oom_score() -> int:
    return int(Path("/proc/self/oom_score_adj").read_text())


def test_soft_limit_becomes_the_hard_limit() -> None:
    def work() -> list[Any]:
        for limit in LIMITS:
            resource.setrlimit(limit.number, (64, resource.getrlimit(limit.number)[1]))
        # Without privileges it goes to the hard limit, as root beyond it.
        hard = {limit.name: resource.getrlimit(limit.number)[1] for limit in LIMITS}
        if os.geteuid() == 0:
            os.seteuid(65534)
        raised = raise_limits()
        return [hard, raised]

    hard, raised = in_helper(work, DEADLINE)
    assert raised == hard


def test_worker_has_oom_score_and_memory_limit() -> None:
    def work() -> list[Any]:
        limit_worker(private_bytes() + 64 * MIB)
        inside = mmap.mmap(-1, 16 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        try:
            mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            return [oom_score(), len(inside), error.errno]
        return []

    assert in_helper(work, DEADLINE) == [1000, 16 * MIB, 12]


def test_memory_limit_below_current_use_is_refused() -> None:
    with pytest.raises(HelperError, match=r"soak\.errors\.UsageError.*raise limits\.memory"):
        in_helper(lambda: limit_worker(1 * MIB), DEADLINE)


def test_without_a_limit_rlimit_data_stays() -> None:
    def work() -> list[int]:
        limit_worker()
        return [oom_score(), resource.getrlimit(resource.RLIMIT_DATA)[0]]

    assert in_helper(work, DEADLINE) == [1000, resource.getrlimit(resource.RLIMIT_DATA)[0]]


def test_the_supervisor_is_killed_after_its_workers() -> None:
    def work() -> list[Any]:
        before = oom_score()
        return [before, protect_supervisor(), oom_score()]

    before, allowed, after = in_helper(work, DEADLINE)
    assert after == (OOM_SCORES["supervisor"].adjustment if allowed else before)
    assert OOM_SCORES["supervisor"].adjustment > -1000
    assert OOM_SCORES["worker"].adjustment == 1000
