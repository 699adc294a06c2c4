# SPDX-License-Identifier: GPL-2.0-only
"""Helpers that go step by step: each step when it is told, a reason where there is none, no leftovers."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from soak.process.helper import HelperError
from soak.process.step_helper import StepHelper
from tests.support.processes import alive, children, descriptors
from tests.support.soak import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    before, opened = children(), descriptors()
    yield
    assert children() == before
    assert descriptors() == opened


def test_each_step_runs_on_request() -> None:
    reader, writer = os.pipe()
    os.close(writer)

    def body() -> Iterator[Any]:
        yield os.getpid()
        # It has none of this process's descriptors.
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(reader)
        yield {"second": [1, 2]}

    helper = StepHelper(body)
    try:
        assert helper.answer(0.1) is None
        assert helper.step(DEADLINE) == helper.pid
        assert helper.answer(0.1) is None
        helper.start_step()
        assert helper.answer(DEADLINE) == {"second": [1, 2]}
    finally:
        assert helper.close()
        os.close(reader)


def test_exception_of_a_step_is_reported() -> None:
    def body() -> Iterator[str]:
        yield "fine"
        raise OSError(5, "no luck")

    helper = StepHelper(body)
    assert helper.step(DEADLINE) == "fine"
    with pytest.raises(HelperError, match="no luck"):
        helper.step(DEADLINE)
    assert helper.close()
    assert helper.close()


def test_endless_step_hits_the_deadline() -> None:
    def body() -> Iterator[str]:
        time.sleep(1000)
        yield "never"

    helper = StepHelper(body)
    with pytest.raises(HelperError, match=r"within 0\.2 s"):
        helper.step(0.2)
    assert helper.close()


@pytest.mark.parametrize("told", [False, True])
def test_dead_helper_is_an_error(told: bool) -> None:  # noqa: FBT001 - a parameter of the test
    def body() -> Iterator[str]:
        yield "one"
        time.sleep(1000)

    helper = StepHelper(body)
    assert helper.step(DEADLINE) == "one"
    if told:
        helper.start_step()
    os.kill(helper.pid, signal.SIGKILL)
    os.waitid(os.P_PID, helper.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(HelperError, match="died"):
        helper.step(DEADLINE)
    assert helper.close()


def test_helper_ends_with_its_parent() -> None:
    """Its parent dies without a word: nothing may be held by what it leaves behind."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        helper = StepHelper(lambda: iter(["one"]))
        helper.step(DEADLINE)
        os.write(writer, f"{helper.pid}\n".encode())
        os._exit(0)
    os.close(writer)
    helper_pid = int(os.read(reader, 100))
    os.close(reader)
    os.waitpid(pid, 0)
    end = time.monotonic() + DEADLINE
    while alive(helper_pid):
        assert time.monotonic() < end
        time.sleep(0.01)
