# SPDX-License-Identifier: GPL-2.0-only
"""The exporter as a process: what Prometheus, a user and a parent process see of it."""

from __future__ import annotations

import gzip
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from exporter.collector import LedgerCollector
from exporter.server import MAX_CONNECTIONS, ExporterServer
from soak.config.listen import parse_listen
from soak.errors import UsageError
from soak.ledger.reader import LedgerReader
from tests.exporter.support import (
    MAP_FS_DAX,
    RUN,
    Exporter,
    command_line,
    eventually,
    make_ledger,
    parse,
    running_exporter,
    value,
)
from tests.support.program import ROOT
from tests.support.soak import DEADLINE

if TYPE_CHECKING:
    from collections.abc import Iterator

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has rights to give up")


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    directory = tmp_path / "run"
    directory.mkdir()
    directory.chmod(0o755)  # whatever the umask is: the exporter that root starts becomes nobody
    return directory


@pytest.fixture(scope="module")
def exporter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exporter]:
    """Serve a run that goes on, to tests that change nothing."""
    directory = tmp_path_factory.mktemp("run")
    ledger = make_ledger(directory / "ledger")
    ledger.block("mapper-0").set_at("counts", 12, MAP_FS_DAX.label, "refused EOPNOTSUPP")
    with running_exporter(directory) as running:
        yield running


def test_a_scrape_shows_the_ledger(exporter: Exporter) -> None:
    answer = exporter.ask()
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    samples = parse(answer.text)
    assert value(samples, "up") == 1
    labels = {"region": "fs-dax", "interface": "vfio-type1", "errno": "EOPNOTSUPP"}
    assert value(samples, "pin_refusals_total", **labels, expected="true") == 12


def test_openmetrics_is_valid(exporter: Exporter) -> None:
    accept = "application/openmetrics-text;version=1.0.0;q=0.8,text/plain;version=0.0.4;q=0.3"
    answer = exporter.ask(headers={"Accept": accept})
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    parsed = parse_openmetrics(answer.text)  # type: ignore[no-untyped-call]  # the library's
    families = {family.name: family for family in parsed}
    assert families["dax_soak_operations"].type == "counter"
    assert families["dax_soak_operation_duration_seconds"].unit == "seconds"
    assert families["dax_soak_run"].type == "info"


@pytest.mark.parametrize("accept", ["", "*/*", "application/openmetrics-text;version=abc", ";=,;"])
def test_any_accept_header_is_answered(exporter: Exporter, accept: str) -> None:
    answer = exporter.ask(headers={"Accept": accept})
    assert answer.status == 200
    assert value(parse(answer.text), "up") == 1


def test_response_is_compressed_on_request(exporter: Exporter) -> None:
    answer = exporter.ask(headers={"Accept-Encoding": "gzip"})
    assert answer.headers["Content-Encoding"] == "gzip"
    assert value(parse(gzip.decompress(answer.body).decode()), "up") == 1


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 200),
        ("HEAD", "/", 200),
        ("GET", "/-/healthy", 200),
        ("GET", "/metrics?name=x", 200),
        ("HEAD", "/metrics", 200),
        ("GET", "/metrics/", 404),
        ("GET", "/favicon.ico", 404),
        ("POST", "/metrics", 405),
        ("DELETE", "/", 405),
    ],
)
def test_paths_and_methods(exporter: Exporter, method: str, path: str, status: int) -> None:
    answer = exporter.ask(path, method)
    assert answer.status == status
    assert ("Allow" in answer.headers) == (status == 405)
    if method == "HEAD":
        assert not answer.body
        assert int(answer.headers["Content-Length"]) > 0


def test_landing_page_describes_the_run(exporter: Exporter) -> None:
    page = exporter.ask("/").text
    assert RUN["run_id"] in page
    assert 'href="/metrics"' in page


def test_idle_connections_do_not_block_others(exporter: Exporter) -> None:
    with socket.create_connection(exporter.endpoint), socket.create_connection(exporter.endpoint):
        assert exporter.ask().status == 200


def test_connections_are_bounded_and_freed(run_directory: Path) -> None:
    make_ledger(run_directory / "ledger")
    with running_exporter(run_directory) as exporter:
        idle = [socket.create_connection(exporter.endpoint) for _ in range(MAX_CONNECTIONS)]
        with socket.create_connection(exporter.endpoint, timeout=DEADLINE) as surplus:
            assert surplus.recv(4096).startswith(b"HTTP/1.0 503 ")
        for connection in idle:
            connection.close()
        assert eventually(lambda: is_answered(exporter))


