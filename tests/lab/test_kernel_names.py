# SPDX-License-Identifier: GPL-2.0-only
"""What a kernel's name may be, and the one sentence for what it may not be."""

from __future__ import annotations

import struct
import tempfile
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from soak.errors import UsageError
from soak.lab.cache import Cache
from soak.lab.image.root import GuestRoot
from soak.lab.kernels.boot_image import boot_image_release
from soak.lab.kernels.build import SOURCE_SUITES
from soak.lab.kernels.debian import DEBIAN_SUITES
from soak.lab.kernels.host import host_kernel
from soak.lab.kernels.store import KERNEL_NAMES, KernelStore, check_kernel

deterministic = settings(derandomize=True, database=None, deadline=None, max_examples=150)

SETUP_BYTES = 0x4000
TEXT_PLACE = 0x3000


def boot_image(
    text: bytes,
    *,
    place: int = TEXT_PLACE,
    flag: int = 0xAA55,
    magic: bytes = b"HdrS",
    size: int = SETUP_BYTES,
) -> bytes:
    """Make the start of a bzImage (Documentation/arch/x86/boot.rst)."""
    image = bytearray(b"\xcc" * size)
    struct.pack_into("<H", image, 0x1FE, flag)
    # A pointer of 0 means that there is no version, not that it is here.
    image[0x200:0x202] = b"6 "
    image[0x202:0x206] = magic
    struct.pack_into("<H", image, 0x20E, place - 0x200 if place else 0)
    if place:
        image[place : place + len(text)] = text
    return bytes(image)


def check_sentence(error: BaseException, *named: str) -> None:
    """One sentence, that names what was given and ends."""
    sentence = str(error)
    assert "\n" not in sentence
    assert sentence[0].isupper()
    assert sentence.endswith(".")
    assert ". " not in sentence
    for text in named:
        assert text in sentence


def store(directory: Path) -> KernelStore:
    return KernelStore(Cache(directory / "cache"), mock.Mock(spec=GuestRoot))


# --- the release that an image names ---

releases = st.from_regex(r"[0-9]{1,2}(\.[0-9]{1,3}){1,2}([-+_~.][A-Za-z0-9]{1,8}){0,3}", fullmatch=True)


@given(releases, st.sampled_from([b" (root@host) #1 SMP\0", b"\0", b" \0", b" \n\0"]))
@example("6.1.0-56-amd64", b" (debian-kernel@lists.debian.org) #1 SMP PREEMPT_DYNAMIC\0")
@example("6.12.0-rc3+", b" (a@b) #1\0")
@deterministic
def test_the_release_is_the_first_word_of_the_version(release: str, rest: bytes) -> None:
    with tempfile.NamedTemporaryFile() as image:
        Path(image.name).write_bytes(boot_image(release.encode() + rest))
        assert boot_image_release(Path(image.name)) == release


@pytest.mark.parametrize("place", [0x210, 0x268, 0x1000, SETUP_BYTES - 8])
def test_the_version_may_be_anywhere_in_the_setup_code(tmp_path: Path, place: int) -> None:
    (tmp_path / "bzImage").write_bytes(boot_image(b"6.1.0\0", place=place))
    assert boot_image_release(tmp_path / "bzImage") == "6.1.0"


def test_a_link_to_an_image_is_followed(tmp_path: Path) -> None:
    (tmp_path / "vmlinuz-6.1.0").write_bytes(boot_image(b"6.1.0 x\0"))
    (tmp_path / "vmlinuz").symlink_to("vmlinuz-6.1.0")
    assert boot_image_release(tmp_path / "vmlinuz") == "6.1.0"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x7fELF" + bytes(0x1000),
        b"\x1f\x8b" + bytes(range(256)) * 64,
        bytes(SETUP_BYTES),
        boot_image(b"6.1.0\0", flag=0x55AA),
        boot_image(b"6.1.0\0", magic=b"SrdH"),
        boot_image(b"6.1.0\0")[:0x20F],
        b"#!/bin/sh\n",
    ],
    ids=["empty", "ELF", "gzip", "zeros", "no boot flag", "no magic", "cut", "script"],
)
def test_an_invalid_boot_image_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "vmlinux").write_bytes(content)
    with pytest.raises(UsageError) as caught:
        boot_image_release(tmp_path / "vmlinux")
    check_sentence(caught.value, str(tmp_path / "vmlinux"), "bzImage")


