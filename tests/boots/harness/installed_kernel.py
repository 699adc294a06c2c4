# SPDX-License-Identifier: GPL-2.0-only
"""A kernel as files: its image, and what `make modules_install` would have left."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from soak.lab.cache import Cache, cache_directory
from soak.lab.image.root import GuestRoot
from soak.lab.kernels.store import KernelStore
from tests.lab.test_cpio import parse

if TYPE_CHECKING:
    from pathlib import Path

    from soak.lab.kernels.store import Kernel


def find(name: str) -> Kernel:
    """Return a kernel of the lab."""
    cache = Cache(cache_directory())
    return KernelStore(cache, GuestRoot(cache)).find(name)


def install_modules(kernel: Kernel, place: Path) -> None:
    """Unpack the modules of a kernel."""
    assert kernel.modules is not None
    prefix = f"usr/lib/modules/{kernel.release}/"
    for file, entry in parse(kernel.modules.read_bytes()).items():
        if file.decode().startswith(prefix) and stat.S_ISREG(entry.mode):
            target = place / "lib/modules" / kernel.release / file.decode().removeprefix(prefix)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(entry.data)
