# SPDX-License-Identifier: GPL-2.0-only
"""Odd run directories, readers that go away, signals at any moment: no traceback, no wrong verdict."""

from __future__ import annotations

import argparse
import gzip
import os
import random
import shutil
import signal
import socket
import sys
import time
from contextlib import redirect_stderr, redirect_stdout, suppress
from functools import partial
from typing import TYPE_CHECKING, Final, TextIO
from weakref import finalize

import pytest

from soak import run_directory
from soak.cli import main
from soak.config.sections import Config
from soak.errors import UsageError
from soak.journal.writer import FileJournal
from soak.lab.resume import past_run
from soak.model.exit_codes import PLAIN
from soak.model.vocabulary import VerdictWord
from soak.supervisor.resume import choose_run
from tests.journal.test_fuzz import TEXTS, run_of
from tests.lab.test_ports import BOOTED, ENDED, Played, journal
from tests.support.fuzz import damaged_bytes, fuzz, many_inputs
from tests.support.processes import alive
from tests.support.soak import make_ledger

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# Drawing takes much longer than everything else.
_DRAWN_ONE_IN: Final = 20
# So does a process of its own.
_FORKED_ONE_IN: Final = 20
_NAMES: Final = (
    *(
        run_directory.JOURNAL,
        run_directory.LEDGER,
        run_directory.VERDICT,
        run_directory.CONFIG,
        run_directory.LOCK,
        "control",
    ),
    "journal-000001.jsonl",
    "journal.jsonl.1.gz",
    "journal.jsonl-20260101",
)
RESUMED: Final = argparse.Namespace(config=None, run_dir=None, seed=None, scenario=None, duration=None)


def fill(directory: Path, word: VerdictWord, ledger: bytes) -> None:
    """Leave what a run leaves that ended with this verdict."""
    directory.mkdir()
    (directory / run_directory.JOURNAL).write_bytes(b"".join(TEXTS[word]))
    (directory / run_directory.LEDGER).write_bytes(ledger)
    (directory / run_directory.CONFIG).write_text("[run]\nseed = 7\n")
    if word is VerdictWord.PASS:
        (directory / run_directory.VERDICT).write_text('{"verdict": "pass", "reasons": []}')


def spoil(draw: random.Random, path: Path) -> None:
    """Put something else in the place of a file, or make it something else."""
    content = path.read_bytes() if path.is_file() else b"x" * 100
    with suppress(FileNotFoundError):
        path.unlink()
    ways: tuple[Callable[[], object], ...] = (
        lambda: None,
        path.mkdir,
        lambda: os.mkfifo(path),
        lambda: path.symlink_to("nowhere"),
        lambda: path.symlink_to(path.name),
        lambda: path.symlink_to("/dev/zero"),
        lambda: path.symlink_to("/"),
        lambda: path.write_bytes(b""),
        lambda: path.write_bytes(content[: draw.randrange(len(content) + 1)]),
        lambda: path.write_bytes(damaged_bytes(draw, content)),
        lambda: path.write_bytes(gzip.compress(content)),
        lambda: path.write_bytes(draw.randbytes(200)),
        lambda: leave_a_socket(path),
    )
    draw.choice(ways)()


def leave_a_socket(path: Path) -> None:
    """Leave one to which nobody listens any more."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as left:
        here = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        left.bind(f"/proc/self/fd/{here}/{path.name}")
        os.close(here)


@many_inputs
def test_no_damaged_run_directory_causes_a_traceback(
    tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever is in it; and a run whose journal was touched is never said to have passed."""
    ledger = make_ledger(tmp_path / "pattern").to_bytes()
    runs = tmp_path / "runs"
    directory = runs / "run-1"
    monkeypatch.setattr(run_directory, "runs_directory", lambda: runs)

    def try_input(draw: random.Random) -> None:
        shutil.rmtree(runs, ignore_errors=True)
        runs.mkdir()
        fill(directory, draw.choice(list(TEXTS)), ledger)
        before = (directory / run_directory.JOURNAL).read_bytes()
        for name in draw.sample(_NAMES, draw.choice((1, 1, 2, 4))):
            spoil(draw, directory / name)
        named = draw.choice((str(directory), "run-1"))
        commands = [("report", named), ("report", named, "--format", "json"), ("stop", named)]
        shown = draw.choice([*commands * _DRAWN_ONE_IN, ("top", named, "--once")])
        code = main(shown)
        said = capsys.readouterr()
        assert code in {*PLAIN.verdicts.values(), 2}, said.err
        assert "Traceback" not in said.err + said.out
        assert "\u001b[2J" not in said.err + said.out
        if shown[0] == "report" and code == PLAIN.verdicts[VerdictWord.PASS]:
            assert (directory / run_directory.JOURNAL).read_bytes() == before
        with suppress(UsageError):
            choose_run(Config(), draw.choice((None, directory)), resume=True)
        with suppress(UsageError), past_run(argparse.Namespace(resume=named, **vars(RESUMED))):
            pass
        run_directory.discard_unbegun()

    fuzz("runs", count, try_input)


