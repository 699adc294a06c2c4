"""The kernel that a lab boots: which image, which release, and which of its modules.

A kernel is named on the command line as `debian:SUITE` or as a file; what comes out is always a
boot image and, for kernels that have modules, an initramfs layer with those the guest loads.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from soak.errors import UsageError
from soak.lab.apt import Suite, machine_mirror
from soak.lab.cpio import CpioWriter
from soak.lab.modules import GUEST_MODULES

if TYPE_CHECKING:
    from soak.lab.cache import Cache
    from soak.lab.image import GuestRoot

# Which suite of Debian has which kernel.
_DEBIAN = "debian"
DEBIAN_SUITES = {"6.1": "bookworm", "6.12": "trixie", "sid": "sid"}

# Documentation/arch/x86/boot.rst: where a bzImage says what it is.
_BOOT_FLAG_OFFSET, _BOOT_FLAG = 0x1FE, 0xAA55
_MAGIC_OFFSET, _MAGIC = 0x202, b"HdrS"
_VERSION_OFFSET, _SETUP_START = 0x20E, 0x200
_SETUP_SIZE = 0x8000
# A release becomes the name of a directory.
_RELEASE = re.compile(rb"([0-9][!-.0-~]*)[ \0]")

_LAYER = "modules.cpio"
_INDEXES = ("modules.builtin", "modules.builtin.modinfo", "modules.order")


@dataclass(frozen=True)
class Kernel:
    """A bootable kernel. `modules` is an initramfs layer, or None where nothing is modular."""

    name: str
    release: str
    image: Path
    modules: Path | None


def boot_image_release(image: Path) -> str:
    """Return the release that the header of a bzImage names.

    Raises:
        UsageError: the file is not there, or is no bootable x86 kernel.
    """
    try:
        with image.open("rb") as file:
            setup = file.read(_SETUP_SIZE)
    except OSError as error:
        raise UsageError(
            f"The kernel {str(image)!r} cannot be read ({error.strerror}): give a bzImage or "
            f"vmlinuz file, or one of {_known_names()}."
        ) from None
    if (
        len(setup) <= _VERSION_OFFSET + 2
        or struct.unpack_from("<H", setup, _BOOT_FLAG_OFFSET)[0] != _BOOT_FLAG
        or setup[_MAGIC_OFFSET : _MAGIC_OFFSET + len(_MAGIC)] != _MAGIC
    ):
        raise UsageError(
            f"The file {str(image)!r} is no x86 boot image (it lacks the header of a bzImage): "
            f"give arch/x86/boot/bzImage or a vmlinuz, not the ELF file vmlinux."
        )
    # The pointer is 0 where an image names no release.
    pointer = struct.unpack_from("<H", setup, _VERSION_OFFSET)[0]
    release = _RELEASE.match(setup, pointer + _SETUP_START)
    if pointer == 0 or release is None:
        raise UsageError(
            f"The boot image {str(image)!r} names no kernel release in its header, or is cut "
            f"short: build or copy it again."
        )
    return release[1].decode()


def check_kernel(name: str) -> None:
    """Refuse a name that means no kernel, without fetching anything.

    Raises:
        UsageError: the name means nothing, or the file is no kernel.
    """
    kind, separator, argument = name.partition(":")
    if not separator or _exists(name):
        boot_image_release(Path(name))
    elif kind != _DEBIAN or argument not in DEBIAN_SUITES:
        raise UsageError(
            f"The kernel {name!r} is unknown: give one of {_known_names()}, or a file."
        )


class KernelStore:
    """Finds kernels, fetching those that are missing into the cache."""

    def __init__(self, cache: Cache, root: GuestRoot) -> None:
        self._cache = cache
        self._root = root

    def find(self, name: str, modules: Path | None = None) -> Kernel:
        """Return the kernel that `name` stands for, with what the guest needs of its modules.

        Raises:
            UsageError: the name means nothing, or the file is no kernel.
        """
        check_kernel(name)
        kind, _, argument = name.partition(":")
        if kind == _DEBIAN and not _exists(name):
            return self._debian(name, argument)
        return self._file(Path(name), modules)

    def _debian(self, name: str, argument: str) -> Kernel:
        mirror = machine_mirror()
        suite_name = DEBIAN_SUITES[argument]
        with self._cache.locked(f"apt/{suite_name}.index"):
            suite = Suite(suite_name, self._cache.package_index(suite_name), mirror)
            suite.update()
            packages, version = suite.remembered("kernel", lambda: _image_packages(suite))

            def fetch(directory: Path) -> None:
                suite.unpack(packages, directory / "unpacked")
                self._keep_kernel(directory)

            key = f"{packages[0]}_{_plain(version)}-{_modules_key()}"
            found = self._cache.directory(f"kernels/{key}", fetch)
        image = found / "vmlinuz"
        return Kernel(name, boot_image_release(image), image, found / _LAYER)

    def _keep_kernel(self, directory: Path) -> None:
        """Reduce an unpacked package to the boot image and the guest's modules."""
        unpacked = directory / "unpacked"
        found = next(path for path in unpacked.rglob("lib/modules/*") if (path / "kernel").is_dir())
        # Since 7.x the image lies among the modules.
        images = [*unpacked.glob("boot/vmlinuz-*"), *unpacked.glob("usr/lib/modules/*/vmlinuz")]
        images[0].rename(directory / "vmlinuz")
        # The package has no modules.dep: its installation script would make it.
        base = found.parent.parent.parent
        self._root.run("depmod", "-b", str(base), found.name)
        self._write_layer(found, directory)
        shutil.rmtree(unpacked)

    def _file(self, image: Path, modules: Path | None) -> Kernel:
        release = boot_image_release(image)
        tree = _modules_beside(image, release) if modules is None else modules
        if tree is None:
            return Kernel(str(image), release, image, None)
        found = _release_directory(tree, release)

        def build(directory: Path) -> None:
            self._write_layer(found, directory)

        key = f"{release}-{_tree_key(found)}-{_modules_key()}"
        return Kernel(
            str(image), release, image, self._cache.directory(f"modules/{key}", build) / _LAYER
        )

    def _write_layer(self, modules: Path, place: Path) -> None:
        """Write the initramfs layer with the guest's modules and what those need."""
        with tempfile.TemporaryDirectory(dir=place) as scratch:
            base = Path(scratch)
            kept = base / "lib/modules" / modules.name
            for name in [*_closure(modules), *_INDEXES]:
                if (modules / name).exists():
                    target = kept / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy2(modules / name, target)
            self._root.run("depmod", "-b", str(base), modules.name)
            with (place / _LAYER).open("wb") as out:
                archive = CpioWriter(out)
                archive.tree(base / "lib", "usr/lib/")
                archive.close()


