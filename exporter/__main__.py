# SPDX-License-Identifier: GPL-2.0-only
"""`python -m exporter`: serve a run directory."""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from exporter.server import serve
from exporter.source import LEDGER_NAME
from soak.config.listen import DEFAULT_LISTEN, parse_listen
from soak.errors import UsageError
from soak.log import configure, log_crash

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# EX_SOFTWARE of sysexits.h, as in all commands; 1 stands for a failed kernel.
_CRASH_EXIT = 70
_USAGE_EXIT = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT and return the exit code."""
    arguments = _parser().parse_args(argv)
    configure(program="exporter")
    try:
        host, port = parse_listen(arguments.listen)
        if arguments.wait_fd is not None and not os.read(arguments.wait_fd, 1):
            return 0  # the parent has exited
        serve(
            _open_directory(arguments.run_dir),
            host,
            port,
            ledger=arguments.ledger,
            ready=_announcer(arguments.ready_fd),
            parent=arguments.die_with_parent,
            bind_seconds=arguments.bind_seconds,
        )
    except UsageError as error:
        print(error, file=sys.stderr)  # noqa: T201 - the message for the user
        return _USAGE_EXIT
    except Exception as error:  # noqa: BLE001 - any crash is logged
        log_crash("exporter", error)
        return _CRASH_EXIT
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dax-soak exporter", description="Serve the ledger of a run to Prometheus."
    )
    parser.add_argument("--run-dir", type=Path, required=True, help="the directory of the run")
    parser.add_argument(
        "--ledger",
        default=LEDGER_NAME,
        metavar="NAME",
        help="the ledger in that directory; 'latest/ledger' follows a link (default: %(default)s)",
    )
    parser.add_argument(
        "--listen",
        default=DEFAULT_LISTEN,
        metavar="HOST:PORT",
        help="listen address; port 0 takes any free port (default: %(default)s)",
    )
    parser.add_argument(
        "--ready-fd",
        type=int,
        metavar="N",
        help="once ready, write HOST:PORT to this descriptor and close it",
    )
    parser.add_argument(
        "--wait-fd",
        type=int,
        metavar="N",
        help="read one byte from this descriptor before opening or binding anything",
    )
    parser.add_argument(
        "--bind-seconds",
        type=float,
        default=0.0,
        metavar="S",
        help="how long to retry while the address is in use (default: %(default)s)",
    )
    parser.add_argument(
        "--die-with-parent",
        type=int,
        metavar="PID",
        help="exit when this parent process (on Linux: its thread) exits",
    )
    return parser


def _open_directory(path: Path) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(
            f"The run directory {str(path)!r} cannot be opened: {error.strerror}."
        ) from error


def _announcer(descriptor: int | None) -> Callable[[str], None]:
    if descriptor is None:
        return _log_address
    try:
        os.fstat(descriptor)
    except OSError as error:
        raise UsageError(f"--ready-fd {descriptor} is not an open descriptor.") from error
    return partial(_announce, descriptor)


def _log_address(address: str) -> None:
    structlog.get_logger().info("listening", address=address)


def _announce(descriptor: int, address: str) -> None:
    # Bytes: a text file would load its codec from Python's files, which user nobody may not read.
    os.write(descriptor, f"{address}\n".encode())
    os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main())
