# SPDX-License-Identifier: GPL-2.0-only
"""The watchdog is fed only while the exporter, the journal and the supervisor all move."""

from __future__ import annotations

import resource
import signal
import socket
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from soak.errors import UsageError
from soak.journal.writer import FileJournal
from soak.process.http_probe import ExporterProbe
from soak.process.notify import Notifier
from soak.process.watchdog import Watchdog
from tests.exporter.support import eventually, make_ledger, running_exporter
from tests.process.support import listening_manager

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.process.support import Manager

SECONDS = 120.0
BEAT = 0.1


@pytest.fixture
def manager() -> Iterator[Manager]:
    with listening_manager() as listening:
        yield listening


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Soak:
    """A heart and a journal that are made to beat; their time is the test's."""

    notifier: Notifier
    manager: Manager
    journal: FileJournal
    clock: Clock = field(default_factory=Clock)
    beats: int = 0
    alive: bool = True
    writing: bool = True

    def __post_init__(self) -> None:
        self.watchdog = Watchdog(
            self.notifier,
            SECONDS,
            {"the supervisor": lambda: self.beats, "the journal": lambda: self.journal.seq},
            status="soaking",
            clock=self.clock,
        )

    def live(self, seconds: float) -> list[dict[str, str]]:
        """Go on for some time, and return what the manager heard."""
        for _ in range(int(seconds)):
            self.clock.now += 1
            self.beats += self.alive
            if self.writing:
                self.journal.write("sample.taken")
            self.watchdog.beat()
        return self.manager.hear()


@pytest.fixture
def notifier(manager: Manager) -> Iterator[Notifier]:
    with Notifier(manager.address) as telling:
        yield telling


@pytest.fixture
def soak(notifier: Notifier, manager: Manager, tmp_path: Path) -> Iterator[Soak]:
    with FileJournal(tmp_path / "journal.jsonl") as journal:
        yield Soak(notifier, manager, journal)


def test_watchdog_is_fed_at_half_its_timeout(soak: Soak) -> None:
    assert soak.live(SECONDS / 2 - 1) == []
    assert soak.live(1) == [{"WATCHDOG": "1"}]
    assert soak.live(SECONDS * 5) == [{"WATCHDOG": "1"}] * 10


def rests(soak: Soak, part: str) -> None:
    """See a soak in which a part has just come to rest not being fed, and saying so once."""
    soak.live(SECONDS / 2)
    said = soak.live(SECONDS * 3)
    assert [list(message) for message in said] == [["STATUS"]]
    assert part in said[0]["STATUS"]
    assert soak.watchdog.resting == (part,)


def test_stopped_supervisor_is_reported(soak: Soak) -> None:
    soak.alive = False
    rests(soak, "the supervisor")
    soak.alive = True
    assert soak.live(2) == [{"WATCHDOG": "1"}, {"STATUS": "soaking"}]
    assert soak.watchdog.resting == ()


def test_stopped_journal_is_reported(soak: Soak) -> None:
    soak.writing = False
    rests(soak, "the journal")
    soak.writing = True
    assert {"WATCHDOG": "1"} in soak.live(2)


def test_full_disk_does_not_stop_the_feeding(soak: Soak, tmp_path: Path) -> None:
    """To be started anew would lose what the journal holds until there is space again.

    The disk that takes nothing more is made by a limit on the size of files.
    """
    soak.live(SECONDS)
    size = (tmp_path / "journal.jsonl").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        assert soak.live(SECONDS * 3) == [{"WATCHDOG": "1"}] * 6
        assert soak.journal.waiting > 0
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    soak.live(1)
    assert (soak.journal.waiting, soak.journal.errors) == (0, 0)


def test_all_resting_sources_are_reported(soak: Soak) -> None:
    soak.alive = soak.writing = False
    soak.live(SECONDS)
    assert soak.watchdog.resting == ("the supervisor", "the journal")


def test_failed_feed_is_retried(soak: Soak) -> None:
    while soak.notifier.status("x"):
        pass  # until the queue is full
    soak.live(SECONDS / 2)
    assert soak.live(1) == [{"WATCHDOG": "1"}]