def _exists(name: str) -> bool:
    try:
        return Path(name).exists()
    except OSError:  # longer than a name can be, or below a directory that may not be searched
        return False


def _known_names() -> str:
    return ", ".join(f"debian:{name}" for name in DEBIAN_SUITES)


def _image_packages(suite: Suite) -> tuple[list[str], str]:
    """Resolve Debian's meta package to those that hold the image and the modules, and a version.

    Since 7.x an image package is split into linux-binary and linux-modules.
    """
    image = next(
        name for name in suite.depends("linux-image-amd64") if name.startswith("linux-image-")
    )
    parts = ("linux-binary-", "linux-modules-")
    split = [name for name in suite.depends(image) if name.startswith(parts)]
    return [image, *split], suite.version(image)


def _closure(tree: Path) -> list[str]:
    """Return the files of the guest's modules and of all that they depend on."""
    needs: dict[str, list[str]] = {}
    for line in (tree / "modules.dep").read_text().splitlines():
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


def _modules_beside(image: Path, release: str) -> Path | None:
    """Find a modules directory where installed kernels and unpacked packages have it."""
    beside = (image.parent / "lib/modules", image.parent.parent / "lib/modules")
    for tree in beside:
        if (tree / release / "modules.dep").exists():
            return tree
    return None


def _release_directory(tree: Path, release: str) -> Path:
    """Accept `lib/modules/RELEASE`, `lib/modules` and the directory above it."""
    for candidate in (tree, tree / release, tree / "lib/modules" / release):
        if (candidate / "modules.dep").exists():
            return candidate
    raise UsageError(
        f"The directory {str(tree)!r} holds no modules of {release}: give the one that "
        f"'make modules_install INSTALL_MOD_PATH=' wrote to."
    )


def _modules_key() -> str:
    return hashlib.sha256(repr(GUEST_MODULES).encode()).hexdigest()[:8]


def _tree_key(tree: Path) -> str:
    """Name a module tree by what a rebuild changes: its place and its newest file."""
    newest = max((path.stat().st_mtime_ns for path in tree.rglob("*.ko*")), default=0)
    return hashlib.sha256(f"{tree.resolve()} {newest}".encode()).hexdigest()[:16]


def _plain(version: str) -> str:
    return version.replace(":", "_").replace("~", "-")
