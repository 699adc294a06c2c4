# SPDX-License-Identifier: GPL-2.0-only
"""The guest's console, as a file of its host: what a kernel says last, and when nothing else works."""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import TYPE_CHECKING, Final

from soak.files.printable import printable

if TYPE_CHECKING:
    from pathlib import Path

# For the evidence of a lost machine, and for an error message.
EVIDENCE_LINES: Final = 60
SHOWN_LINES: Final = 15

_FULL: Final = 32 << 20
_TAIL_BYTES: Final = 256 << 10
_LONGEST_LINE: Final = 400


def begin_console(path: Path) -> None:
    """Begin an empty one, as each boot does."""
    _older(path).unlink(missing_ok=True)
    path.write_bytes(b"")


def keep_console_short(path: Path) -> None:
    """Put what is there aside when it has 32 MiB, for a kernel may print for days.

    What was put aside before is gone then. QEMU goes on appending meanwhile: what it appends between the
    copy and the cut is lost, a few lines at the most.
    """
    # A full disk does not end a run, and the next look tries again.
    with contextlib.suppress(OSError):
        if path.stat().st_size >= _FULL:
            shutil.copyfile(path, _older(path))
            os.truncate(path, 0)


def console_tail(path: Path, count: int) -> list[str]:
    """Return the last lines that are not empty, with their control characters as escapes."""
    text = _end_of(_older(path)) + _end_of(path)
    lines = text.decode(errors="replace").splitlines()
    return [printable(line)[:_LONGEST_LINE] for line in lines if line.strip()][-count:]


def _older(path: Path) -> Path:
    return path.with_name(f"{path.stem}-older{path.suffix}")


def _end_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(max(os.fstat(file.fileno()).st_size - _TAIL_BYTES, 0))
            return file.read(_TAIL_BYTES)
    except OSError:
        return b""
