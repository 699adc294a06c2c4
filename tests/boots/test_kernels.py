# SPDX-License-Identifier: GPL-2.0-only
"""What the lab says before it boots anything."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.boots.harness.kernels import QUICK_KERNEL
from tests.support.program import ROOT, dax_soak

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.lab


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
