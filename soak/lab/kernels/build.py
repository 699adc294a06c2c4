# SPDX-License-Identifier: GPL-2.0-only
"""`build:VERSION`: a kernel built from Debian's source package with the project's configuration.

It has features that Debian's kernels lack (see kernel.config), all built in.
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

# Debian's suites by the kernel versions for which the configuration was tested.
SOURCE_SUITES: Final = {"6.12": "trixie"}
IMAGE: Final = "bzImage"

_FRAGMENT: Final = Path(__file__).with_name("kernel.config")
_IMAGE_IN_TREE: Final = "arch/x86/boot/bzImage"
_SPACE_NEEDED: Final = 5 << 30
_UNPACK_SECONDS: Final = 1800
_TERMINATED_EXIT: Final = 128 + signal.SIGTERM

# Programs and headers of a build, and their Debian packages. pahole makes the BTF that the leak detector
# reads.
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
    """Return the Debian packages that a build needs and this machine lacks."""
    return missing(_PROGRAMS, _HEADERS)


def check_can_build(version: str) -> None:
    """Refuse a build if programs or headers are missing.

    Raises:
        UsageError: with the command that installs them.
    """
    refuse_without(missing_build_packages(), f"build Linux {version}")


def built_kernel(cache: Cache, version: str) -> Path | None:
    """Return the newest cached boot image of `version` with the current configuration, if any.

    Raises:
        UsageError: the cache cannot be read.
    """
    try:
        images = (cache.root / "kernels").glob(f"{_key(version, '*')}/{IMAGE}")
        return max(images, key=lambda image: image.stat().st_mtime_ns, default=None)
    except OSError as error:
        raise cache.unusable(error) from None


def build_kernel(cache: Cache, version: str, progress: Progress) -> Path:
    """Return the boot image of the newest `version`, building it if it is not cached.

    Raises:
        UsageError: a package is missing, or the build failed; nothing is left behind.
    """
    suite_name, package = SOURCE_SUITES[version], f"linux-source-{version}"
    suite = Suite(suite_name, cache.package_index(suite_name), machine_mirror())
    index = f"apt/{suite_name}.index"
    with cache.locked(index):
        suite.update()
        _, source = suite.cached(package, lambda: ([package], suite.version(package)))

    def build(directory: Path) -> None:
        check_can_build(version)
        _check_space(directory)
        began = time.monotonic()
        progress.say(
            f"Building Linux from Debian's {package} {source}; this takes minutes, once for each version"
        )
        progress.tick("fetching the source")
        # Only for the fetch: another process that needs this suite must not wait for the compiler.
        with cache.locked(index):
            suite.unpack([f"{package}={source}"], directory / "package")
        progress.tick("unpacking the source")
        tree = SourceTree(f"Linux {source}", _unpack(directory / "package", package), progress)
        for line in tree.configure(_FRAGMENT):
            progress.say(f"warning: this source ignores {line} of the lab's configuration")
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
    """Unpack the archive in the package, and return the source tree."""
    archive = place / f"usr/src/{package}.tar.xz"
    unpacked = subprocess.run(
        ["tar", "--extract", "--file", archive, "--directory", place],
        check=False,
        capture_output=True,
        text=True,
        timeout=_UNPACK_SECONDS,
    )
    if unpacked.returncode != 0:
        raise UsageError(f"{archive} could not be unpacked: {unpacked.stderr.strip()}")
    archive.unlink()
    return place / package


def _check_space(directory: Path) -> None:
    free = shutil.disk_usage(directory).free
    if free < _SPACE_NEEDED:
        raise UsageError(
            f"To build a kernel, the cache {directory.parent.parent} needs {_SPACE_NEEDED >> 20} MiB "
            f"and has {free >> 20} MiB: free some space, or set DAX_SOAK_CACHE to another directory."
        )


@contextlib.contextmanager
def _ended_in_order() -> Iterator[None]:
    """Make SIGTERM remove the half-built tree, which has gigabytes, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(_TERMINATED_EXIT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
