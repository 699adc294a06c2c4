# SPDX-License-Identifier: GPL-2.0-only
"""A kernel build tree: what was built in it is found, and nothing is written into it."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from soak.errors import UsageError
from soak.lab.cache import Cache
from soak.lab.image.root import GuestRoot
from soak.lab.kernels.build_tree import open_build_tree
from soak.lab.kernels.module_layer import layer_of_tree
from soak.lab.kernels.store import KernelStore, check_kernel
from tests.lab.test_cpio import parse
from tests.lab.test_kernel_names import boot_image, check_sentence

deterministic = settings(derandomize=True, database=None, deadline=None, max_examples=100)

RELEASE = "6.14.0-rc3+"
MODULES = ("drivers/acpi/nfit/nfit.ko", "fs/xfs/xfs.ko", "kernel/torture.ko")
# How the list of modules was written: before 5.3, before 6.3, since.
STYLES = {"installed": "kernel/{}.ko", "modules": "{}.ko", "objects": "{}.o"}


def make_tree(place: Path, modules: tuple[str, ...] = MODULES, style: str = "objects") -> Path:
    """Leave in `place` what `make` leaves."""
    files = {
        "arch/x86/boot/bzImage": boot_image(f"{RELEASE} (a@b)\0".encode()),
        "include/config/kernel.release": f"{RELEASE}\n".encode(),
        ".config": b"CONFIG_XFS_FS=m\n",
        "modules.builtin": b"kernel/fs/ext4/ext4.ko\n",
        "modules.order": "".join(
            STYLES[style].format(name.removesuffix(".ko")) + "\n" for name in modules
        ).encode(),
        **{name: name.encode() for name in modules},
    }
    for name, data in files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    return place


def shown(place: Path) -> dict[str, tuple[int, int]]:
    """Return what changes when something is written into a tree."""
    return {
        str(path.relative_to(place)): (path.lstat().st_mtime_ns, path.lstat().st_size)
        for path in [place, *place.rglob("*")]
    }


@pytest.mark.parametrize("style", STYLES)
def test_modules_are_found_in_every_list_style(tmp_path: Path, style: str) -> None:
    tree = open_build_tree(make_tree(tmp_path / "tree", style=style))
    assert tree.release == RELEASE
    assert tree.image == tmp_path / "tree/arch/x86/boot/bzImage"
    assert tree.modules == MODULES


paths = st.lists(st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,8}", fullmatch=True), min_size=1, max_size=4).map(
    "/".join
)


def apart(names: list[str]) -> bool:
    """Say whether all of these can be files at the same time, however they are listed."""
    files = [Path("kernel", f"{name}.ko") for name in names]
    return not any(
        one == other or one in other.parents or Path(*one.parts[1:]) in (other, *other.parents)
        for one in files
        for other in files
        if one is not other
    )


@given(st.lists(paths, unique=True, max_size=8).filter(apart), st.sampled_from(sorted(STYLES)))
@example(["kernel/locking/locktorture", "fs/fuse/fuse"], "objects")
@deterministic
def test_staged_modules_are_those_of_the_tree(names: list[str], style: str) -> None:
    modules = tuple(f"{name}.ko" for name in names)
    with tempfile.TemporaryDirectory() as scratch:
        place = make_tree(Path(scratch, "tree"), modules, style)
        before = shown(place)
        staged = open_build_tree(place).stage(Path(scratch, "base"))
        assert staged == Path(scratch, "base/lib/modules", RELEASE)
        found = {str(path.relative_to(staged / "kernel")) for path in staged.rglob("*.ko")}
        assert found == set(modules)
        for name in modules:
            assert (staged / "kernel" / name).read_bytes() == name.encode()
        listed = (staged / "modules.order").read_text().splitlines()
        assert listed == [f"kernel/{name}" for name in modules]
        assert shown(place) == before


def test_a_tree_without_modules_has_no_layer(tmp_path: Path) -> None:
    """Its list is empty; where nothing is modular, there may be none."""
    place = make_tree(tmp_path / "tree", ())
    (place / ".config").write_text("CONFIG_XFS_FS=y\n")
    kernels = KernelStore(Cache(tmp_path / "cache"), mock.Mock(spec=GuestRoot))
    for _ in range(2):
        kernel = kernels.find(str(place))
        assert (kernel.name, kernel.release) == (str(place), RELEASE)
        assert (kernel.image, kernel.modules) == (place / "arch/x86/boot/bzImage", None)
        (place / "modules.order").unlink(missing_ok=True)


@pytest.mark.parametrize(
    ("removed", "says"),
    [
        (["arch/x86/boot/bzImage"], ["configured but not built", "bzImage", "run 'make'"]),
        (["include/config/kernel.release"], ["configured but not built", "run 'make'"]),
        (["modules.order"], ["are not built", "make modules"]),
        (["fs/xfs/xfs.ko"], ["half built", "'fs/xfs/xfs.ko'", "make modules"]),
        (["arch/x86/boot/bzImage", ".config"], ["not a kernel build tree", ".config"]),
    ],
    ids=lambda names: names[0],
)
def test_an_unbuilt_tree_is_refused(tmp_path: Path, removed: list[str], says: list[str]) -> None:
    place = make_tree(tmp_path / "tree")
    for name in removed:
        (place / name).unlink()
    before = shown(place)
    with pytest.raises(UsageError) as caught:
        check_kernel(str(place))
    check_sentence(caught.value, str(place), *says)
    assert shown(place) == before


def test_an_unconfigured_source_tree_is_refused(tmp_path: Path) -> None:
    (tmp_path / "Kconfig").touch()
    with pytest.raises(UsageError) as caught:
        open_build_tree(tmp_path)
    check_sentence(caught.value, str(tmp_path), "neither configured nor built", "make defconfig")


def test_an_image_older_than_the_tree_is_refused(tmp_path: Path) -> None:
    place = make_tree(tmp_path)
    (place / "include/config/kernel.release").write_text("6.14.0-rc4\n")
    with pytest.raises(UsageError) as caught:
        open_build_tree(place)
    check_sentence(caught.value, str(place), RELEASE, "6.14.0-rc4", "run 'make'")


@given(st.text(max_size=60))
@example("fs/xfs/xfs.o\n./fs//xfs/xfs.ko\n\nkernel/fs/xfs/xfs.ko")
@example("../../escape.o")
@example("/etc/hostname.ko")
@example("modules.order")
@example(".")
@example("a\0b.o")
@example("x" * 300 + ".o")
@deterministic
def test_a_damaged_list_never_leads_outside(line: str) -> None:
    """Links to modules are laid out by their names: none may be laid out of its place."""
    with tempfile.TemporaryDirectory() as scratch:
        place = make_tree(Path(scratch, "tree"))
        Path(scratch, "escape.ko").touch()
        (place / "modules.order").write_bytes(line.encode(errors="replace"))
        before = shown(place)
        with contextlib.suppress(UsageError):
            tree = open_build_tree(place)
            assert set(tree.modules) <= set(MODULES)
            tree.stage(Path(scratch, "base"))
        assert shown(place) == before


class FakeRoot(GuestRoot):
    """Lists modules as depmod does, without their dependencies."""

    def __init__(self) -> None:
        self.runs = 0

    def run(self, tool: str, *arguments: str) -> None:
        assert (tool, arguments[0]) == ("depmod", "-b")
        self.runs += 1
        modules = Path(arguments[1], "lib/modules", arguments[2])
        found = sorted(str(path.relative_to(modules)) for path in modules.rglob("*.ko"))
        (modules / "modules.dep").write_text("".join(f"{name}:\n" for name in found))


def test_a_rebuilt_tree_makes_a_new_layer(tmp_path: Path) -> None:
    place = make_tree(tmp_path / "tree")
    cache, root = Cache(tmp_path / "cache"), FakeRoot()
    before = shown(place)

    def layer() -> Path:
        found = layer_of_tree(cache, root, open_build_tree(place))
        assert found is not None
        return found

    first = layer()
    kept = parse(first.read_bytes())
    prefix = f"usr/lib/modules/{RELEASE}/kernel"
    assert kept[f"{prefix}/fs/xfs/xfs.ko".encode()].data == b"fs/xfs/xfs.ko"
    assert f"{prefix}/drivers/acpi/nfit/nfit.ko".encode() in kept
    assert not any(b"torture" in name for name in kept)
    runs = root.runs
    assert layer() == first
    assert root.runs == runs
    assert shown(place) == before
    (place / "fs/xfs/xfs.ko").write_bytes(b"rebuilt")
    second = layer()
    assert second != first
    assert parse(second.read_bytes())[f"{prefix}/fs/xfs/xfs.ko".encode()].data == b"rebuilt"
    (place / "drivers/acpi/nfit/nfit.ko").unlink()
    (place / "modules.order").write_text("fs/xfs/xfs.o\n")
    third = parse(layer().read_bytes())
    assert not any(b"nfit" in name for name in third)
    assert not any(path.name.startswith("tmp") for path in first.parent.iterdir())
