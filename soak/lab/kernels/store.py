# SPDX-License-Identifier: GPL-2.0-only
"""Resolves `--kernel` to a boot image and, for a modular kernel, an initramfs layer of modules."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from soak.errors import UsageError
from soak.lab.cache import Cache, cache_directory
from soak.lab.kernels.boot_image import boot_image_release
from soak.lab.kernels.build import SOURCE_SUITES, build_kernel, built_kernel, check_can_build
from soak.lab.kernels.build_tree import open_build_tree
from soak.lab.kernels.debian import DEBIAN_SUITES, fetch_kernel
from soak.lab.kernels.host import host_kernel
from soak.lab.kernels.module_layer import (
    layer_of_installed,
    layer_of_tree,
    modules_beside,
    release_directory,
)
from soak.lab.progress import Progress

if TYPE_CHECKING:
    from soak.lab.image.root import GuestRoot

_HOST: Final = "host"
_DEBIAN: Final = "debian"
_BUILD: Final = "build"
KERNEL_NAMES: Final = (
    *(f"{_DEBIAN}:{version}" for version in DEBIAN_SUITES),
    *(f"{_BUILD}:{version}" for version in SOURCE_SUITES),
    _HOST,
)


@dataclass(frozen=True)
class Kernel:
    """A bootable kernel. `modules` is an initramfs layer, or None if everything is built in.

    An emulated machine boots `unpacked`, if there is such an image.
    """

    name: str
    release: str
    image: Path
    modules: Path | None
    unpacked: Path | None = None


def check_kernel(name: str, modules: Path | None = None) -> None:
    """Refuse a name that is not a kernel, without fetching anything.

    Raises:
        UsageError: the name is unknown, or the file or directory is not a kernel.
    """
    path = _as_path(name)
    if modules is not None and (path is None or _is_directory(path)):
        raise UsageError(
            f"The kernel {name!r} comes with its own modules: use --modules only with a kernel file."
        )
    kind, _, version = name.partition(":")
    if path is not None:
        if _is_directory(path):
            open_build_tree(path)
        else:
            boot_image_release(path)
    elif kind == _HOST:
        boot_image_release(host_kernel()[0])
    elif kind == _BUILD and built_kernel(Cache(cache_directory()), version) is None:
        check_can_build(version)


class KernelStore:
    """Finds kernels; fetches or builds missing ones into the cache."""

    def __init__(self, cache: Cache, root: GuestRoot, progress: Progress | None = None) -> None:
        self._cache = cache
        self._root = root
        self._progress = progress or Progress()

    def find(self, name: str, modules: Path | None = None) -> Kernel:
        """Return the kernel of that name, with the modules that the guest loads.

        Raises:
            UsageError: the name is unknown, or the kernel cannot be used, fetched or built.
        """
        check_kernel(name, modules)
        path = _as_path(name)
        kind, _, version = name.partition(":")
        if path is not None:
            return self._tree(path) if _is_directory(path) else self._file(path, modules)
        if kind == _HOST:
            image, installed = host_kernel()
            return self._modular(name, image, installed.parent)
        if kind == _BUILD:
            image = build_kernel(self._cache, version, self._progress)
            return Kernel(name, boot_image_release(image), image, None)
        image, layer = fetch_kernel(self._cache, self._root, version)
        return Kernel(name, boot_image_release(image), image, layer)

    def _tree(self, directory: Path) -> Kernel:
        tree = open_build_tree(directory)
        layer = layer_of_tree(self._cache, self._root, tree)
        return Kernel(str(directory), tree.release, tree.image, layer)

    def _file(self, image: Path, modules: Path | None) -> Kernel:
        release = boot_image_release(image)
        place = modules_beside(image, release) if modules is None else modules
        if place is None:
            return Kernel(str(image), release, image, None)
        return self._modular(str(image), image, place)

    def _modular(self, name: str, image: Path, modules: Path) -> Kernel:
        release = boot_image_release(image)
        layer = layer_of_installed(self._cache, self._root, release_directory(modules, release))
        return Kernel(name, release, image, layer)


def _as_path(name: str) -> Path | None:
    """Return the path that a name means, or None for one of `KERNEL_NAMES`.

    Raises:
        UsageError: it is neither.
    """
    if name == _HOST:
        return None
    if ":" not in name or _exists(name):
        return Path(name)
    if name not in KERNEL_NAMES:
        raise UsageError(
            f"Unknown kernel {name!r} (choose from {', '.join(KERNEL_NAMES)}, a bzImage file, or a "
            f"kernel build tree)."
        )
    return None


def _exists(name: str) -> bool:
    try:
        return Path(name).exists()
    except OSError:  # ENAMETOOLONG, or EACCES in a parent directory
        return False


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # the same; the reader of the path reports it
        return False