@pytest.mark.parametrize(
    "content",
    [
        boot_image(b"", place=0),
        boot_image(b"6.1.0\0", place=SETUP_BYTES - 6)[:-1],
        boot_image(b"\0"),
        boot_image(b" 6.1.0\0"),
        boot_image(b"../../etc\0"),
        boot_image(b"6/../../../etc\0"),
        boot_image(b"6.1\xff\0"),
        boot_image(b"6.1.0\0", size=TEXT_PLACE + 8)[: TEXT_PLACE + 3],
        boot_image(b"6.1.0\0")[:TEXT_PLACE],
    ],
    ids=["none", "cut end", "empty", "blank", "up", "path", "no ASCII", "cut text", "cut before"],
)
def test_an_image_without_a_release_is_refused(tmp_path: Path, content: bytes) -> None:
    """A release becomes the name of a directory: it must be one, and never lead elsewhere."""
    (tmp_path / "bzImage").write_bytes(content)
    with pytest.raises(UsageError) as caught:
        boot_image_release(tmp_path / "bzImage")
    check_sentence(caught.value, str(tmp_path / "bzImage"), "release")


@given(st.binary(max_size=64), st.integers(0, 0xFFFF), st.integers(0, SETUP_BYTES))
@example(b"", 0xFFFF, SETUP_BYTES)
@deterministic
def test_a_damaged_image_has_a_usable_release_or_none(text: bytes, pointer: int, cut: int) -> None:
    image = bytearray(boot_image(text))
    struct.pack_into("<H", image, 0x20E, pointer)
    with tempfile.NamedTemporaryFile() as file:
        Path(file.name).write_bytes(image[:cut])
        try:
            release = boot_image_release(Path(file.name))
        except UsageError as error:
            check_sentence(error, file.name)
        else:
            assert release[0].isdigit()
            assert Path(release).name == release


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing", "No such file"),
        ("directory", "Is a directory"),
        ("file/below", "Not a directory"),
        ("loop", "Too many levels"),
        ("x" * 300, "File name too long"),
    ],
)
def test_an_unreadable_kernel_is_refused_with_the_reason(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(UsageError) as caught:
        boot_image_release(tmp_path / name)
    check_sentence(caught.value, str(tmp_path / name), reason)
    for refuse in (check_kernel, store(tmp_path).find):
        with pytest.raises(UsageError) as caught:
            refuse(str(tmp_path / name))
        # A directory may be a kernel build tree.
        expected = "not a kernel build tree" if name == "directory" else reason
        check_sentence(caught.value, str(tmp_path / name), expected)


# --- names ---


@pytest.mark.parametrize(
    "name",
    [
        "debian:",
        "debian:7.7",
        "debian:bookworm ",
        "debian:6.1:x",
        "debian:" + "6" * 5000,
        "build:",
        "build:6.1",
        "build:6.12.1",
        "build:6.12:x",
        "host:6.12",
        "fedora:40",
        ":",
        "Debian:6.1",
        "https://example.org/bzImage",
        "a:" + "b" * 300,
    ],
)
def test_an_unknown_name_is_refused_with_known_ones(tmp_path: Path, name: str) -> None:
    known = [*(f"debian:{suite}" for suite in DEBIAN_SUITES), *KERNEL_NAMES]
    with pytest.raises(UsageError) as caught:
        check_kernel(name)
    check_sentence(caught.value, name, *known)
    with pytest.raises(UsageError) as caught:
        store(tmp_path).find(name)
    check_sentence(caught.value, name, *known)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("suite", DEBIAN_SUITES)
def test_a_known_name_is_accepted_without_fetching(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suite: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    check_kernel(f"debian:{suite}")
    assert list(tmp_path.iterdir()) == []


def test_a_file_without_modules_is_a_kernel(tmp_path: Path) -> None:
    for name in ("bzImage", "odd:name"):
        image = tmp_path / name
        image.write_bytes(boot_image(b"6.12.95 (root@host) #1\0"))
        check_kernel(str(image))
        kernel = store(tmp_path).find(str(image))
        assert (kernel.release, kernel.image, kernel.modules) == ("6.12.95", image, None)


def test_modules_of_another_release_are_refused(tmp_path: Path) -> None:
    (tmp_path / "bzImage").write_bytes(boot_image(b"6.12.95\0"))
    other = tmp_path / "tree/lib/modules/6.12.94"
    other.mkdir(parents=True)
    (other / "modules.dep").touch()
    with pytest.raises(UsageError) as caught:
        store(tmp_path).find(str(tmp_path / "bzImage"), tmp_path / "tree")
    check_sentence(caught.value, str(tmp_path / "tree"), "6.12.95")


def test_a_directory_of_another_release_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bzImage").write_bytes(boot_image(b"6.12.95\0"))
    other = tmp_path / "lib/modules/6.12.94"
    other.mkdir(parents=True)
    (other / "modules.dep").touch()
    with pytest.raises(UsageError) as caught:
        store(tmp_path).find(str(tmp_path / "bzImage"), other)
    check_sentence(caught.value, str(other), "6.12.95")


@pytest.mark.parametrize("name", KERNEL_NAMES)
def test_modules_require_a_kernel_file(tmp_path: Path, name: str) -> None:
    for refuse in (check_kernel, store(tmp_path).find):
        with pytest.raises(UsageError) as caught:
            refuse(name, tmp_path)
        check_sentence(caught.value, name, "--modules")


@pytest.mark.parametrize("version", SOURCE_SUITES)
def test_missing_build_tools_are_reported_before_fetching(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    monkeypatch.setenv("DAX_SOAK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError) as caught:
        check_kernel(f"build:{version}")
    check_sentence(caught.value, "apt-get install", " flex ", " xz-utils ", " dwarves", "as root")
    assert list(tmp_path.iterdir()) == []


# --- the kernel of this machine ---


def installed(root: Path, place: str) -> tuple[Path, Path]:
    """Install a kernel below `root`, its image at `place`."""
    modules = root / "lib/modules/6.1.0-9"
    modules.mkdir(parents=True)
    (modules / "modules.dep").touch()
    image = root / place
    image.parent.mkdir(parents=True, exist_ok=True)
    image.write_bytes(boot_image(b"6.1.0-9 x\0"))
    return image, modules


@pytest.mark.parametrize("place", ["boot/vmlinuz-6.1.0-9", "lib/modules/6.1.0-9/vmlinuz"])
def test_the_kernel_of_this_machine_is_found(tmp_path: Path, place: str) -> None:
    assert installed(tmp_path, place) == host_kernel(tmp_path, "6.1.0-9")


def test_a_machine_without_its_kernel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        host_kernel(tmp_path, "6.1.0-9")
    check_sentence(caught.value, "6.1.0-9", str(tmp_path / "boot/vmlinuz-6.1.0-9"), "container")


@pytest.mark.parametrize("missing", ["boot/vmlinuz-6.1.0-9", "lib/modules/6.1.0-9/modules.dep"])
def test_an_unreadable_part_of_the_kernel_is_named(tmp_path: Path, missing: str) -> None:
    """A link that leads nowhere cannot be read by root either."""
    installed(tmp_path, "boot/vmlinuz-6.1.0-9")
    (tmp_path / missing).unlink()
    (tmp_path / missing).symlink_to("nowhere")
    with pytest.raises(UsageError) as caught:
        host_kernel(tmp_path, "6.1.0-9")
    check_sentence(caught.value, str(tmp_path / missing), "No such file", "6.1.0-9")