@many_inputs
def test_exit_code_is_the_verdicts_for_any_reader(tmp_path: Path, count: int) -> None:
    """A reader takes some of a report, or none, and goes away."""
    directories = {}
    for word, texts in TEXTS.items():
        directories[word] = tmp_path / word
        directories[word].mkdir()
        (directories[word] / run_directory.JOURNAL).write_bytes(b"".join(texts))

    def try_input(draw: random.Random) -> None:
        word = draw.choice(list(TEXTS))
        command = ["report", str(directories[word]), "--format", draw.choice(("text", "json"))]
        if draw.randrange(_FORKED_ONE_IN):
            streams = [unwilling(draw) for _ in range(2)]
            with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
                code = main(command)
            for stream in streams:
                with suppress(OSError):
                    stream.close()
        else:
            code = read_in_part(draw, command)
        assert code == PLAIN.verdicts[word]

    fuzz("pipes", count, try_input)


def unwilling(draw: random.Random) -> TextIO:
    """Return a stream that takes nothing, or little."""
    reader, writer = os.pipe()
    match draw.randrange(5):
        case 0:
            full = os.open("/dev/full", os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(full, writer)
            os.close(full)
        case 1:
            os.dup2(reader, writer)
        case 2:
            os.set_blocking(writer, False)
            os.write(writer, b"x" * draw.choice((1, 60_000, 65_536)))
        case 3:
            stream = os.fdopen(writer, "w")
            stream.close()
            os.close(reader)
            return stream
        case _:
            os.close(reader)
            return os.fdopen(writer, "w")
    stream = os.fdopen(writer, "w")
    finalize(stream, os.close, reader)
    return stream


def read_in_part(draw: random.Random, command: list[str]) -> int:
    """Read some of what a process prints, go away, and return its exit code."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        print_into(writer, command)
    os.close(writer)
    if draw.random() < 0.7:
        os.read(reader, draw.choice((1, 10, 100, 1000)))
    os.close(reader)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def print_into(writer: int, command: list[str]) -> None:
    """Be a process whose output goes there, and that ends with the code of the command."""
    code = 70
    try:
        os.dup2(writer, 1)
        os.dup2(writer, 2)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115 - this process ends here
        code = main(command)
    finally:
        os._exit(code)


@pytest.mark.lab(seconds=15)
@pytest.mark.parametrize("count", [4, pytest.param(200, marks=pytest.mark.long)])
def test_signals_change_no_verdict(tmp_path: Path, count: int) -> None:
    """A guest that keeps every promise: whatever signals its host gets, it never fails."""
    for number in range(count):
        draw = random.Random(f"signals/{number}")  # noqa: S311 - repeatable on purpose
        steps = [*BOOTED, *journal(), *ENDED]
        place = tmp_path / str(number)
        place.mkdir()
        with Played(place, steps) as played:
            for _ in range(draw.choice((1, 2, 5))):
                time.sleep(draw.uniform(0.0, 2.0))
                disturb(draw, played)
            code, said = played.finish()
            # Python itself starts before the program does, and dies as any other.
            begun = "in main" in said or "QEMU" in said
            assert code in {0, 3, 130} or (code < 0 and not begun), (number, code, said)
            assert "Traceback" not in said or not begun, (number, said)
            for event in played.events("lab.started"):
                assert not alive(event["qemu_pid"]), number


def disturb(draw: random.Random, played: Played) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGWINCH, signal.SIGSTOP)
    chosen = draw.choice(numbers)
    with suppress(ProcessLookupError):
        played.signal(chosen)
        if chosen is signal.SIGSTOP:
            time.sleep(draw.uniform(0.0, 1.0))
            played.signal(signal.SIGCONT)


def test_complete_run_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the fuzzer of run directories spoils is in order before."""
    monkeypatch.setattr(run_directory, "runs_directory", partial(type(tmp_path), tmp_path))
    ledger = make_ledger(tmp_path / "pattern").to_bytes()
    for word in TEXTS:
        fill(tmp_path / word, word, ledger)
        assert main(["report", word]) == PLAIN.verdicts[word]
        assert f"verdict   {word.upper()}" in capsys.readouterr().out


def test_interrupted_run_is_found(tmp_path: Path) -> None:
    directory = tmp_path / "run-1"
    directory.mkdir()
    with FileJournal(directory / run_directory.JOURNAL) as lines:
        for event, fields in run_of()[1:5]:
            lines.write(event, **fields)
    (directory / run_directory.CONFIG).write_text("")
    assert choose_run(Config(), directory, resume=True).resumed
