# SPDX-License-Identifier: GPL-2.0-only
"""The initramfs layer with the modules that the guest loads, and their dependencies."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from soak.errors import UsageError
from soak.lab.guest.modules import GUEST_MODULES
from soak.lab.image.cpio import CpioWriter

if TYPE_CHECKING:
    from collections.abc import Iterable

    from soak.lab.cache import Cache
    from soak.lab.image.root import GuestRoot
    from soak.lab.kernels.build_tree import BuildTree

_LAYER: Final = "modules.cpio"
_INDEXES: Final = ("modules.builtin", "modules.builtin.modinfo", "modules.order")
_STRIP_SECONDS: Final = 300


def guest_modules_key() -> str:
    """Return a cache key of the list of modules, which another version of this program may change."""
    return hashlib.sha256(repr(GUEST_MODULES).encode()).hexdigest()[:8]


def write_layer(root: GuestRoot, modules: Path, place: Path, *, strip: bool = False) -> Path:
    """Write the layer with the guest's part of `modules`, a directory named by its release."""
    with tempfile.TemporaryDirectory(dir=place) as scratch:
        base = Path(scratch)
        kept = base / "lib/modules" / modules.name
        wanted = _closure(modules)
        for name in [*wanted, *_INDEXES]:
            if (modules / name).exists():
                target = kept / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(modules / name, target)
        if strip:
            _strip(kept / name for name in wanted)
        root.run("depmod", "-b", str(base), modules.name)
        with (place / _LAYER).open("wb") as out:
            archive = CpioWriter(out)
            archive.tree(base / "lib", "usr/lib/")
            archive.close()
    return place / _LAYER


def layer_of_installed(cache: Cache, root: GuestRoot, modules: Path) -> Path:
    """Return the layer of installed modules, in the directory `modules`."""

    def build(directory: Path) -> None:
        write_layer(root, modules, directory)

    files = sorted(path for path in modules.rglob("*.ko*") if path.is_file())
    key = f"{modules.name}-{_files_key(modules, files)}-{guest_modules_key()}"
    return cache.directory(f"modules/{key}", build) / _LAYER


def layer_of_tree(cache: Cache, root: GuestRoot, tree: BuildTree) -> Path | None:
    """Return the layer of the modules built in `tree`, or None if it has none."""
    if not tree.modules:
        return None

    def build(directory: Path) -> None:
        with tempfile.TemporaryDirectory(dir=directory) as scratch:
            staged = tree.stage(Path(scratch))
            root.run("depmod", "-b", scratch, tree.release)
            write_layer(root, staged, directory, strip=True)

    files = [tree.directory / name for name in tree.modules]
    key = f"{tree.release}-{_files_key(tree.directory, files)}-{guest_modules_key()}"
    return cache.directory(f"modules/{key}", build) / _LAYER


def modules_beside(image: Path, release: str) -> Path | None:
    """Find `lib/modules` beside an image, as in installed kernels and unpacked packages."""
    beside = (image.parent / "lib/modules", image.parent.parent / "lib/modules")
    for tree in beside:
        if (tree / release / "modules.dep").exists():
            return tree
    return None


def release_directory(tree: Path, release: str) -> Path:
    """Accept `lib/modules/RELEASE`, `lib/modules` and the directory above it."""
    for candidate in (tree.absolute(), tree / release, tree / "lib/modules" / release):
        # The guest finds its modules by the release alone.
        if candidate.name == release and (candidate / "modules.dep").exists():
            return candidate
    raise UsageError(
        f"The directory {str(tree)!r} has no modules of {release}: give the INSTALL_MOD_PATH of 'make "
        f"modules_install'."
    )


def _closure(modules: Path) -> list[str]:
    """Return the files of the guest's modules and their dependencies."""
    needs: dict[str, list[str]] = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        file, _, rest = line.partition(":")
        needs[file] = rest.split()
    by_name = {_module_name(file): file for file in needs}
    kept: dict[str, None] = {}
    queue = [by_name[name] for name in GUEST_MODULES if name in by_name]
    while queue:
        file = queue.pop(0)
        if file not in kept:
            kept[file] = None
            queue.extend(needs[file])
    return list(kept)


def _module_name(file: str) -> str:
    return file.rsplit("/", 1)[-1].partition(".")[0].replace("-", "_")


def _strip(modules: Iterable[Path]) -> None:
    """Strip debugging information, many times the size of the code, which would fill the guest's memory.

    Without binutils the modules stay large, but work.
    """
    if shutil.which("strip"):
        subprocess.run(
            ["strip", "--strip-debug", *modules], check=False, capture_output=True, timeout=_STRIP_SECONDS
        )


def _files_key(place: Path, files: Iterable[Path]) -> str:
    """Return a cache key of modules, which a rebuild changes: their paths, sizes and times."""
    digest = hashlib.sha256(str(place.resolve()).encode())
    for file in files:
        status = file.stat()
        digest.update(f"\0{file.relative_to(place)} {status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]
