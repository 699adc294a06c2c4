"""The guest's console, as a file of its host: what a kernel says last, and when nothing else works."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from soak.printable import printable

if TYPE_CHECKING:
    from pathlib import Path

# As evidence of a machine that was lost, and for whoever reads a sentence.
EVIDENCE_LINES: Final = 60
SHOWN_LINES: Final = 15


def console_tail(path: Path, count: int) -> list[str]:
    """Return the last lines that are not empty, with their control characters as escapes."""
    lines = path.read_text(errors="replace").splitlines()
    return [printable(line) for line in lines if line.strip()][-count:]
