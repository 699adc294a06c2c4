# SPDX-License-Identifier: GPL-2.0-only
"""The HTTP server, with timeouts and a connection limit, so that no client can block the others.

The server of prometheus-client has neither a read timeout nor a thread limit, and serves every path.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import os
import signal
import socket
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import structlog
from prometheus_client.exposition import gzip_accepted

from exporter.collector import LedgerCollector
from exporter.exposition import HTML, PLAIN, landing_page, metrics_page
from exporter.privileges import die_with_parent, drop_privileges
from exporter.source import LEDGER_NAME, LedgerSource
from soak import __version__
from soak.errors import UsageError
from soak.process.http_probe import ExporterProbe
from soak.process.notify import Notifier, watchdog_seconds
from soak.process.watchdog import Watchdog

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed import WriteableBuffer

    _Request = socket.socket | tuple[bytes, socket.socket]  # the type of socketserver

REQUEST_SECONDS: Final = 10.0
MAX_CONNECTIONS: Final = 16
_BEAT_SECONDS: Final = 1.0
_BIND_POLL_SECONDS: Final = 0.1
_STOP_SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGINT})
_BUSY: Final = b"HTTP/1.0 503 Service Unavailable\r\nRetry-After: 10\r\nContent-Length: 0\r\n\r\n"
_LOG: Final[structlog.typing.FilteringBoundLogger] = structlog.get_logger()


def serve(
    run_directory: int,
    host: str,
    port: int,
    *,
    ledger: str = LEDGER_NAME,
    ready: Callable[[str], None] = lambda _address: None,
    parent: int | None = None,
    bind_seconds: float = 0.0,
) -> None:
    """Serve the ledger of a run directory, given by its descriptor, until SIGTERM or SIGINT.

    Call this in the main thread of a dedicated process: it drops root privileges, but keeps the
    directory's group. Once the server accepts connections, it calls `ready` with "HOST:PORT" and
    notifies the service manager. It feeds the manager's watchdog while it answers its own probe. With
    `parent`, the process exits together with that process. While the address is in use, it retries for
    `bind_seconds`.

    Raises:
        UsageError: the address cannot be bound, or privileges cannot be dropped.
    """
    source = LedgerSource(run_directory, ledger)
    collector = LedgerCollector(source.reader)
    with (
        _listen(host, port, collector, time.monotonic() + bind_seconds) as server,
        Notifier.from_environment() as notifier,
        contextlib.closing(ExporterProbe(*server.endpoint)) as probe,
    ):
        status = f"Serving on {server.address}"
        sources = {"the HTTP server": probe.poll}
        watchdog = Watchdog(notifier, watchdog_seconds(), sources, status=status)
        collector.collect()  # opens the ledger with root privileges
        # Stay blocked: the threads inherit the mask, and a second signal must not kill the process.
        signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
        drop_privileges(os.fstat(run_directory).st_gid)
        if parent is not None:
            die_with_parent(parent)
        loop = threading.Thread(target=server.serve_forever, name="http", daemon=True)
        loop.start()
        ready(server.address)
        notifier.ready(status)
        while not _stop_signal_within(_BEAT_SECONDS):
            if not loop.is_alive():
                raise RuntimeError("the HTTP server thread has died")
            watchdog.beat()
        notifier.stopping("Stopping on a signal")


class ExporterServer(ThreadingHTTPServer):
    """Serves one collector, with a bounded number of threads."""

    daemon_threads = True  # an open connection must not delay exit

    def __init__(
        self,
        family: socket.AddressFamily,
        address: tuple[str, int],
        collector: LedgerCollector,
        request_seconds: float = REQUEST_SECONDS,
    ) -> None:
        """`request_seconds` limits the time to read a request, and that to write its response."""
        self.address_family = family
        self.request_seconds = request_seconds
        self.collector = collector
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__(address, _Handler)

    @property
    def endpoint(self) -> tuple[str, int]:
        """The bound host and port."""
        host, port = self.socket.getsockname()[:2]
        return host, port

    @property
    def address(self) -> str:
        """The bound address as "HOST:PORT"."""
        host, port = self.endpoint
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def server_bind(self) -> None:
        # HTTPServer.server_bind() resolves the name of the address, which can take long.
        TCPServer.server_bind(self)

    def process_request(self, request: _Request, client_address: object) -> None:
        if not self._slots.acquire(blocking=False):
            if isinstance(request, socket.socket):
                request.send(_BUSY)  # does not block: the socket's buffer is still empty
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except RuntimeError:  # no thread could be started
            self._slots.release()
            raise

    def process_request_thread(self, request: _Request, client_address: object) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._slots.release()

    def handle_error(self, request: _Request, client_address: object) -> None:
        del request  # the base class closes it
        if isinstance(sys.exception(), ConnectionError):
            _LOG.debug("client disconnected", client=client_address)
        else:
            _LOG.exception("request failed", client=client_address)


class _DeadlineReader(io.RawIOBase):
    """Reads from a socket with one deadline for the whole request."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        self._connection = connection
        self._deadline = time.monotonic() + seconds

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        remaining = self._deadline - time.monotonic()
        if remaining <= 0:
            raise TimeoutError("the request took too long to arrive")
        self._connection.settimeout(remaining)
        return self._connection.recv_into(buffer)


