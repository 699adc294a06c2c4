# SPDX-License-Identifier: GPL-2.0-only
"""The one way to fork: what the child has, how it ends, and what is closed on every path."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from soak.process.child import fork, serve_parent

if TYPE_CHECKING:
    from collections.abc import Callable


def code_of(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def is_open(descriptor: int) -> bool:
    return Path(f"/proc/self/fd/{descriptor}").exists()


def ends_with(code: object) -> Callable[[], None]:
    def body() -> None:
        sys.exit(code)  # type: ignore[arg-type] # whatever a program may say

    return body


def fails() -> None:
    raise RuntimeError("it broke")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (lambda: None, 0),
        (lambda: 3, 3),
        (ends_with(None), 0),
        (ends_with(4), 4),
        (ends_with("a sentence"), 70),
        (fails, 70),
    ],
)
def test_exit_code_is_the_bodys_result(body: Callable[[], int | None], code: int) -> None:
    assert code_of(fork(body)) == code


def test_exception_goes_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    code_of(fork(fails))
    assert "RuntimeError: it broke" in capfd.readouterr().err


def test_each_process_keeps_only_its_ends(capfd: pytest.CaptureFixture[str]) -> None:
    reader, writer = os.pipe()
    other = os.dup(reader)

    def say() -> None:
        os.write(writer, b"%d %d" % (is_open(reader), is_open(other)))

    pid = fork(say, child_ends=[writer], parent_ends=[reader], keep=[writer])
    assert not is_open(writer)
    assert code_of(pid) == 0, capfd.readouterr().err
    assert os.read(reader, 9) == b"0 0"
    os.close(reader)
    os.close(other)


def test_a_failed_fork_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_process() -> int:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    reader, writer = os.pipe()
    monkeypatch.setattr(os, "fork", no_process)
    with pytest.raises(BlockingIOError):
        fork(lambda: None, child_ends=[writer], parent_ends=[reader])
    assert not is_open(reader)
    assert not is_open(writer)


def test_serving_child_ends_with_its_parent() -> None:
    """A pipe that only it holds is at its end when it is gone."""
    reader, writer = os.pipe()

    def serve(parent: int) -> None:
        serve_parent(parent)
        os.write(writer, b".")
        time.sleep(600)

    def be_parent() -> None:
        parent = os.getpid()
        fork(lambda: serve(parent))
        time.sleep(600)

    pid = fork(be_parent, child_ends=[writer], parent_ends=[reader])
    assert os.read(reader, 1) == b"."
    os.kill(pid, signal.SIGKILL)
    assert code_of(pid) == -signal.SIGKILL
    assert os.read(reader, 1) == b""
    os.close(reader)
