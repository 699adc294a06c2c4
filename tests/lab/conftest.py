# SPDX-License-Identifier: GPL-2.0-only
"""What tests of the lab's host share as fixtures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.lab.support import HostRuns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.lab.support import HostRun


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., HostRun]]:
    """Start runs of the lab's host, and end them after the test."""
    with HostRuns(tmp_path) as hosts:
        yield hosts.start
