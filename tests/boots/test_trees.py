# SPDX-License-Identifier: GPL-2.0-only
"""Kernel build trees in the lab, and a lab that `git bisect run` asks.

A good commit, in a tree, is in test_soak.py; a bad one in test_stalls.py; one that cannot be judged in
test_faults.py.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import pytest

from soak.lab.cache import Cache, cache_directory
from soak.lab.image.root import GuestRoot
from soak.lab.kernels.build_tree import open_build_tree
from soak.lab.kernels.module_layer import layer_of_tree
from tests.boots.harness.build_tree import build
from tests.boots.harness.kernels import QUICK_KERNEL
from tests.boots.harness.lab import lab
from tests.lab.test_build_tree import STYLES, shown
from tests.lab.test_cpio import parse
from tests.support.processes import alive
from tests.support.program import dax_soak

if TYPE_CHECKING:
    from pathlib import Path

    from tests.boots.harness.build_tree import Built
    from tests.boots.harness.shared_setups import SharedSetUps

pytestmark = pytest.mark.lab


@pytest.fixture
def built(request: pytest.FixtureRequest, shared: SharedSetUps) -> Built:
    """A kernel build tree, as far as the lab looks at it."""
    return shared.get(request, "tree", lambda place, _: build(place))


@pytest.mark.parametrize("style", STYLES)
def test_a_tree_has_its_packages_modules(built: Built, style: str) -> None:
    """Dependencies are found anew, by the guest's own tools, from what was compiled."""
    built.list_modules(style)
    before = shown(built.place)
    cache = Cache(cache_directory())
    layer = layer_of_tree(cache, GuestRoot(cache), open_build_tree(built.place))
    assert layer is not None
    found = parse(layer.read_bytes())
    installed = f"usr/lib/modules/{built.kernel.release}/kernel/"
    kept = {name.decode().removeprefix(installed) for name in found if name.endswith(b".ko")}
    assert kept == set(built.modules)
    index = found[f"usr/lib/modules/{built.kernel.release}/modules.dep".encode()].data.decode()
    needed = next(line for line in index.splitlines() if "/ext4.ko:" in line)
    assert "/jbd2.ko" in needed
    assert shown(built.place) == before


def test_a_commit_that_does_not_boot_is_skipped(tmp_path: Path) -> None:
    arguments = ("--kernel", QUICK_KERNEL, "--append", "rdinit=/nothing init=/nothing")
    with lab(tmp_path / "run", *arguments, "--bisect", "--strict") as process:
        assert process.finish() == 125, process.stderr
        assert "ended before it was ready" in process.stderr
        assert "Its console ended:" in process.stderr
        assert "Traceback" not in process.stderr
    assert not (tmp_path / "run").exists()


def test_ctrl_c_stops_a_bisection_that_boots(tmp_path: Path) -> None:
    """What was seen up to then would be unknown, which was not asked for.

    One that soaks is stopped in test_canaries.py.
    """
    arguments = ("--kernel", QUICK_KERNEL, "--duration", "1h", "--bisect")
    with lab(tmp_path / "run", *arguments) as process:
        process.wait_until("QEMU is started", lambda: bool(process.events("lab.started")))
        pid = process.qemu_pid()
        process.interrupt()
        assert process.finish() == 130, process.stderr
        assert "\nverdict   " in process.stdout
        assert not alive(pid)
        assert process.events("run.ended") == []


def test_a_qemu_that_cannot_start_stops_a_bisection(tmp_path: Path) -> None:
    """It says nothing about the commit, and the next one would fare no better."""
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "qemu-system-x86_64").write_text(
        '#!/bin/sh\ntest "$1" = --version && echo "QEMU version 1.0" && exit\n'
        "echo no memory left >&2\nexit 1\n"
    )
    (tools / "qemu-system-x86_64").chmod(0o755)
    told = dax_soak(
        *("lab", "--bisect", "--listen", "127.0.0.1:0", "--kernel", QUICK_KERNEL),
        *("--run-dir", str(tmp_path / "run"), "--accel", "tcg"),
        environment={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"},
    )
    assert told.returncode == 255, told.stderr
    assert re.search(r"^dax-soak: .*no memory left", told.stderr, re.MULTILINE)
    assert not (tmp_path / "run").exists()
