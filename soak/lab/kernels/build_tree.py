# SPDX-License-Identifier: GPL-2.0-only
"""A kernel build tree: a directory in which `make` built a kernel, which is read and never written."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Final

from soak.errors import UsageError
from soak.files.regular import read_regular
from soak.lab.kernels.boot_image import boot_image_release

if TYPE_CHECKING:
    from collections.abc import Iterator

_IMAGE: Final = "arch/x86/boot/bzImage"
_RELEASE: Final = "include/config/kernel.release"
_ORDER: Final = "modules.order"
# depmod and modprobe tell by these that a driver is in the kernel and no module.
_BUILTIN: Final = ("modules.builtin", "modules.builtin.modinfo")
# The lists and the configuration have some hundred KiB.
_LARGEST: Final = 64 << 20
_AS_INSTALLED: Final = "kernel/"
_OBJECT: Final = re.compile(r"\.o$")


@dataclass(frozen=True)
class BuildTree:
    """What was built in `directory`: a boot image, and modules by their paths in it."""

    directory: Path
    image: Path
    release: str
    modules: tuple[str, ...]

    def stage(self, base: Path) -> Path:
        """Lay the modules out below `base` as `make modules_install` would, as links."""
        staged = base / "lib/modules" / self.release
        staged.mkdir(parents=True)
        for name in self.modules:
            link = staged / _AS_INSTALLED / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(self.directory.absolute() / name)
        order = "".join(f"{_AS_INSTALLED}{name}\n" for name in self.modules)
        (staged / _ORDER).write_text(order)
        for name in _BUILTIN:
            if (self.directory / name).exists():
                (staged / name).symlink_to(self.directory.absolute() / name)
        return staged


def open_build_tree(directory: Path) -> BuildTree:
    """Look at what was built in `directory`.

    Raises:
        UsageError: it is no build tree, or what was built is not complete.
    """
    try:
        return _open(directory)
    except OSError as error:
        raise UsageError(
            f"The kernel build tree {str(directory)!r} cannot be read ({error.strerror}): give one "
            f"that you may read."
        ) from None


def _open(directory: Path) -> BuildTree:
    image, told = directory / _IMAGE, directory / _RELEASE
    if not image.exists() or not told.exists():
        raise UsageError(_what_is_missing(directory))
    release, configured = boot_image_release(image), _text(told).strip()
    if release != configured:
        raise UsageError(
            f"The kernel build tree {str(directory)!r} is half built ({_IMAGE} is {release}, the "
            f"tree is {configured} by now): run 'make' there again."
        )
    return BuildTree(directory, image, release, tuple(dict.fromkeys(_modules(directory))))


def _what_is_missing(directory: Path) -> str:
    shown = repr(str(directory))
    if (directory / ".config").exists():
        return (
            f"The kernel build tree {shown} was configured but not built (it has no {_IMAGE}): run "
            f"'make' there."
        )
    if (directory / "Kconfig").exists():
        return (
            f"The kernel source tree {shown} was neither configured nor built (it has no .config): "
            f"run 'make defconfig' or another configuration, and then 'make' there."
        )
    return (
        f"The directory {shown} is no kernel build tree (it has neither {_IMAGE} nor .config): give "
        f"one in which 'make' built a kernel, or a bzImage file."
    )


def _modules(directory: Path) -> Iterator[str]:
    """Name the modules that were built, as files of the tree."""
    order = directory / _ORDER
    if not order.exists():
        if _has_modules(directory):
            raise UsageError(
                f"The kernel build tree {str(directory)!r} has modules that were not built (it has "
                f"no {_ORDER}): run 'make modules' there, or give its {_IMAGE} to boot without them."
            )
        return
    for line in _text(order).split():
        # Since 6.3 objects are listed; before 5.3 the place where modules are installed was in front.
        name = _OBJECT.sub(".ko", line)
        short = name.removeprefix(_AS_INSTALLED)
        found = next((path for path in (name, short) if _is_in(directory, path)), None)
        if found is None:
            raise UsageError(
                f"The kernel build tree {str(directory)!r} is half built ({_ORDER} lists {name!r}, "
                f"which is not there): run 'make modules' there."
            )
        yield str(PurePosixPath(found))


def _text(path: Path) -> str:
    return read_regular(path, _LARGEST).decode(errors="replace")


def _is_in(directory: Path, name: str) -> bool:
    """Say whether a name is a file of the tree; one that leads out of it would lead links astray."""
    parts = PurePosixPath(name)
    inside = not parts.is_absolute() and ".." not in parts.parts
    return inside and name.endswith(".ko") and (directory / name).is_file()


def _has_modules(directory: Path) -> bool:
    config = directory / ".config"
    return config.exists() and any(line.endswith("=m") for line in _text(config).splitlines())
