# SPDX-License-Identifier: GPL-2.0-only
"""The log: JSON or for eyes, run and boot on each line, no local variables, and never an exception."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import subprocess
import sys
import textwrap
from typing import Any

import pytest

from tests.support.program import ROOT
from tests.support.soak import DEADLINE

SECRET = "a-local-variable"  # noqa: S105 - it is none
PROGRAM = """
    import asyncio, logging, sys, threading
    import structlog
    from soak.log import bind_log, configure, log_crash, log_event

    early = structlog.get_logger()
    configure(program="some-program", run="run-1", more="than that")
    early.info("first.line", number=1)
    thread = threading.Thread(target=lambda: early.info("from.thread"))
    thread.start()
    thread.join()
    bind_log(boot="boot-1")
    early.debug("not.shown")
    logging.getLogger("some.library").warning("%s says", "a library")
    logging.getLogger("some.library").debug("not shown")

    def fail():
        secret = "a-local-" + "variable"
        raise ValueError("a reason")

    try:
        fail()
    except ValueError:
        structlog.get_logger().exception("went.wrong")
        logging.getLogger("asyncio").exception("a task went wrong")

    async def forgotten():
        asyncio.get_running_loop().call_exception_handler({"message": "a loop complains"})

    asyncio.run(forgotten())
    line = {"seq": 9, "time": "T", "monotonic": 1.5, "boot_id": "b", "event": "violation.found"}
    log_event({**line, "level": "info"})
    log_event({**line, "level": "error", "summary": "pages leak", "evidence": {"much": "text"}})
    log_event({**line, "level": "warning", "event": "journal.held"})
    try:
        fail()
    except ValueError as error:
        log_crash("some-program", error)
"""
EVENTS = [
    "first.line",
    "from.thread",
    "a library says",
    "went.wrong",
    "a task went wrong",
    "a loop complains",
    "violation.found",
    "journal.held",
    "program.crashed",
]


def run(program: str, stderr: int = subprocess.PIPE) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        check=False,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        timeout=DEADLINE,
    )


def json_lines(program: str) -> list[dict[str, Any]]:
    done = run(program)
    assert done.returncode == 0, done.stderr.decode()
    return [json.loads(text) for text in done.stderr.splitlines()]


def on_a_terminal(program: str) -> str:
    """Return what a program writes on a standard error that is a terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], cwd=ROOT, stderr=theirs
    ) as process:
        os.close(theirs)
        shown = b""
        # Linux answers EIO when the other end was closed.
        with contextlib.suppress(OSError):
            while select.select([ours], [], [], DEADLINE)[0]:
                shown += os.read(ours, 4096)
    os.close(ours)
    assert process.returncode == 0, shown
    return shown.decode()


def test_json_lines_carry_the_bound_values() -> None:
    lines = json_lines(PROGRAM)
    assert [line["event"] for line in lines] == EVENTS
    for position, line in enumerate(lines):
        assert (line["program"], line["run"], line["more"]) == ("some-program", "run-1", "than that")
        assert line.get("boot") == (None if position < 2 else "boot-1")
        assert line["timestamp"].endswith("Z")
    levels = ["info", "info", "warning", "error", "error", "error", "error", "warning", "critical"]
    assert [line["level"] for line in lines] == levels
    assert [line.get("logger") for line in lines[2:5]] == ["some.library", None, "asyncio"]


def test_a_traceback_names_no_local_variables() -> None:
    lines = json_lines(PROGRAM)
    for position in (3, 4, 8):
        (raised,) = lines[position]["exception"]
        assert (raised["exc_type"], raised["exc_value"]) == ("ValueError", "a reason")
        assert [frame["name"] for frame in raised["frames"]] == ["<module>", "fail"]
    assert SECRET not in json.dumps(lines)
    assert lines[8]["error"] == "ValueError: a reason"


def test_a_violation_is_logged_without_its_evidence() -> None:
    (line,) = [line for line in json_lines(PROGRAM) if line["event"] == "violation.found"]
    assert (line["seq"], line["summary"]) == (9, "pages leak")
    assert not {"evidence", "monotonic", "boot_id", "time"} & set(line)


def test_terminal_output_is_text() -> None:
    shown = on_a_terminal(PROGRAM)
    for event in EVENTS:
        assert event in shown
    assert '{"' not in shown
    assert shown.count("Traceback (most recent call last)") == 3
    assert shown.count("ValueError: a reason") >= 3
    assert SECRET not in shown
    assert shown.count("run-1") == len(EVENTS)


@pytest.mark.parametrize("device", ["/dev/full", None], ids=["full", "closed"])
def test_failed_log_write_raises_nothing(device: str | None) -> None:
    closing = "" if device else "import os; os.close(2)"
    program = f"{closing}\n{textwrap.dedent(PROGRAM)}\nprint('the end', flush=True)"
    stderr = os.open(device or os.devnull, os.O_WRONLY)
    try:
        done = run(program, stderr)
    finally:
        os.close(stderr)
    assert (done.returncode, done.stdout) == (0, b"the end\n")


def test_log_recovers_from_a_partial_write() -> None:
    program = """
        import os, resource, sys, tempfile
        import structlog
        from soak.log import configure

        file = tempfile.TemporaryFile()
        os.dup2(file.fileno(), 2)
        configure(program="some-program")
        log = structlog.get_logger()
        log.info("before.full")
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (os.fstat(2).st_size + 20, hard))
        log.info("while.full")
        log.info("while.full")
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        log.info("after.full")
        file.seek(0)
        sys.stdout.buffer.write(file.read())
    """
    first, cut, *rest = run(program).stdout.splitlines()
    assert json.loads(first)["event"] == "before.full"
    assert len(cut) == 20
    told = [json.loads(text) for text in rest]
    assert [line["event"] for line in told] == ["after.full", "log.lost"]
    assert told[1]["lines"] == 2
