# SPDX-License-Identifier: GPL-2.0-only
"""The guest's root: Debian packages unpacked once into an initramfs layer.

The host's root over 9p would change with each upgrade of the host; squashfs, erofs and loop are modules
or missing in some kernels. An initramfs needs no driver.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from soak.errors import UsageError
from soak.lab.image.apt import Suite, machine_mirror
from soak.lab.image.cpio import CpioWriter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from soak.lab.cache import Cache

_SUITE = "bookworm"
_PACKAGES = ["python3", "libc6", "ndctl", "e2fsprogs", "xfsprogs", "kmod", "dmsetup"]
# Dependencies of maintainer scripts, and of tools that the guest does not run.
_UNWANTED = frozenset(
    (
        "dpkg",
        "gcc-12-base",
        "init-system-helpers",
        "libdb5.3",
        "libgdbm6",
        "libfile-find-rule-perl",
        "libgdbm-compat4",
        "libgssapi-krb5-2",
        "libicu72",
        "libk5crypto3",
        "libkrb5-3",
        "libkrb5support0",
        "libncursesw6",
        "libnsl2",
        "libnumber-compare-perl",
        "libperl5.36",
        "libtext-glob-perl",
        "libtirpc-common",
        "libtirpc3",
        "logsave",
        "media-types",
        "perl",
        "perl-base",
        "perl-modules-5.36",
        "readline-common",
        "tar",
        "usrmerge",
    )
)
_PRUNED = (
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/lintian",
    "usr/share/info",
    "usr/share/bash-completion",
    "usr/share/zsh",
    "usr/share/perl5",
    "usr/share/python3",
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/lib/x86_64-linux-gnu/perl-base",
    "usr/lib/udev",
    # Its install commands need a shell, which the guest lacks.
    "etc/modprobe.d",
    "usr/lib/modprobe.d",
    "usr/lib/python3.11/lib2to3",
    "usr/lib/python3.11/pydoc_data",
    "usr/lib/python3.11/idlelib",
    "usr/lib/python3.11/ensurepip",
    "usr/lib/python3.11/distutils",
)
_MERGED = ("bin", "sbin", "lib", "lib64")
# Commands that must run in the root, to detect a needed package among the unwanted ones.
_SELF_TESTS = (
    ("ndctl", "--version"),
    ("mkfs.ext4", "-V"),
    ("mkfs.xfs", "-V"),
    ("modprobe", "--version"),
    ("dmsetup", "--help"),
    ("python3.11", "-s", "-c", "import ctypes, hashlib, json, mmap, select, tomllib, uuid"),
    # pyroute2 always imports these.
    ("python3.11", "-s", "-c", "import sqlite3, ssl, unittest.mock"),
)
_PYTHON = Path("/usr/bin/python3.11")
_STANDARD_LIBRARY = "usr/lib/python3.11"
_LOADER = "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_TOOL_TIMEOUT_SECONDS = 600
# The guest's third-party imports.
_GUEST_DEPENDENCIES = ("pyroute2", "schedule", "structlog", "tomli_w")
# A soak's exporter runs on the host, but a script may run `dax-soak run` with its exporter.
_SCRIPT_DEPENDENCIES = ("exporter", "prometheus_client")
_GUEST_LIBRARY = "usr/lib/dax-soak"


class GuestRoot:
    """The unpacked packages, and their initramfs layer."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        key = hashlib.sha256(repr((_SUITE, _PACKAGES, sorted(_UNWANTED), _PRUNED, _SELF_TESTS)).encode())
        self._directory = cache.directory(f"root/{_SUITE}-{_key(key)}", self._build)
        self.layer = self._directory / "root.cpio"

    def run(self, tool: str, *arguments: str) -> None:
        """Run a program of the root on the host."""
        _run_in(self._directory / "root", tool, *arguments)

    def compile(self, library: Path, seen_as: str) -> None:
        """Write byte code beside the sources in `library`, which the guest mounts at `seen_as`."""
        _compile(self._directory / "root", library, seen_as)

    def _build(self, directory: Path) -> None:
        root = directory / "root"
        _unpack(self._cache, _PACKAGES, root)
        _compile(root, root / _STANDARD_LIBRARY, _STANDARD_LIBRARY)
        for tool, *arguments in _SELF_TESTS:
            _run_in(root, tool, *arguments)
        with (directory / "root.cpio").open("wb") as out:
            archive = CpioWriter(out)
            for empty in ("dev", "proc", "sys", "run", "tmp", "mnt", "root", "var"):
                archive.directory(empty)
            archive.tree(root)
            archive.close()


def program_layers(cache: Cache, root: GuestRoot) -> list[Path]:
    """Return the initramfs layers with this program and its dependencies, keyed by their contents."""
    return [
        _library_layer(cache, root, "dependencies", _GUEST_DEPENDENCIES, {}),
        _library_layer(cache, root, "program", ("soak",), {"init": _INIT}),
    ]


def script_layer(cache: Cache) -> Path:
    """Return the layer with the further dependencies of scripts: the exporter."""
    return _library_layer(cache, GuestRoot(cache), "script", _SCRIPT_DEPENDENCIES, {})


