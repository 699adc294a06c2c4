# SPDX-License-Identifier: GPL-2.0-only
"""The exporter of a run is there as long as the run is, and its death is not the run's."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import pytest

from soak import run_directory
from soak.errors import UsageError
from soak.journal.writer import FileJournal, read_journal
from soak.supervisor.hooks.exporter import ExporterKeeper, ExporterProcess
from tests.exporter.support import eventually, make_ledger
from tests.support.soak import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    make_ledger(tmp_path / run_directory.LEDGER)
    return tmp_path


@pytest.fixture
def exporter(directory: Path) -> Iterator[ExporterProcess]:
    process = ExporterProcess(directory, "127.0.0.1:0")
    assert process.address
    yield process
    process.close()


def events(directory: Path) -> list[str]:
    return [event["event"] for event in read_journal(directory / run_directory.JOURNAL)]


def serves(exporter: ExporterProcess) -> bool:
    try:
        with urllib.request.urlopen(f"http://{exporter.address}/metrics", timeout=10) as answer:
            return b"dax_soak_run_active" in answer.read()
    except urllib.error.URLError:
        return False


def kill(exporter: ExporterProcess) -> None:
    os.kill(exporter.pid, signal.SIGKILL)
    assert eventually(lambda: exporter.ended)


def test_failure_to_listen_is_reported_with_reason(directory: Path) -> None:
    """Whoever asks for its address is told, and not whoever started it."""
    refused(directory, "nowhere", "--listen is 'nowhere', expected HOST:PORT")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        refused(directory, address, address.partition(":")[2])


def refused(directory: Path, listen: str, says: str) -> None:
    with (
        contextlib.closing(ExporterProcess(directory, listen)) as process,
        pytest.raises(UsageError, match=re.escape(says)),
    ):
        _ = process.address


def test_busy_address_is_retried(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ending = threading.Timer(1.0, taken.close)
        with contextlib.closing(ExporterProcess(directory, address, bind_seconds=DEADLINE)) as late:
            ending.start()
            assert late.address == address
            assert serves(late)


def test_nothing_is_opened_before_address_is_read(tmp_path: Path) -> None:
    """It is started before there is a ledger, and reads as root what there is when it listens."""
    with contextlib.closing(ExporterProcess(tmp_path, "127.0.0.1:0")) as early:
        time.sleep(1.0)
        make_ledger(tmp_path / run_directory.LEDGER)
        (tmp_path / run_directory.LEDGER).chmod(0o600)
        assert early.address
        with urllib.request.urlopen(f"http://{early.address}/metrics", timeout=10) as answer:
            assert b"dax_soak_up 1.0" in answer.read()


def test_exporter_killed_before_it_listens_is_reported(directory: Path) -> None:
    with contextlib.closing(ExporterProcess(directory, "127.0.0.1:0")) as process:
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(UsageError, match=r"ended before it listened \(exit code -9\)"):
            _ = process.address


def test_dead_exporter_is_replaced(directory: Path, exporter: ExporterProcess) -> None:
    with FileJournal(directory / run_directory.JOURNAL) as journal:
        keeper = ExporterKeeper(exporter, journal)
        keeper.beat()
        assert serves(exporter)
        kill(exporter)
        keeper.beat()
        assert eventually(lambda: serves(exporter))
    assert events(directory) == ["exporter.restarted"]


def test_run_continues_without_an_exporter(
    directory: Path, exporter: ExporterProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FileJournal(directory / run_directory.JOURNAL) as journal:
        keeper = ExporterKeeper(exporter, journal)
        kill(exporter)
        monkeypatch.setattr(sys, "executable", str(directory / "gone"))
        keeper.beat()
        # It is tried again, and not at each beat.
        keeper.beat()
        assert events(directory) == ["exporter.failed"]
        monkeypatch.undo()

        def serves_again() -> bool:
            keeper.beat()
            return serves(exporter)

        assert eventually(serves_again)
    assert events(directory) == ["exporter.failed", "exporter.restarted"]
