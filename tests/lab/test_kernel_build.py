# SPDX-License-Identifier: GPL-2.0-only
"""Building a kernel: a real `make` in a tiny tree, ended in every way in which a build ends."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import tarfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from soak.errors import UsageError
from soak.lab.cache import Cache
from soak.lab.kernels import build as kernel_build
from soak.lab.kernels.boot_image import boot_image_release
from soak.lab.kernels.build import build_kernel, built_kernel
from soak.lab.progress import Progress
from tests.lab.test_kernel_names import boot_image
from tests.support.soak import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Callable

FRAGMENT = Path(kernel_build.__file__).with_name("kernel.config")
VERSION = "6.12"
SOURCE = "6.12.7-1~bpo1"

# What a kernel's own Makefile does, on its smallest scale.
MAKEFILE = """
tinyconfig:
\t@echo "  HOSTCC  scripts/kconfig/conf.o"
\t@echo CONFIG_TINY=y > .config
olddefconfig:
\t@{olddefconfig}
bzImage:
\t@env > $(CURDIR)/../../environment
\t@echo "  CC      mm/gup.o"; echo "  CC [M]  fs/dax.o"; echo "  LD      vmlinux"
\t@{compile}
\t@mkdir -p arch/x86/boot && cp image arch/x86/boot/bzImage
"""
MERGE = '#!/bin/sh\nset -e\ntest "$1 $2" = "-m .config"\ncat "$3" >> "$2"\n'


class Package:
    """Stands for the machine's mirror, which has one source package."""

    # Kconfig writes nothing that is off as a value.
    olddefconfig = "sed -i /=n$$/d .config"
    compile = "true"
    fetched = 0
    version_there = SOURCE

    def __call__(self, *_: object) -> Package:
        return self

    def update(self) -> None:
        pass

    def cached(self, question: str, ask: Callable[[], object]) -> object:
        assert question == f"linux-source-{VERSION}"
        return ask()

    def version(self, package: str) -> str:
        assert package == f"linux-source-{VERSION}"
        return self.version_there

    def unpack(self, packages: list[str], target: Path) -> None:
        assert packages == [f"linux-source-{VERSION}={self.version_there}"]
        self.fetched += 1
        makefile = MAKEFILE.format(olddefconfig=self.olddefconfig, compile=self.compile)
        image = boot_image(b"6.12.7-dax-soak (a@b)\0")
        place = target / "usr/src"
        place.mkdir(parents=True)
        # tar looks at what is in an archive, not at its name: this needs no xz.
        with tarfile.open(place / f"linux-source-{VERSION}.tar.xz", "w") as archive:
            for name, data, mode in (
                ("Makefile", makefile.encode(), 0o644),
                ("image", image, 0o644),
                ("scripts/kconfig/merge_config.sh", MERGE.encode(), 0o755),
            ):
                entry = tarfile.TarInfo(f"linux-source-{VERSION}/{name}")
                entry.size, entry.mode = len(data), mode
                archive.addfile(entry, io.BytesIO(data))


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Package:
    """Have a mirror with a tiny source, all tools, and enough space."""
    there = Package()
    monkeypatch.setattr(kernel_build, "Suite", there)
    monkeypatch.setattr(kernel_build, "machine_mirror", lambda: None)
    monkeypatch.setattr(kernel_build, "missing_build_packages", list)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1 << 50))
    return there


def build(cache: Cache, out: io.StringIO | None = None) -> Path:
    return build_kernel(cache, VERSION, Progress(out or io.StringIO()))


def left_behind(cache: Cache) -> list[str]:
    """Name what is in the cache, but for locks."""
    found = cache.root.rglob("*")
    return sorted(
        str(path.relative_to(cache.root)) for path in found if path.is_file() and path.suffix != ".lock"
    )


def no_build_is_left(cache: Cache) -> bool:
    return not any("build" in name for name in left_behind(cache)) and not any(
        path.name.endswith(".partial") for path in cache.root.rglob("*")
    )


