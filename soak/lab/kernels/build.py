# SPDX-License-Identifier: GPL-2.0-only
"""`build:VERSION`: a kernel built from Debian's source package with the project's configuration.

It has what Debian's own kernels lack (see kernel.config), and nothing of it is a module.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from soak.errors import UsageError
from soak.lab.image.apt import Suite, file_name, machine_mirror
from soak.lab.kernels.source_tree import SourceTree
from soak.lab.packages import missing, refuse_without

if TYPE_CHECKING:
    from collections.abc import Iterator

    from soak.lab.cache import Cache
    from soak.lab.progress import Progress

# Which suite of Debian has the source of which kernel that the configuration was tried with.
SOURCE_SUITES: Final = {"6.12": "trixie"}
IMAGE: Final = "bzImage"

_FRAGMENT: Final = Path(__file__).with_name("kernel.config")
_IMAGE_IN_TREE: Final = "arch/x86/boot/bzImage"
_SPACE_NEEDED: Final = 5 << 30
_UNPACK_SECONDS: Final = 1800
_TERMINATED_EXIT: Final = 128 + signal.SIGTERM

# What a build needs, and the Debian packages that have it. pahole makes the type information from
# which the leak detector learns how the kernel's structures are laid out.
_PROGRAMS: Final = {
    "gcc": "gcc",
    "ld": "binutils",
    "make": "make",
    "flex": "flex",
    "bison": "bison",
    "bc": "bc",
    "xz": "xz-utils",
    "perl": "perl",
    "pahole": "dwarves",
}
_HEADERS: Final = {"stdio.h": "libc6-dev", "gelf.h": "libelf-dev", "zlib.h": "zlib1g-dev"}


def missing_build_packages() -> list[str]:
    """Return the Debian packages of what a build needs and does not find."""
    return missing(_PROGRAMS, _HEADERS)


def check_can_build(version: str) -> None:
    """Refuse to begin a build that must fail.

    Raises:
        UsageError: programs or headers are missing; the sentence says how to get them.
    """
    refuse_without(missing_build_packages(), f"build Linux {version}")


def built_kernel(cache: Cache, version: str) -> Path | None:
    """Return the boot image of `version` that was built last with today's configuration, if any.

    Raises:
        UsageError: the cache may not be looked at.
    """
    try:
        images = (cache.root / "kernels").glob(f"{_key(version, '*')}/{IMAGE}")
        return max(images, key=lambda image: image.stat().st_mtime_ns, default=None)
    except OSError as error:
        raise cache.unusable(error) from None


def build_kernel(cache: Cache, version: str, progress: Progress) -> Path:
    """Return the boot image of the newest `version`, building it where that was not done yet.

    Raises:
        UsageError: something is missing, or the build failed; nothing is left behind.
    """
    suite_name, package = SOURCE_SUITES[version], f"linux-source-{version}"
    suite = Suite(suite_name, cache.package_index(suite_name), machine_mirror())
    index = f"apt/{suite_name}.index"
    with cache.locked(index):
        suite.update()
        _, source = suite.remembered(package, lambda: ([package], suite.version(package)))

    def build(directory: Path) -> None:
        check_can_build(version)
        _check_space(directory)
        began = time.monotonic()
        progress.say(
            f"Building Linux from Debian's {package} {source}: once for each version, several minutes"
        )
        progress.tick("fetching the source")
        # Whoever else wants a package of this suite need not wait until all is compiled.
        with cache.locked(index):
            suite.unpack([f"{package}={source}"], directory / "package")
        progress.tick("unpacking the source")
        tree = SourceTree(f"Linux {source}", _unpack(directory / "package", package), progress)
        for line in tree.configure(_FRAGMENT):
            progress.say(f"warning: this source has no {line}, which the lab's configuration asks")
        shutil.move(tree.compile(_IMAGE_IN_TREE), directory / IMAGE)
        shutil.move(tree.configuration, directory / "config")
        shutil.rmtree(directory / "package")
        progress.say(f"Built Linux {source} in {(time.monotonic() - began) / 60:.0f} min")

    with _ended_in_order():
        return cache.directory(f"kernels/{_key(version, source)}", build) / IMAGE


def _key(version: str, source: str) -> str:
    fragment = hashlib.sha256(_FRAGMENT.read_bytes()).hexdigest()[:8]
    return f"build-{version}_{file_name(source)}-{fragment}"


def _unpack(place: Path, package: str) -> Path:
    """Unpack the archive that is the package's content, and return the tree."""
    archive = place / f"usr/src/{package}.tar.xz"
    unpacked = subprocess.run(
        ["tar", "--extract", "--file", archive, "--directory", place],
        check=False,
        capture_output=True,
        text=True,
        timeout=_UNPACK_SECONDS,
    )
    if unpacked.returncode != 0:
        raise UsageError(f"The kernel's source could not be unpacked: {unpacked.stderr.strip()}")
    archive.unlink()
    return place / package


def _check_space(directory: Path) -> None:
    free = shutil.disk_usage(directory).free
    if free < _SPACE_NEEDED:
        raise UsageError(
            f"To build a kernel, the cache {directory.parent.parent} needs {_SPACE_NEEDED >> 20} MiB "
            f"and has {free >> 20} MiB: free some space, or give another one with DAX_SOAK_CACHE."
        )


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """Have SIGTERM clear the half built tree away, as Ctrl-C does: it has gigabytes."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(_TERMINATED_EXIT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
