# SPDX-License-Identifier: GPL-2.0-only
"""Which kernels a fact holds for: releases, and ranges of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

# Major and minor number.
Release = tuple[int, int]
_FIRST: Final[Release] = (0, 0)
_LAST: Final[Release] = (1 << 30, 0)


@dataclass(frozen=True)
class KernelRange:
    """Releases from `first` on and before `end`; without bounds, every kernel."""

    first: Release = _FIRST
    end: Release = _LAST

    def __contains__(self, release: Release) -> bool:
        return self.first <= release < self.end

    def __str__(self) -> str:
        since = "" if self.first == _FIRST else "since {}.{}".format(*self.first)
        until = "" if self.end == _LAST else "before {}.{}".format(*self.end)
        return f"{since} {until}".strip() or "every kernel"


EVERY_KERNEL: Final = KernelRange()


def parse_release(text: str) -> Release:
    """Return (major, minor) of a kernel release.

    Raises:
        ValueError: it does not start with two numbers.
    """
    match = re.match(r"(\d+)\.(\d+)", text)
    if match is None:
        raise ValueError(f"the kernel release {text!r} does not start with two numbers")
    return int(match[1]), int(match[2])
