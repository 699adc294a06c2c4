# SPDX-License-Identifier: GPL-2.0-only
"""Kernels that tests boot: none is built for them."""

from __future__ import annotations

from typing import Final

from soak.lab.cache import Cache, cache_directory
from soak.lab.kernels.build import built_kernel
from tests.support.program import ROOT

_SHARED: Final = ROOT.parent / "shared/kernels/6.12-iommufd/bzImage"
# It has everything built in; the shared one spares the minutes that `build:` takes.
MODULELESS_KERNEL: Final = _SHARED if _SHARED.exists() else built_kernel(Cache(cache_directory()), "6.12")
# Faults are shown on the kernel that boots quickest; without it Debian's does as well.
QUICK_KERNEL: Final = str(MODULELESS_KERNEL or "debian:6.12")
