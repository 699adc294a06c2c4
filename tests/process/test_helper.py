# SPDX-License-Identifier: GPL-2.0-only
"""Helpers: an answer, or the reason why there is none; never a process that stays."""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from soak.abi.libc import die_with_parent
from soak.process.helper import HelperError, in_helper
from tests.support.processes import children, descriptors
from tests.support.soak import DEADLINE

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def nothing_stays() -> Any:  # noqa: ANN401 - a generator fixture
    before, opened = children(), descriptors()
    yield
    assert children() == before
    assert descriptors() == opened


@pytest.mark.parametrize(
    "answer", [None, 0, "ü\n", [1, [2.5, None]], {"a": {"b": True}}, "", False, "x" * 500_000]
)
def test_result_is_returned(answer: object) -> None:
    assert in_helper(lambda: answer, DEADLINE) == answer


def test_failed_fork_and_failed_pipe_are_errors() -> None:
    """fork(2), EAGAIN; pipe(2), EMFILE. Nothing of the attempt stays open."""

    def work() -> list[Any]:
        if os.geteuid() == 0:
            os.setuid(65534)  # root has no such limit
        told = []
        for limit, most in ((resource.RLIMIT_NPROC, 1), (resource.RLIMIT_NOFILE, 3)):
            soft, hard = resource.getrlimit(limit)
            opened = len(descriptors())
            resource.setrlimit(limit, (most, hard))
            try:
                in_helper(lambda: 0, DEADLINE)
            except HelperError as error:
                told.append(str(error))
            resource.setrlimit(limit, (soft, hard))
            assert len(descriptors()) == opened
        return told

    assert in_helper(work, DEADLINE) == [
        f"a helper could not be started ({os.strerror(number)})"
        for number in (errno.EAGAIN, errno.EMFILE)
    ]


def test_work_runs_in_another_process() -> None:
    here: list[int] = []

    def work() -> int:
        here.append(1)
        return os.getpid()

    assert in_helper(work, DEADLINE) != os.getpid()
    assert here == []


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "no luck"), ValueError("two\nlines"), RuntimeError()]
)
def test_exception_is_reported(error: Exception) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(HelperError) as caught:
        in_helper(fail, DEADLINE)
    assert type(error).__name__ in str(caught.value)
    assert str(error) in str(caught.value)


def test_result_outside_json_is_an_error() -> None:
    with pytest.raises(HelperError, match="TypeError"):
        in_helper(object, DEADLINE)


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_death_is_reported(signal_number: signal.Signals) -> None:
    with pytest.raises(HelperError, match="died before it answered"):
        in_helper(lambda: os.kill(os.getpid(), signal_number), DEADLINE)


@pytest.mark.parametrize("code", [0, 1])
def test_exit_is_not_an_answer(code: int) -> None:
    with pytest.raises(HelperError, match="died before it answered"):
        in_helper(lambda: os._exit(code), DEADLINE)


@pytest.mark.parametrize("raised", [SystemExit(0), KeyboardInterrupt()])
def test_child_never_returns_to_the_callers_code(
    raised: BaseException, capfd: pytest.CaptureFixture[str]
) -> None:
    def leave() -> None:
        raise raised

    parent = os.getpid()
    try:
        with pytest.raises(HelperError, match="died before it answered"):
            in_helper(leave, DEADLINE)
    finally:
        if os.getpid() != parent:
            os._exit(0)
    assert capfd.readouterr().out == ""


def test_partial_answer_is_a_death() -> None:
    before = descriptors()

    def stammer() -> None:
        (writer,) = (path for path in descriptors() - before if path.is_fifo())
        os.write(int(writer.name), b'["done", [1, 2')
        os._exit(0)

    with pytest.raises(HelperError, match="died while it answered"):
        in_helper(stammer, DEADLINE)


@pytest.mark.parametrize("deaf", [False, True])
def test_a_deadline_ends_the_child(tmp_path: Path, deaf: bool) -> None:  # noqa: FBT001 - a parameter of the test
    note = tmp_path / "pid"

    def hang() -> None:
        if deaf:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
                signal.signal(number, signal.SIG_IGN)
        note.write_text(str(os.getpid()))
        time.sleep(10 * DEADLINE)

    # The child may be too slow to leave its note, and is ended all the same: ask for longer then.
    for seconds in (0.3, 1.0, 3.0, 9.0, 27.0):
        with pytest.raises(HelperError, match=f"did not answer within {seconds:g} s"):
            in_helper(hang, seconds)
        if note.exists() and note.read_text():
            break
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)


def test_child_unblocks_signals_that_the_parent_blocks() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        with pytest.raises(HelperError, match="died before it answered"):
            in_helper(lambda: os.kill(os.getpid(), signal.SIGTERM), DEADLINE)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_buffered_output_is_printed_once(capfd: pytest.CaptureFixture[str]) -> None:
    sys.stdout.write("before ")
    in_helper(lambda: None, DEADLINE)
    sys.stdout.write("after")
    sys.stdout.flush()
    assert capfd.readouterr().out == "before after"


def test_child_of_an_already_dead_parent_ends() -> None:
    """The kernel tells only of a death that is still to come."""
    reader, writer = os.pipe()
    parent = os.fork()
    if parent == 0:
        own = os.getpid()
        if os.fork() == 0:
            while os.getppid() == own:
                time.sleep(0.001)
            die_with_parent(signal.SIGKILL, own)
            os.write(writer, b"it lives on")
        os._exit(0)
    os.close(writer)
    os.waitpid(parent, 0)
    try:
        assert os.read(reader, 100) == b""
    finally:
        os.close(reader)


def test_child_ends_with_its_parent() -> None:
    reader, writer = os.pipe()
    parent = os.fork()
    if parent == 0:
        own = os.getpid()
        if os.fork() == 0:
            die_with_parent(signal.SIGKILL, own)
            os.write(writer, b"ready")
            time.sleep(DEADLINE)
            os.write(writer, b"it lives on")
        time.sleep(DEADLINE)
        os._exit(0)
    os.close(writer)
    try:
        assert os.read(reader, 100) == b"ready"
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        assert os.read(reader, 100) == b""
    finally:
        os.close(reader)
