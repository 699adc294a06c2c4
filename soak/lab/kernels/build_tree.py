# SPDX-License-Identifier: GPL-2.0-only
"""A kernel build tree: a directory in which `make` built a kernel. It is read, never written."""

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
# Lists of built-in drivers, for depmod and modprobe.
_BUILTIN: Final = ("modules.builtin", "modules.builtin.modinfo")
# The lists and the configuration have some hundred KiB.
_LARGEST: Final = 64 << 20
_AS_INSTALLED: Final = "kernel/"
_OBJECT: Final = re.compile(r"\.o$")


@dataclass(frozen=True)
class BuildTree:
    """The boot image and modules built in `directory`; `modules` are relative to it."""

    directory: Path
    image: Path
    release: str
    modules: tuple[str, ...]

    def stage(self, base: Path) -> Path:
        """Link the modules below `base`, in the layout of `make modules_install`."""
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
    """Open the build tree in `directory`.

    Raises:
        UsageError: it is not a build tree, or the build is incomplete.
    """
    try:
        return _open(directory)
    except OSError as error:
        raise UsageError(
            f"The kernel build tree {str(directory)!r} cannot be read ({error.strerror}): give a "
            f"readable one."
        ) from None


def _open(directory: Path) -> BuildTree:
    image, release_file = directory / _IMAGE, directory / _RELEASE
    if not image.exists() or not release_file.exists():
        raise UsageError(_what_is_missing(directory))
    release, configured = boot_image_release(image), _text(release_file).strip()
    if release != configured:
        raise UsageError(
            f"The kernel build tree {str(directory)!r} is half built ({_IMAGE} is {release}, "
            f"{_RELEASE} is {configured}): run 'make' there again."
        )
    return BuildTree(directory, image, release, tuple(dict.fromkeys(_modules(directory))))


def _what_is_missing(directory: Path) -> str:
    shown = repr(str(directory))
    if (directory / ".config").exists():
        return (
            f"The kernel build tree {shown} is configured but not built (it has no {_IMAGE}): run "
            f"'make' there."
        )
    if (directory / "Kconfig").exists():
        return (
            f"The kernel source tree {shown} is neither configured nor built (it has no .config): run "
            f"'make defconfig' or another configuration there, then 'make'."
        )
    return (
        f"The directory {shown} is not a kernel build tree (it has neither {_IMAGE} nor .config): give "
        f"one in which 'make' built a kernel, or a bzImage file."
    )


def _modules(directory: Path) -> Iterator[str]:
    """Yield the built modules, relative to the tree."""
    order = directory / _ORDER
    if not order.exists():
        if _has_modules(directory):
            raise UsageError(
                f"The modules of the kernel build tree {str(directory)!r} are not built (it has no "
                f"{_ORDER}): run 'make modules' there, or give its {_IMAGE} to boot without them."
            )
        return
    for line in _text(order).split():
        # Since 6.3 the list has object files; before 5.3 it has the prefix of the installed path.
        name = _OBJECT.sub(".ko", line)
        short = name.removeprefix(_AS_INSTALLED)
        found = next((path for path in (name, short) if _is_in(directory, path)), None)
        if found is None:
            raise UsageError(
                f"The kernel build tree {str(directory)!r} is half built ({_ORDER} lists the missing "
                f"{name!r}): run 'make modules' there."
            )
        yield str(PurePosixPath(found))


def _text(path: Path) -> str:
    return read_regular(path, _LARGEST).decode(errors="replace")


def _is_in(directory: Path, name: str) -> bool:
    """Return whether a name is a module inside the tree, and not a path that leads out of it."""
    parts = PurePosixPath(name)
    inside = not parts.is_absolute() and ".." not in parts.parts
    return inside and name.endswith(".ko") and (directory / name).is_file()


def _has_modules(directory: Path) -> bool:
    config = directory / ".config"
    return config.exists() and any(line.endswith("=m") for line in _text(config).splitlines())
