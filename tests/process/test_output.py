# SPDX-License-Identifier: GPL-2.0-only
"""Output that nobody takes costs the output alone: the exit code stays the verdict's."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from soak.cli import main
from soak.files.printable import printable
from soak.journal.line import encode_line
from soak.journal.writer import FileJournal
from tests.support.journal import valid_line
from tests.support.program import ROOT
from tests.support.soak import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

# What a shell does with the streams of a command; the last of it is the command's exit code.
STREAMS = [
    "{} | true; exit ${{PIPESTATUS[0]}}",
    "{} 2>&1 | head -c 1 >/dev/null; exit ${{PIPESTATUS[0]}}",
    "{} >/dev/full 2>/dev/full",
    "{} >&-",
    "{} 2>&-",
    "{} <&- >&- 2>&-",
]


def run(words: Sequence[str], streams: str) -> int:
    command = " ".join([sys.executable, "-m", "soak.cli", *words])
    done = subprocess.run(
        ["bash", "-c", streams.format(command)],
        check=False,
        cwd=ROOT,
        timeout=DEADLINE,
        capture_output=True,
    )
    assert b"Traceback" not in done.stderr
    return done.returncode


@pytest.mark.parametrize("streams", STREAMS)
def test_exit_code_survives_an_unread_verdict(tmp_path: Path, streams: str) -> None:
    found = valid_line(1, "violation.found", known_issue=None)
    (tmp_path / "journal.jsonl").write_bytes(encode_line(found))
    assert run(["report", str(tmp_path)], streams) == 1


@pytest.mark.parametrize("streams", STREAMS)
def test_exit_code_survives_an_unread_error(tmp_path: Path, streams: str) -> None:
    assert run(["report", str(tmp_path / "nothing")], streams) == 2


def test_no_file_gets_a_standard_descriptor(tmp_path: Path) -> None:
    """A journal as number 2 would have every sentence for standard error in it."""
    script = (
        "import sys\n"
        "from soak.process.output import put_error, open_standard_streams, put\n"
        "open_standard_streams()\n"
        "file = open(sys.argv[1], 'w')\n"
        "put('out'), put_error('error'), file.write(str(file.fileno()))\n"
    )
    place = tmp_path / "file"
    command = [sys.executable, "-c", script, str(place)]
    subprocess.run(
        ["bash", "-c", '"$@" <&- >&- 2>&-', "bash", *command], check=True, cwd=ROOT, timeout=DEADLINE
    )
    assert int(place.read_text()) > 2


def test_untrusted_text_moves_no_cursor() -> None:
    assert printable("a\x1b[2Jb\rc\x07\nd\te\x9b\udc80é") == ("a\\x1b[2Jb\\rc\\x07\nd e\\x9b\\udc80é")
    assert printable("plain text, ünd more") == "plain text, ünd more"


def test_a_report_has_no_control_characters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FileJournal(tmp_path / "journal.jsonl") as journal:
        line = valid_line(1, "violation.found", known_issue=None, summary="\x1b[2Jowned\x07")
        journal.append({name: value for name, value in line.items() if name != "seq"})
    assert main(["report", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "\\x1b[2Jowned\\x07" in said
    assert said.replace("\n", "").isprintable()