def package_layer(cache: Cache, packages: Sequence[str]) -> Path:
    """Return the layer with a script's own Debian packages, and their dependencies."""

    def build(directory: Path) -> None:
        root = directory / "root"
        _unpack(cache, packages, root)
        with (directory / "packages.cpio").open("wb") as out:
            archive = CpioWriter(out)
            archive.tree(root)
            archive.close()

    key = hashlib.sha256(repr((_SUITE, sorted(packages), sorted(_UNWANTED), _PRUNED)).encode())
    return cache.directory(f"packages/{_SUITE}-{_key(key)}", build) / "packages.cpio"


def _unpack(cache: Cache, packages: Sequence[str], root: Path) -> None:
    """Fetch packages with their dependencies, and make a root of them."""
    root.mkdir()
    with cache.locked(f"apt/{_SUITE}.index"):
        suite = Suite(_SUITE, cache.package_index(_SUITE), machine_mirror())
        suite.update()
        suite.unpack_with_dependencies(list(packages), root, _UNWANTED)
    _merge_usr(root)
    for name in _PRUNED:
        shutil.rmtree(root / name, ignore_errors=True)


def _library_layer(
    cache: Cache, root: GuestRoot, kind: str, packages: Sequence[str], programs: Mapping[str, str]
) -> Path:
    sources = sorted(_program_files(packages))
    digest = hashlib.sha256()
    for name, path in sources:
        digest.update(f"{name}\0".encode())
        digest.update(path.read_bytes())
    digest.update(str(root.layer).encode())

    def build(directory: Path) -> None:
        library = directory / _GUEST_LIBRARY
        for name, path in sources:
            target = library / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
        root.compile(library, _GUEST_LIBRARY)
        with (directory / f"{kind}.cpio").open("wb") as out:
            archive = CpioWriter(out)
            archive.tree(directory / "usr", "usr/")
            for name, text in programs.items():
                archive.file(name, text.encode(), 0o755)
            archive.close()

    return cache.directory(f"{kind}/{_key(digest)}", build) / f"{kind}.cpio"


_INIT = f"""#!{_PYTHON} -I
import sys
sys.path.insert(0, "/{_GUEST_LIBRARY}")
from soak.lab.guest.init import main


def load():
    import soak.lab.guest.soak
    from soak.cli import main

    return main


main(load)
"""


def _program_files(packages: Sequence[str]) -> list[tuple[str, Path]]:
    """List the files of packages, with their names below the guest's library directory."""
    files = []
    for package in packages:
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(package)
        place = Path(spec.origin).parent
        files += [
            (f"{package}/{path.relative_to(place)}", path)
            for path in place.rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        ]
    return files


def _merge_usr(root: Path) -> None:
    """Move `bin`, `sbin`, `lib`, `lib64` to usr and leave links, as Debian's installer does."""
    for name in _MERGED:
        if (root / name).is_dir():
            shutil.copytree(root / name, root / "usr" / name, symlinks=True, dirs_exist_ok=True)
            shutil.rmtree(root / name)
        (root / name).symlink_to(f"usr/{name}")


def _run_in(root: Path, tool: str, *arguments: str) -> None:
    """Run a program of a guest's root on the host, through that root's loader.

    Needs neither privileges nor the tool on the host.

    Raises:
        UsageError: the program is missing, fails, or does not end.
    """
    places = (root / "usr/bin" / tool, root / "usr/sbin" / tool)
    program = next((path for path in places if path.is_symlink() or path.exists()), None)
    if program is None:
        raise UsageError(
            f"The guest's root {root} lacks {tool}: remove {root.parent}, and the next run makes it anew."
        )
    if program.is_symlink():
        # An absolute link is relative to the root, not to the host's.
        program = root / str(program.parent.relative_to(root) / program.readlink()).lstrip("/")
    try:
        result = subprocess.run(
            [root / _LOADER, "--library-path", root / _LIBRARIES, "--argv0", tool, program, *arguments],
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TOOL_TIMEOUT_SECONDS,
            env={"PYTHONHOME": str(root / "usr"), "PATH": "/nonexistent"},
        )
    except subprocess.TimeoutExpired:
        raise UsageError(
            f"The guest's {tool} did not end within {_TOOL_TIMEOUT_SECONDS} s: check the load of this "
            f"machine."
        ) from None
    if result.returncode != 0:
        output = (result.stderr or result.stdout).strip().splitlines()
        raise UsageError(
            f"The guest's {tool} failed (exit code {result.returncode}"
            f"{f', {output[-1]}' if output else ''}): free some space on the disk of {root.parent}, or "
            f"remove that directory, and the next run makes it anew."
        )


def _compile(root: Path, library: Path, seen_as: str) -> None:
    """Compile with the guest's interpreter to byte code that it loads unchecked."""
    _run_in(
        root,
        _PYTHON.name,
        "-P",
        "-s",
        "-m",
        "compileall",
        "-q",
        "--invalidation-mode",
        "unchecked-hash",
        "-s",
        str(library),
        "-p",
        f"/{seen_as}",
        str(library),
    )


def _key(digest: hashlib._Hash) -> str:
    return digest.hexdigest()[:16]
