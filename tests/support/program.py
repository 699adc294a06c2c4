# SPDX-License-Identifier: GPL-2.0-only
"""The program as a user runs it: a process of its own, from the source."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

ROOT: Final = Path(__file__).parents[2]
COMMAND: Final = (sys.executable, "-m", "soak.cli")


def dax_soak(
    *words: str, seconds: float = 300.0, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run dax-soak until it ends; return its exit code and what it printed.

    Raises:
        subprocess.TimeoutExpired: it takes more than so many seconds, and was killed.
    """
    return subprocess.run(
        [*COMMAND, *words],
        check=False,
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=seconds,
        env=environment,
    )
