# SPDX-License-Identifier: GPL-2.0-only
"""Short-lived helper processes, with a deadline, for calls that can hang."""

from __future__ import annotations

import json
import os
import select
import signal
import time
import traceback
from typing import TYPE_CHECKING, Any, Final

from soak.process.child import fork

if TYPE_CHECKING:
    from collections.abc import Callable

_CHUNK: Final = 65536


class HelperError(Exception):
    """A helper raised, died, or missed its deadline."""


def in_helper(work: Callable[[], Any], seconds: float) -> Any:  # noqa: ANN401 - any JSON value
    """Run `work` in a forked child and return its result, which must be a JSON value.

    The child is killed at the end. One in state D stays until its call returns.

    Raises:
        HelperError: fork failed, or the child raised, died, or took longer than `seconds`.
    """
    try:
        reader, writer = os.pipe()
    except OSError as error:
        raise HelperError(f"a helper could not be started ({error.strerror})") from None
    try:
        pid = fork(lambda: _child(work, writer), child_ends=[writer], parent_ends=[reader])
    except OSError as error:
        raise HelperError(f"a helper could not be started ({error.strerror})") from None
    try:
        answer = _read(reader, time.monotonic() + seconds)
    finally:
        os.close(reader)
        os.kill(pid, signal.SIGKILL)
        # Poll: a blocking wait for a child in state D may hang. init reaps it after this process ends.
        for _ in range(100):
            if os.waitpid(pid, os.WNOHANG)[0]:
                break
            time.sleep(0.01)
    if answer is None:
        raise HelperError(f"a helper did not answer within {seconds:g} s")
    if not answer:
        raise HelperError("a helper died before it answered")
    try:
        status, value = json.loads(answer)
    except ValueError:
        raise HelperError("a helper died while it answered") from None
    if status != "done":
        raise HelperError(value)
    return value


def _child(work: Callable[[], Any], writer: int) -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    try:
        answer = json.dumps(["done", work()])
    except Exception as error:  # noqa: BLE001 - the parent raises it as HelperError
        message = "".join(traceback.format_exception_only(error)).strip()
        answer = json.dumps(["raised", message])
    with os.fdopen(writer, "w") as out:
        out.write(answer)


def _read(reader: int, deadline: float) -> bytes | None:
    """Read until the child closes the pipe; return None at the deadline (monotonic seconds)."""
    data = b""
    while (left := deadline - time.monotonic()) > 0:
        if select.select([reader], [], [], left)[0]:
            chunk = os.read(reader, _CHUNK)
            if not chunk:
                return data
            data += chunk
    return None
