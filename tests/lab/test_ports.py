# SPDX-License-Identifier: GPL-2.0-only
"""What the lab's host makes of what a guest says: in order, odd, and while the host stood still."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest

from soak.journal.writer import read_journal
from soak.lab import protocol
from soak.lab.cache import Cache, cache_directory
from soak.lab.image.root import GuestRoot
from soak.model.exit_codes import INTERRUPTED
from soak.run_directory import RunDirectory
from soak.supervisor.control import CONTINUE, PAUSE, STOP, Question
from tests.boots.harness.boot import WITH_THE_TEST, end_process
from tests.boots.harness.kernels import QUICK_KERNEL
from tests.lab.stand_in_qemu import (
    COMPLAIN,
    END,
    POWERED_OFF,
    PRINT,
    RESET,
    SAY,
    SCRIBBLE,
    WAIT_FOR,
    Step,
    message,
    prepare,
)
from tests.support.journal import valid_line
from tests.support.processes import alive, state
from tests.support.program import ROOT
from tests.support.soak import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.lab(seconds=10)

PROGRAM = Path(sys.executable).with_name("dax-soak")
LABEL = "map device-dax vfio-type1"
EVENTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("machine.booted", {"kernel": "6.1.0"}),
    ("run.started", {"run_id": "1", "promised": {LABEL: 1}, "swept": [], "canaries": []}),
    ("sample.taken", {"completed": {LABEL: 5}, "sweeps": {}, "journal_errors": 0}),
    ("run.ended", {"why": "duration elapsed"}),
)


BOOTED = [message(protocol.BOOTED, release="6.1.0", uptime=1), message(protocol.READY, uptime=2)]
ENDED = [message(protocol.EXITED, code=0), (END, POWERED_OFF)]


def journal() -> list[Step]:
    """Return what a guest journals of a run that passes."""
    steps = []
    for number, (event, fields) in enumerate(EVENTS, start=1):
        line = valid_line(number, event, **fields)
        line["number"] = line.pop("seq")
        steps.append((PRINT, json.dumps(line)))
    return steps


def arguments(directory: Path) -> list[str]:
    return [
        "lab",
        "--accel",
        "tcg",
        "--kernel",
        QUICK_KERNEL,
        "--duration",
        "1m",
        "--linger",
        "1s",
        "--listen",
        "127.0.0.1:0",
        "--run-dir",
        str(directory),
    ]


class Played:
    """A lab whose guest plays steps."""

    def __init__(
        self, place: Path, steps: list[Step], streams: str = "2>&1", where: Path = ROOT, before: str = ""
    ) -> None:
        self.directory = place / "run"
        self._process = subprocess.Popen(
            [
                *WITH_THE_TEST,
                "bash",
                "-c",
                f'{before} exec "$@" {streams}',
                "bash",
                str(PROGRAM),
                *arguments(self.directory),
            ],
            stdout=subprocess.PIPE,
            cwd=where,
            env={**os.environ, **prepare(place, steps)},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        end_process(self._process)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def finish(self) -> tuple[int, str]:
        """Return the exit code, and all that was printed, in one line."""
        said, _ = self._process.communicate(timeout=DEADLINE)
        return self._process.returncode, " ".join(said.decode().split())

    @property
    def pid(self) -> int:
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def events(self, name: str) -> list[dict[str, Any]]:
        path = self.directory / "journal.jsonl"
        lines = read_journal(path) if path.exists() else ()
        return [line for line in lines if line["event"] == name]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_regular_guest_passes(tmp_path: Path) -> None:
    with Played(tmp_path, [*BOOTED, *journal(), *ENDED]) as played:
        code, said = played.finish()
    assert (code, "verdict PASS" in said) == (0, True), said


@pytest.mark.parametrize("streams", [">/dev/full 2>&1", "<&- >&- 2>&-"])
def test_a_soak_continues_without_its_terminal(tmp_path: Path, streams: str) -> None:
    with Played(tmp_path, [*BOOTED, *journal(), *ENDED], streams) as played:
        assert played.finish()[0] == 0
        verdict = json.loads((played.directory / "verdict.json").read_text())
    assert verdict["verdict"] == "pass"


HOSTILE = "raise SystemExit('a module of the working directory ran')\n"


def test_modules_in_the_working_directory_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The soak is root, and the directory may be anybody's."""
    for name in ("argparse", "ctypes", "compileall", "exporter", "soak", "prometheus_client"):
        (tmp_path / f"{name}.py").write_text(HOSTILE)
    library = tmp_path / "library"
    library.mkdir()
    (library / "module.py").touch()
    monkeypatch.chdir(tmp_path)
    GuestRoot(Cache(cache_directory())).compile(library, "usr/lib/library")
    assert list(library.glob("__pycache__/module.*.pyc"))
    with Played(tmp_path, [*BOOTED, *journal(), *ENDED], where=tmp_path) as played:
        code, said = played.finish()
    assert (code, "verdict PASS" in said) == (0, True), said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_during_fetching_ends_the_lab(tmp_path: Path, number: signal.Signals) -> None:
    """Another program has the lock of the package index, so it waits for that."""
    environment = {**os.environ, **prepare(tmp_path, []), "DAX_SOAK_CACHE": str(tmp_path / "cache")}
    with (
        Cache(tmp_path / "cache").locked("apt/bookworm.index"),
        subprocess.Popen(
            [*WITH_THE_TEST, PROGRAM, *arguments(tmp_path / "run")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        said = next(line for line in process.stdout if "Waiting for another" in line)
        assert "bookworm" in said
        process.send_signal(number)
        assert process.wait(DEADLINE) == INTERRUPTED
    assert not (tmp_path / "run").exists()


def test_invalid_messages_only_make_it_unknown(tmp_path: Path) -> None:
    odd = [
        (SAY, '{"message":"exited"}'),
        (SAY, "[" * 9999),
        (PRINT, '{"event":"x","level":"warning","summary":"\\u001b[2Jowned"}'),
        (PRINT, "\x1b[2Jowned"),
    ]
    unplanted = message(protocol.UNPLANTED, name="leak", summary="no such device")
    with Played(tmp_path, [*BOOTED, unplanted, *odd, *journal(), *ENDED]) as played:
        code, said = played.finish()
        assert len(played.events("guest.garbled")) == len(odd)
        assert len(played.events("run.ended")) == 1
    assert (code, "verdict UNKNOWN" in said) == (3, True), said
    assert "on port dax-soak.control: it has no field 'code'" in said
    assert "the fault leak could not be planted: no such device" in " ".join(said.split())
    assert "\x1b" not in said


@pytest.mark.parametrize("value", ["ff", "a5"])
def test_a_kernel_overwriting_the_ledger_is_lost(tmp_path: Path, value: str) -> None:
    steps = [*BOOTED, *journal()[:2], (SCRIBBLE, value), (END, RESET)]
    with Played(tmp_path, steps) as played:
        code, said = played.finish()
        found = played.events("violation.found")
    assert (code, [event["kind"] for event in found]) == (1, ["lost-machine"]), said
    assert "Traceback" not in said
    assert "program.crashed" not in said


@pytest.mark.parametrize("word", [STOP, PAUSE, CONTINUE])
def test_a_stopped_host_reads_the_remaining_messages(tmp_path: Path, word: str) -> None:
    """The guest ends in order meanwhile, and somebody says something to the host."""
    go_on = tmp_path / "go-on"
    steps = [*BOOTED, *journal(), (WAIT_FOR, str(go_on)), *ENDED]
    with Played(tmp_path, steps) as played:
        wait_until(lambda: played.events("run.ended") != [])
        (started,) = played.events("lab.started")
        played.signal(signal.SIGSTOP)
        # On another processor it goes on for a moment.
        wait_until(lambda: state(played.pid) == "T")
        go_on.touch()
        wait_until(lambda: state(started["qemu_pid"]) == "Z")
        question = Question(played.directory, word)
        played.signal(signal.SIGCONT)
        code, said = played.finish()
        question.answer(DEADLINE)
    assert (code, "verdict PASS" in said) == (0, True), said


def test_any_amount_of_qemu_output_is_read(tmp_path: Path) -> None:
    words = [(COMPLAIN, "the first"), *[(COMPLAIN, "x" * 65_000)] * 40]
    with Played(tmp_path, [*BOOTED, *words, *journal(), *ENDED]) as played:
        code, said = played.finish()
        told = (played.directory / "qemu.log").read_text()
    assert (code, "verdict PASS" in said) == (0, True), said
    assert told.startswith("the first\nx")


def allocated(directory: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in directory.iterdir())


def test_a_killed_host_leaves_nothing_large(tmp_path: Path) -> None:
    """Its guest, which has the files of the boot, ends with it."""
    steps = [*BOOTED, *journal()[:2], (WAIT_FOR, str(tmp_path / "never"))]
    with Played(tmp_path, steps) as played:
        wait_until(lambda: played.events("run.started") != [])
        (started,) = played.events("lab.started")
        played.signal(signal.SIGKILL)
        played.finish()
        wait_until(lambda: not alive(started["qemu_pid"]))
        assert allocated(played.directory) < 4 << 20
        # Nobody has it any more.
        RunDirectory.take(played.directory, "").close()


@pytest.mark.parametrize("ignored", [False, True], ids=["SIGHUP", "nohup"])
def test_a_closed_terminal_ends_a_run_in_order(tmp_path: Path, *, ignored: bool) -> None:
    go_on = tmp_path / "go-on"
    steps = [*BOOTED, *journal()[:-1], (WAIT_FOR, str(go_on)), journal()[-1], *ENDED]
    with Played(tmp_path, steps, before="trap '' HUP;" if ignored else "") as played:
        wait_until(lambda: played.events("sample.taken") != [])
        played.signal(signal.SIGHUP)
        go_on.touch()
        code, said = played.finish()
    assert (code, "verdict PASS" in said) == (0, True), said
    assert ("Stopping: the soak ends in order" in said) is not ignored


def test_a_live_run_is_not_resumed(tmp_path: Path) -> None:
    go_on = tmp_path / "go-on"
    steps = [*BOOTED, *journal(), (WAIT_FOR, str(go_on)), *ENDED]
    with Played(tmp_path, steps) as played:
        wait_until(lambda: played.events("run.ended") != [])
        before = {path.name for path in played.directory.iterdir()}
        again = subprocess.run(
            [PROGRAM, "lab", "--resume", str(played.directory)],
            check=False,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
        )
        after = {path.name for path in played.directory.iterdir()}
        go_on.touch()
        assert played.finish()[0] == 0
    assert (again.returncode, again.stdout) == (2, "")
    assert f"The run in {played.directory} is still running" in again.stderr
    assert before == after