class _Handler(BaseHTTPRequestHandler):
    server: ExporterServer
    server_version = f"dax-soak-exporter/{__version__}"
    sys_version = ""

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = io.BufferedReader(_DeadlineReader(self.connection, self.server.request_seconds))

    def do_GET(self) -> None:
        respond = _PATHS.get(urlsplit(self.path).path, _Handler._not_found)
        respond(self)

    do_HEAD = do_GET  # noqa: N815 - the base class looks methods up by these names

    def do_POST(self) -> None:
        body = b"Only GET and HEAD are supported.\n"
        self._respond(HTTPStatus.METHOD_NOT_ALLOWED, PLAIN, body)

    do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_POST  # noqa: N815 - the same

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        _LOG.debug(format % args, client=self.address_string())

    def _metrics(self) -> None:
        body, content_type = metrics_page(self.server.collector, self.headers.get("Accept", ""))
        self._respond(HTTPStatus.OK, content_type, body)

    def _landing(self) -> None:
        self._respond(HTTPStatus.OK, HTML, landing_page(self.server.collector))

    def _healthy(self) -> None:
        self._respond(HTTPStatus.OK, PLAIN, b"healthy\n")

    def _not_found(self) -> None:
        self._respond(HTTPStatus.NOT_FOUND, PLAIN, b"Not found; see /metrics.\n")

    def _respond(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
        # The rest of the read timeout may be too short.
        self.connection.settimeout(self.server.request_seconds)
        compressed = gzip_accepted(self.headers.get("Accept-Encoding", ""))
        if compressed:
            body = gzip.compress(body, compresslevel=1)
        self.send_response(status)
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("Allow", "GET, HEAD")
        if compressed:
            self.send_header("Content-Encoding", "gzip")
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _stop_signal_within(seconds: float) -> bool:
    caught = signal.sigtimedwait(_STOP_SIGNALS, seconds)
    # Python 3.11 to 3.13 also return a result without a signal number if SIGSTOP and SIGCONT interrupt
    # the call and the timeout has passed.
    return caught is not None and caught.si_signo in _STOP_SIGNALS


_PATHS: Final[dict[str, Callable[[_Handler], None]]] = {
    "/": _Handler._landing,  # noqa: SLF001 - its own table
    "/metrics": _Handler._metrics,  # noqa: SLF001 - the same
    "/-/healthy": _Handler._healthy,  # noqa: SLF001 - the same
}


def _listen(host: str, port: int, collector: LedgerCollector, deadline: float) -> ExporterServer:
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        while True:
            try:
                return ExporterServer(family, (str(address[0]), port), collector)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or time.monotonic() > deadline:
                    raise
            time.sleep(_BIND_POLL_SECONDS)
    except OSError as error:
        where = f"{host} port {port}"
        if error.errno == errno.EADDRINUSE:
            raise UsageError(
                f"Another program listens on {where}: stop it, or choose another with --listen HOST:PORT."
            ) from error
        reason = error.strerror or os.strerror(error.errno or 0)
        raise UsageError(
            f"The exporter cannot listen on {where}: {reason}. Give an address of this machine with"
            " --listen HOST:PORT."
        ) from error