def test_a_kernel_is_built_once_for_each_version(tmp_path: Path, package: Package) -> None:
    cache, out = Cache(tmp_path), io.StringIO()
    assert built_kernel(cache, VERSION) is None
    image = build(cache, out)
    assert boot_image_release(image) == "6.12.7-dax-soak"
    assert build(cache) == image == built_kernel(cache, VERSION)
    assert package.fetched == 1
    # The tree is gone; what was built and with which configuration stays.
    kept = {path.name for path in image.parent.iterdir()}
    assert kept == {"bzImage", "config", "environment"}
    config = (image.parent / "config").read_text()
    assert config.startswith("CONFIG_TINY=y\n")
    assert "CONFIG_IOMMUFD=y\n" in config
    assert "Building Linux" in out.getvalue()
    assert SOURCE in out.getvalue()
    package.version_there = "6.12.8-1"
    newer = build(cache)
    assert newer != image
    assert package.fetched == 2
    assert built_kernel(cache, VERSION) == newer
    assert built_kernel(cache, "6.13") is None


def test_another_configuration_is_another_kernel(
    tmp_path: Path, package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = Cache(tmp_path / "cache")
    first = build(cache)
    other = tmp_path / "kernel.config"
    other.write_text("CONFIG_OTHER=y\n")
    monkeypatch.setattr(kernel_build, "_FRAGMENT", other)
    assert built_kernel(cache, VERSION) is None
    assert build(cache) != first
    assert package.fetched == 2


def test_progress_shows_compiled_files(tmp_path: Path, package: Package) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    package.compile = "sleep 2"
    build(Cache(tmp_path), out)
    lines = re.split(r"[\r\n]", out.getvalue())
    assert any("2 objects so far, compiling vmlinux" in line for line in lines)
    assert any("fetching" in line for line in lines)
    assert all(len(line) < 80 for line in lines)


def test_an_outer_makes_environment_changes_nothing(
    tmp_path: Path, package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert package
    outer = {
        "MAKEFLAGS": "n -- KERNEL=build:6.12 CC=none",
        "ARCH": "arm64",
        "CROSS_COMPILE": "aarch64-linux-gnu-",
        "KCONFIG_CONFIG": "elsewhere",
        "KBUILD_OUTPUT": str(tmp_path / "elsewhere"),
    }
    for name, value in outer.items():
        monkeypatch.setenv(name, value)
    image = build(Cache(tmp_path / "cache"))
    seen = (image.parent / "environment").read_text()
    assert "KBUILD_BUILD_USER=" in seen
    for value in ("none", "arm64", "aarch64", "elsewhere"):
        assert value not in seen


def test_ignored_options_are_reported(tmp_path: Path, package: Package) -> None:
    out = io.StringIO()
    package.olddefconfig = "sed -i -e /CONFIG_IOMMUFD=/d -e /=n$$/d .config"
    build(Cache(tmp_path), out)
    warnings = [line for line in out.getvalue().splitlines() if line.startswith("warning")]
    assert len(warnings) == 1
    assert "CONFIG_IOMMUFD=y" in warnings[0]


@pytest.mark.parametrize("step", ["olddefconfig", "compile"])
def test_a_failed_build_shows_its_logs_end(tmp_path: Path, package: Package, step: str) -> None:
    setattr(package, step, "echo 'mm/gup.c:1: error: no such thing'; exit 3")
    cache = Cache(tmp_path)
    with pytest.raises(UsageError) as caught:
        build(cache)
    sentence, *log = str(caught.value).splitlines()
    assert sentence.startswith(f"Linux {SOURCE} could not be built: 'make ")
    assert "mm/gup.c:1: error: no such thing" in log
    assert no_build_is_left(cache)
    setattr(package, step, "true")
    assert build(cache).exists()


def test_a_killed_compiler_is_reported(tmp_path: Path, package: Package) -> None:
    package.compile = "kill -KILL $$PPID; sleep 60"
    with pytest.raises(UsageError, match="SIGKILL"):
        build(Cache(tmp_path))


def test_a_cache_without_space_is_refused(
    tmp_path: Path, package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=5 << 20))
    cache = Cache(tmp_path)
    with pytest.raises(UsageError, match=r"MiB and has 5 MiB.*DAX_SOAK_CACHE"):
        build(cache)
    assert package.fetched == 0
    assert no_build_is_left(cache)


@pytest.mark.parametrize(
    ("number", "raised", "code"),
    [(signal.SIGINT, KeyboardInterrupt, None), (signal.SIGTERM, SystemExit, 143)],
    ids=["SIGINT", "SIGTERM"],
)
def test_an_ended_build_leaves_nothing(
    tmp_path: Path,
    package: Package,
    number: signal.Signals,
    raised: type[BaseException],
    code: int | None,
) -> None:
    """A compiler goes on writing files until it is gone, wherever it stands below `make`."""
    note = tmp_path / "compiler"
    package.compile = f"(while :; do echo $$$$ > {note}; touch new.$$$$; sleep 0.05; done)"
    cache = Cache(tmp_path / "cache")
    before = signal.getsignal(signal.SIGTERM)

    def send() -> None:
        deadline = time.monotonic() + DEADLINE
        while not (note.exists() and note.read_text()) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(raised) as caught:
        build(cache)
    sender.join()
    assert getattr(caught.value, "code", None) == code
    assert signal.getsignal(signal.SIGTERM) == before
    assert not Path("/proc", note.read_text().strip(), "exe").exists()
    assert no_build_is_left(cache)
    package.compile = "true"
    assert build(cache).exists()


# --- what is asked of a kernel ---


def test_the_configuration_is_complete_and_all_built_in() -> None:
    lines = [line for line in FRAGMENT.read_text().splitlines() if line and line[0] != "#"]
    assert all(re.fullmatch(r'CONFIG_[A-Z0-9_]+=(y|n|[0-9]+|"[^"]*")', line) for line in lines)
    names = [line.partition("=")[0] for line in lines]
    assert len(names) == len(set(names))
    wanted = (
        "ACPI_NFIT",
        "LIBNVDIMM",
        "NVDIMM_PFN",
        "NVDIMM_DAX",
        "DEV_DAX_PMEM",
        "FS_DAX",
        "EXT4_FS",
        "XFS_FS",
        "INTEL_IOMMU",
        "VFIO_IOMMU_TYPE1",
        "VFIO_PCI",
        "IOMMUFD",
        "VIRTIO_PCI",
        "VIRTIO_CONSOLE",
        "BLK_DEV_INITRD",
        "MODULES",
        "AIO",
        "KPROBES",
        "BPF_SYSCALL",
        "BPF_EVENTS",
        "DEBUG_INFO_BTF",
        "KALLSYMS_ALL",
        "GUP_TEST",
        "BLK_DEV_RAM",
        "DM_DELAY",
        "BLK_DEV_NULL_BLK",
        "FAULT_INJECTION",
    )
    assert {f"CONFIG_{name}=y" for name in wanted} <= set(lines)


def test_missing_build_tools_are_named_by_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that is on PATH is taken for what it is called."""
    programs = ("gcc", "ld", "make", "flex", "bison", "bc", "xz", "perl", "pahole")
    for program in programs:
        (tmp_path / program).symlink_to(shutil.which("true") or "/bin/true")
    monkeypatch.setenv("PATH", str(tmp_path))
    headers = set(kernel_build.missing_build_packages())
    assert headers <= {"libc6-dev", "libelf-dev", "zlib1g-dev"}
    (tmp_path / "pahole").unlink()
    (tmp_path / "xz").unlink()
    assert set(kernel_build.missing_build_packages()) == {"dwarves", "xz-utils", *headers}