def test_no_watchdog_means_no_feeding(manager: Manager, notifier: Notifier) -> None:
    clock = Clock()
    watchdog = Watchdog(notifier, None, {"nothing": lambda: 0}, status="soaking", clock=clock)
    clock.now += 10 * SECONDS
    watchdog.beat()
    assert manager.hear() == []


def test_stopped_exporter_is_reported_until_it_continues(
    manager: Manager, notifier: Notifier, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir(mode=0o755)
    ledger = make_ledger(run / "ledger")
    supervisor = ledger.block("supervisor")
    with running_exporter(run) as exporter:
        probe = ExporterProbe(*exporter.endpoint, ask_seconds=0.05, answer_seconds=0.5)
        watchdog = Watchdog(
            notifier,
            2.0,
            {"the supervisor": lambda: supervisor.get("heartbeats"), "the exporter": probe.poll},
            status="soaking",
        )

        def beat() -> None:
            supervisor.add("heartbeats", 1)
            watchdog.beat()

        def after_a_beat(told: Callable[[], bool]) -> Callable[[], bool]:
            def condition() -> bool:
                beat()
                return told()

            return condition

        assert eventually(after_a_beat(lambda: manager.was_told("WATCHDOG")))
        exporter.process.send_signal(signal.SIGSTOP)
        try:
            told = after_a_beat(lambda: manager.was_told("STATUS", "no progress of the exporter"))
            assert eventually(told)
            answers = probe.answers
            end = time.monotonic() + 3.0
            while time.monotonic() < end:
                beat()
                time.sleep(BEAT)
            assert manager.hear() == []
            assert watchdog.resting == ("the exporter",)
            assert probe.answers == answers
            assert "no response" in probe.problem
        finally:
            exporter.process.send_signal(signal.SIGCONT)
        assert eventually(after_a_beat(lambda: manager.was_told("WATCHDOG")))
        assert eventually(after_a_beat(lambda: watchdog.resting == ()))
        exporter.process.kill()
        told = after_a_beat(lambda: manager.was_told("STATUS", "no progress of the exporter"))
        assert eventually(told)
        assert "refused" in probe.problem
        probe.close()


def has_problem(probe: ExporterProbe, part: str) -> bool:
    return eventually(lambda: probe.poll() == 0 and part in probe.problem)


def test_response_must_be_http() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        probe = ExporterProbe("127.0.0.1", other.getsockname()[1], ask_seconds=0.05)
        probe.poll()
        connection, _ = other.accept()
        with connection:
            assert connection.recv(4096) if eventually(lambda: probe.poll() == 0) else False
            connection.sendall(b"220 mail\r\n")
        assert has_problem(probe, "not HTTP")
        probe.close()


def test_slow_response_times_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as slow:
        probe = ExporterProbe("127.0.0.1", slow.getsockname()[1], answer_seconds=0.2)
        probe.poll()
        connection, _ = slow.accept()
        with connection:
            connection.sendall(b"HTTP/1.0 200 OK\r\n")
            assert has_problem(probe, "no response")
        probe.close()


def test_unknown_host_is_refused() -> None:
    with pytest.raises(UsageError, match=r"no-such-host\.invalid port 9823"):
        ExporterProbe("no-such-host.invalid", 9823)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])  # noqa: S104 - one that some listen on
def test_probe_reaches_every_listen_address(tmp_path: Path, host: str) -> None:
    run = tmp_path / "run"
    run.mkdir(mode=0o755)
    with running_exporter(run, listen=f"{host}:0") as exporter:
        probe = ExporterProbe(host, exporter.endpoint[1], ask_seconds=0.01)
        assert eventually(lambda: probe.poll() >= 2)
        assert probe.problem == ""
        probe.close()


def test_exporter_feeds_its_own_watchdog(
    manager: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    run = tmp_path / "run"
    run.mkdir(mode=0o755)
    with running_exporter(run) as exporter:
        assert eventually(lambda: manager.was_told("READY"))
        ready = manager.said[0]
        assert ready["MAINPID"] == str(exporter.process.pid)
        assert exporter.address in ready["STATUS"]
        for _ in range(2):
            assert eventually(lambda: manager.was_told("WATCHDOG"))
        exporter.process.terminate()
        assert eventually(lambda: manager.was_told("STOPPING"))