def is_answered(exporter: Exporter) -> bool:
    try:
        return exporter.ask("/-/healthy").status == 200
    except ConnectionError:  # refused at once, before the request was read
        return False


def test_slow_request_is_terminated(tmp_path: Path) -> None:
    make_ledger(tmp_path / "ledger")
    with LedgerReader.open(tmp_path / "ledger") as reader:
        collector = LedgerCollector(lambda: reader)
        with ExporterServer(socket.AF_INET, ("127.0.0.1", 0), collector, 0.3) as server:
            loop = threading.Thread(target=server.serve_forever)
            loop.start()
            try:
                with socket.create_connection(server.socket.getsockname()) as slow:
                    slow.settimeout(0.05)
                    assert eventually(lambda: has_ended(slow))
            finally:
                server.shutdown()
                loop.join()


def has_ended(connection: socket.socket) -> bool:
    """Send one more byte of a request line and see whether the server still waits for the rest."""
    try:
        connection.send(b"G")
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except ConnectionError:
        return True


def test_late_and_replaced_ledgers_are_served(run_directory: Path, tmp_path: Path) -> None:
    with running_exporter(run_directory) as exporter:
        samples = exporter.scrape()
        assert value(samples, "up") == 0
        assert value(samples, "run_active") == 0
        assert "no readable ledger" in exporter.ask("/").text
        make_ledger(run_directory / "ledger")
        assert value(exporter.scrape(), "up") == 1
        make_ledger(tmp_path / "next", run={**RUN, "run_id": "run-2"})
        (tmp_path / "next").rename(run_directory / "ledger")
        assert value(exporter.scrape(), "up") == 1
        assert "run-2" in exporter.ask().text


def test_unlinked_ledger_is_still_served(run_directory: Path) -> None:
    make_ledger(run_directory / "ledger")
    with running_exporter(run_directory) as exporter:
        (run_directory / "ledger").unlink()
        assert value(exporter.scrape(), "up") == 1


def test_truncated_ledger_exports_its_readable_part(run_directory: Path) -> None:
    ledger = make_ledger(run_directory / "ledger")
    with running_exporter(run_directory) as exporter:
        os.truncate(run_directory / "ledger", ledger.layout.blocks["mapper-0"].offset)
        samples = exporter.scrape()
        assert value(samples, "up") == 0
        assert value(samples, "violations_total", kind="leak", known_issue="none") == 0
        os.truncate(run_directory / "ledger", 0)
        assert value(exporter.scrape(), "up") == 0
        assert exporter.process.poll() is None


def test_invalid_ledger_is_logged_once(run_directory: Path) -> None:
    (run_directory / "ledger").write_bytes(b"\0" * 8192)
    with running_exporter(run_directory) as exporter:
        for _ in range(3):
            assert value(exporter.scrape(), "up") == 0
        assert exporter.log.read_text().count("cannot read") == 1


def test_sigterm_ends_the_exporter_with_success(run_directory: Path) -> None:
    make_ledger(run_directory / "ledger")
    with running_exporter(run_directory) as exporter:
        with socket.create_connection(exporter.endpoint) as idle:
            assert exporter.ask().status == 200
            exporter.process.send_signal(signal.SIGTERM)
            assert exporter.process.wait(DEADLINE) == 0
            idle.settimeout(DEADLINE)
            assert idle.recv(1) == b""
        assert exporter.log.read_text() == ""


def test_exporter_continues_after_sigstop(run_directory: Path) -> None:
    make_ledger(run_directory / "ledger")
    with running_exporter(run_directory) as exporter:
        exporter.process.send_signal(signal.SIGSTOP)
        # Longer than it waits for signals at a time.
        time.sleep(1.5)
        exporter.process.send_signal(signal.SIGCONT)
        assert exporter.ask("/-/healthy").status == 200
        with pytest.raises(subprocess.TimeoutExpired):
            exporter.process.wait(1.5)


def refusal(run_directory: Path, *options: str) -> str:
    """Start an exporter that cannot start, and return its one sentence."""
    command = command_line(run_directory, *options)
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert done.returncode == 2
    (sentence,) = done.stderr.splitlines()
    return sentence


