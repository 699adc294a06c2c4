# SPDX-License-Identifier: GPL-2.0-only
"""`debian:VERSION`: a kernel as Debian ships it, fetched and never installed."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Final

from soak.lab.image.apt import Suite, file_name, machine_mirror
from soak.lab.kernels.module_layer import guest_modules_key, write_layer

if TYPE_CHECKING:
    from pathlib import Path

    from soak.lab.cache import Cache
    from soak.lab.image.root import GuestRoot

# Debian's suites by kernel version.
DEBIAN_SUITES: Final = {"6.1": "bookworm", "6.12": "trixie", "sid": "sid"}

_IMAGE: Final = "vmlinuz"
_LAYER: Final = "modules.cpio"


def fetch_kernel(cache: Cache, root: GuestRoot, version: str) -> tuple[Path, Path]:
    """Return the newest boot image of `version`, and the layer with the guest's modules."""
    mirror = machine_mirror()
    suite_name = DEBIAN_SUITES[version]
    with cache.locked(f"apt/{suite_name}.index"):
        suite = Suite(suite_name, cache.package_index(suite_name), mirror)
        suite.update()
        packages, newest = suite.cached("kernel", lambda: _image_packages(suite))

        def fetch(directory: Path) -> None:
            suite.unpack(packages, directory / "unpacked")
            _keep_kernel(directory, root)

        key = f"{packages[0]}_{file_name(newest)}-{guest_modules_key()}"
        found = cache.directory(f"kernels/{key}", fetch)
    return found / _IMAGE, found / _LAYER


def _image_packages(suite: Suite) -> tuple[list[str], str]:
    """Resolve Debian's meta package to the packages of the image and the modules, and a version.

    Since 7.x an image package is split into linux-binary and linux-modules.
    """
    image = next(name for name in suite.depends("linux-image-amd64") if name.startswith("linux-image-"))
    parts = ("linux-binary-", "linux-modules-")
    split = [name for name in suite.depends(image) if name.startswith(parts)]
    return [image, *split], suite.version(image)


def _keep_kernel(directory: Path, root: GuestRoot) -> None:
    """Reduce an unpacked package to the boot image and the guest's modules."""
    unpacked = directory / "unpacked"
    found = next(path for path in unpacked.rglob("lib/modules/*") if (path / "kernel").is_dir())
    # Since 7.x the image is in the modules' directory.
    images = [*unpacked.glob("boot/vmlinuz-*"), *unpacked.glob("usr/lib/modules/*/vmlinuz")]
    images[0].rename(directory / _IMAGE)
    # The package has no modules.dep, which its installation script makes.
    base = found.parent.parent.parent
    root.run("depmod", "-b", str(base), found.name)
    write_layer(root, found, directory)
    shutil.rmtree(unpacked)
