# SPDX-License-Identifier: GPL-2.0-only
"""A kernel build tree, as far as the lab looks at it."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from soak.lab.cache import Cache, cache_directory
from soak.lab.image.root import GuestRoot
from soak.lab.kernels.store import Kernel, KernelStore
from tests.lab.test_build_tree import STYLES
from tests.lab.test_cpio import parse

if TYPE_CHECKING:
    from pathlib import Path


@dataclass
class Built:
    """What `make` would have left of a kernel that is there already."""

    place: Path
    kernel: Kernel
    modules: dict[str, bytes]

    def list_modules(self, style: str) -> None:
        lines = [STYLES[style].format(name.removesuffix(".ko")) + "\n" for name in self.modules]
        (self.place / "modules.order").write_text("".join(lines))


def build(place: Path) -> Built:
    """Put Debian's boot image and modules where their build had them."""
    cache = Cache(cache_directory())
    kernel = KernelStore(cache, GuestRoot(cache)).find("debian:6.1")
    assert kernel.modules is not None
    (place / "arch/x86/boot").mkdir(parents=True)
    (place / "arch/x86/boot/bzImage").symlink_to(kernel.image)
    (place / "include/config").mkdir(parents=True)
    (place / "include/config/kernel.release").write_text(f"{kernel.release}\n")
    (place / ".config").write_text("CONFIG_XFS_FS=m\n")
    installed = f"usr/lib/modules/{kernel.release}/"
    modules = {}
    for entry_name, entry in parse(kernel.modules.read_bytes()).items():
        name = entry_name.decode().removeprefix(installed)
        if name.endswith(".ko") and stat.S_ISREG(entry.mode):
            modules[name.removeprefix("kernel/")] = entry.data
        elif name.startswith("modules.builtin") and not name.endswith(".bin"):
            (place / name).write_bytes(entry.data)
    assert modules
    for name, data in modules.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    return Built(place, kernel, modules)
