# SPDX-License-Identifier: GPL-2.0-only
"""Kernels given as files, the mirrored ledger, and what the lab says before it boots anything."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from soak.lab.cache import Cache, cache_directory
from soak.lab.image.root import GuestRoot
from soak.lab.kernels.store import KernelStore
from tests.boots.harness.kernels import QUICK_KERNEL
from tests.boots.harness.lab import lab
from tests.lab.test_cpio import parse
from tests.support.program import ROOT, dax_soak

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.lab


def test_a_kernel_file_with_a_modules_directory(tmp_path: Path) -> None:
    """Unpack what `make modules_install` would have left, and boot with it, the ledger mirrored.

    It is a bisection that Ctrl-C stops: what was seen up to then judges no commit.
    """
    cache = Cache(cache_directory())
    kernel = KernelStore(cache, GuestRoot(cache)).find("debian:6.1")
    assert kernel.modules is not None
    tree = tmp_path / "installed/lib/modules" / kernel.release
    prefix = f"usr/lib/modules/{kernel.release}/"
    for name, entry in parse(kernel.modules.read_bytes()).items():
        if name.decode().startswith(prefix) and stat.S_ISREG(entry.mode):
            target = tree / name.decode().removeprefix(prefix)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(entry.data)
    arguments = (
        "--kernel",
        str(kernel.image),
        "--modules",
        str(tmp_path / "installed"),
        "--mirror-ledger",
        "--bisect",
        "--duration",
        "1h",
    )
    with lab(tmp_path / "run", *arguments) as process:
        process.wait_until("the soak begins", lambda: process.operations() > 500)
        process.interrupt()
        assert process.finish() == 130, process.stderr
        assert "\nverdict   " in process.stdout
        assert [event["why"] for event in process.events("run.ended")] == ["stopped by SIGTERM"]
        assert [event["mirrored"] for event in process.events("run.started")] == [True]
        assert process.verdict()["kernel"] == kernel.release
        unexplained = [entry for entry in process.verdict()["violations"] if entry["known_issue"] is None]
        assert unexplained == []
        with process.ledger() or pytest.fail("there is no ledger") as reader:
            told = Counter[str]()
            for cell in process.verdict()["coverage"]:
                told[cell["operation"]] += cell["attempts"]
            assert set(told) >= {"map", "unmap", "truncate-up"}
            mappers = [
                block for block in reader.blocks("worker") if block.block.labels["role"] == "mapper"
            ]
            ended = sum(block.get("ended") for block in mappers)
            assert ended == told["map"] + told["unmap"]


def test_a_port_in_use_is_refused_without_traces(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = _lab(tmp_path, "--kernel", QUICK_KERNEL, "--listen", f"127.0.0.1:{port}")
    assert told.returncode == 2
    assert str(port) in told.stderr
    assert "Traceback" not in told.stderr
    assert not (tmp_path / "run").exists()


def test_without_qemu_the_install_command_is_shown(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("apt-get", "dpkg-deb"):
        (tools / tool).symlink_to(f"/usr/bin/{tool}")
    told = _lab(tmp_path, path=str(tools))
    assert told.returncode == 2
    assert "qemu-system-x86_64 is not installed" in told.stderr
    assert "apt-get install" in told.stderr
    assert not (tmp_path / "run").exists()


def test_without_root_check_shows_the_install_command(tmp_path: Path) -> None:
    """Run as nobody, with a PATH that lacks QEMU."""
    code = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); import soak.lab.requirements as r; "
        "from soak.errors import UsageError; os.setresuid(65534, 65534, 65534)\n"
        "try:\n r.install_missing()\nexcept UsageError as error:\n print(error)"
    )
    told = subprocess.run(
        [sys.executable, "-c", code, str(ROOT)],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PATH": str(tmp_path)},
    )
    assert "apt-get install --yes --no-install-recommends qemu-system-x86" in told.stdout
    assert "as root" in told.stdout


def test_check_finds_this_machine_fit() -> None:
    told = dax_soak("check", "--json")
    assert told.returncode == 0, told.stdout
    assert {line["state"] for line in json.loads(told.stdout)["lab"]} == {"ok"}


def _lab(tmp_path: Path, *arguments: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = None if path is None else {**os.environ, "PATH": path}
    return dax_soak("lab", "--run-dir", str(tmp_path / "run"), *arguments, environment=environment)
