# SPDX-License-Identifier: GPL-2.0-only
"""Debian's package index: what is used where the mirror cannot be reached."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from soak.errors import UsageError
from soak.lab.image.apt import Mirror, Suite

if TYPE_CHECKING:
    from pathlib import Path


def test_an_outdated_index_is_reported(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Or an old kernel is soaked in the place of the newest, and nobody knows."""
    program = tmp_path / "bin/apt-get"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 'E: no route to the mirror' >&2\nexit 100\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    suite = Suite("bookworm", tmp_path / "suite", Mirror("http://mirror.invalid", None))
    with pytest.raises(UsageError, match=r"could not be fetched \(E: no route to the mirror"):
        suite.update()
    stamp = tmp_path / "suite/updated"
    stamp.touch()
    os.utime(stamp, (86400.0, 86400.0))
    suite.update()
    said = capsys.readouterr().err
    assert said.startswith("dax-soak: warning: ")
    assert "could not be updated (E: no route to the mirror): using that of 1970-01-02" in said
    program.unlink()
    with pytest.raises(UsageError, match="apt-get cannot be started: No such file"):
        suite.update()