def test_port_in_use_is_reported_in_one_sentence(run_directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        sentence = refusal(run_directory, "--listen", f"127.0.0.1:{port}")
    assert f"127.0.0.1 port {port}" in sentence
    assert "--listen" in sentence


def test_missing_run_directory_is_reported_in_one_sentence(tmp_path: Path) -> None:
    assert str(tmp_path / "none") in refusal(tmp_path / "none")


def test_closed_descriptor_is_reported_in_one_sentence(run_directory: Path) -> None:
    assert "--ready-fd 77" in refusal(run_directory, "--ready-fd", "77")


@pytest.mark.parametrize("listen", ["192.0.2.1:0", "no-such-host.invalid:0"])
def test_foreign_address_is_reported_in_one_sentence(run_directory: Path, listen: str) -> None:
    assert "cannot listen" in refusal(run_directory, "--listen", listen)


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")
def test_exporter_listens_on_ipv6(run_directory: Path) -> None:
    with running_exporter(run_directory, listen="[::1]:0") as exporter:
        assert exporter.address.startswith("[::1]:")
        assert exporter.ask("/-/healthy").status == 200


@as_root
def test_root_becomes_nobody(run_directory: Path) -> None:
    make_ledger(run_directory / "ledger")
    (run_directory / "ledger").chmod(0o600)
    with running_exporter(run_directory) as exporter:
        text = Path(f"/proc/{exporter.process.pid}/status").read_text(encoding="ascii")
        status = dict(line.split(":\t", 1) for line in text.splitlines())
        assert status["Uid"].split() == ["65534"] * 4
        assert status["Gid"].split() == ["65534"] * 4
        assert not status["Groups"].split()
        assert int(status["CapEff"], 16) == 0
        assert status["NoNewPrivs"] == "1"
        assert value(exporter.scrape(), "up") == 1


# Starts what its arguments say, to die with it, and lives until it is killed.
_PARENT = """
import os, subprocess, sys
subprocess.Popen([*sys.argv[1:], "--die-with-parent", str(os.getpid())])
sys.stderr.write("started\\n")
sys.stdin.read()
"""


@pytest.mark.parametrize("moment", [b"started", b"listening"])
def test_exporter_dies_with_its_parent(run_directory: Path, moment: bytes) -> None:
    """Also with one that is killed before the exporter has come to ask for that."""
    command = command_line(run_directory, "--listen", "127.0.0.1:0")
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, *command],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    # An exporter that does not start would leave its parent, and this test, waiting for ever.
    late = threading.Timer(DEADLINE, kill_group, [parent.pid])
    late.start()
    with parent:
        try:
            assert parent.stderr is not None
            lines = iter(parent.stderr.readline, b"")
            assert any(moment in line for line in lines)
            parent.kill()
            # The exporter holds the other end of this pipe for as long as it lives.
            rest = threading.Thread(target=parent.stderr.read)
            rest.start()
            rest.join(DEADLINE)
            ended = not rest.is_alive()
        finally:
            late.cancel()
            kill_group(parent.pid)
        rest.join()
        assert ended


def kill_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return  # all of them have ended by themselves


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9823", ("127.0.0.1", 9823)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:65535", ("::1", 65535)),
        ("[fe80::1%eth0]:1", ("fe80::1%eth0", 1)),
        ("a-1.example.:1", ("a-1.example.", 1)),
    ],
)
def test_listen_addresses_are_read(text: str, address: tuple[str, int]) -> None:
    assert parse_listen(text) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "9823",
        ":9823",
        "::1:9823",
        "[::1]",
        "host:",
        "host:65536",
        "host:-1",
        "h:1:2",
        "[]:1",
        "[a]:1",
        "[1.2.3.4]:1",
        "[::1%]:1",
        "host:\uff11",
        "ho st:1",
        "host:1\n",
        # The codec that a resolver's names go through refuses these with an error of its own.
        "a..b:1",
        ".:1",
        f"{'x' * 64}:1",
        f"{'x.' * 127}:1",
        "\u2603.example:1",
        "\udcff:1",
    ],
)
def test_invalid_listen_addresses_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"HOST:PORT.*127\.0\.0\.1:9823"):
        parse_listen(text)
