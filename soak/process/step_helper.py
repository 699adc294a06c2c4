# SPDX-License-Identifier: GPL-2.0-only
"""Helper processes that run several steps, each on request and with a deadline."""

from __future__ import annotations

import json
import os
import select
import signal
import time
import traceback
from typing import TYPE_CHECKING, Any, Final

from soak.process.child import fork, serve_parent
from soak.process.helper import HelperError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_CHUNK: Final = 65536
_REAP_SECONDS: Final = 0.01
_REAPS: Final = 100


class StepHelper:
    """A process that runs a generator: each `start_step` resumes it until its next `yield`.

    `answer` returns the yielded value, which must be a JSON value. `close` kills the process, which
    releases everything that it holds.
    """

    def __init__(self, body: Callable[[], Iterator[Any]]) -> None:
        self._received = b""
        commands, self._commands = os.pipe2(os.O_CLOEXEC)
        self._answers, answers = os.pipe2(os.O_CLOEXEC)
        parent = os.getpid()
        self.pid = fork(
            lambda: _be_helper(body, commands, answers, parent),
            child_ends=[commands, answers],
            parent_ends=[self._commands, self._answers],
            keep=[commands, answers],
        )
        self._open = True

    def start_step(self) -> None:
        """Start the next step, without waiting for it.

        Raises:
            HelperError: the process has ended.
        """
        try:
            os.write(self._commands, b"!")
        except BrokenPipeError:
            raise HelperError("a helper died between two steps") from None

    def answer(self, seconds: float = 0.0) -> Any:  # noqa: ANN401 - any JSON value
        """Return the value that the step yielded, or None if it did not within `seconds`.

        Raises:
            HelperError: the step raised, or the process died.
        """
        deadline = time.monotonic() + seconds
        while b"\n" not in self._received:
            left = max(deadline - time.monotonic(), 0.0)
            if not select.select([self._answers], [], [], left)[0]:
                return None
            chunk = os.read(self._answers, _CHUNK)
            if not chunk:
                raise HelperError("a helper died before it answered")
            self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        status, value = json.loads(line)
        if status != "done":
            raise HelperError(value)
        return value

    def step(self, seconds: float) -> Any:  # noqa: ANN401 - any JSON value
        """Run the next step and return the value that it yields.

        Raises:
            HelperError: the step raised, took longer than `seconds`, or the process died.
        """
        self.start_step()
        value = self.answer(seconds)
        if value is None:
            raise HelperError(f"a helper did not complete its step within {seconds:g} s")
        return value

    def close(self) -> bool:
        """Kill the process; return False if it is in state D and stays."""
        if not self._open:
            return True
        self._open = False
        os.close(self._commands)
        os.close(self._answers)
        os.kill(self.pid, signal.SIGKILL)
        for _ in range(_REAPS):
            if os.waitpid(self.pid, os.WNOHANG)[0]:
                return True
            time.sleep(_REAP_SECONDS)
        return False


def _be_helper(body: Callable[[], Iterator[Any]], commands: int, answers: int, parent: int) -> None:
    serve_parent(parent)
    steps = body()
    while os.read(commands, 1):
        try:
            answer = ["done", next(steps)]
        except Exception as error:  # noqa: BLE001 - the parent raises it as HelperError
            message = "".join(traceback.format_exception_only(error)).strip()
            answer = ["raised", message]
        os.write(answers, json.dumps(answer).encode() + b"\n")
