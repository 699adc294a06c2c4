# SPDX-License-Identifier: GPL-2.0-only
"""`python -m exporter`: serves a run directory."""

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

# EX_SOFTWARE of sysexits.h, as that of all commands: 1 would tell that a kernel failed.
_CRASH_EXIT = 70
_USAGE_EXIT = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT and return the exit code."""
    arguments = _parser().parse_args(argv)
    configure(program="exporter")
    try:
        host, port = parse_listen(arguments.listen)
        if arguments.wait_fd is not None and not os.read(arguments.wait_fd, 1):
            return 0  # whoever started this process has ended
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
        print(error, file=sys.stderr)  # noqa: T201 - the sentence for the user
        return _USAGE_EXIT
    except Exception as error:  # noqa: BLE001 - whatever it was, it is told
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
        help="where to listen; port 0 takes any that is free (default: %(default)s)",
    )
    parser.add_argument(
        "--ready-fd",
        type=int,
        metavar="N",
        help="write HOST:PORT to this descriptor and close it when connections are accepted",
    )
    parser.add_argument(
        "--wait-fd",
        type=int,
        metavar="N",
        help="open and bind nothing before a byte can be read from this descriptor",
    )
    parser.add_argument(
        "--bind-seconds",
        type=float,
        default=0.0,
        metavar="S",
        help="how long to try again where the address is in use (default: %(default)s)",
    )
    parser.add_argument(
        "--die-with-parent",
        type=int,
        metavar="PID",
        help="end when that process, which started this one, has ended (on Linux: its thread)",
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
        raise UsageError(f"--ready-fd {descriptor} is no open descriptor.") from error
    return partial(_announce, descriptor)


def _log_address(address: str) -> None:
    structlog.get_logger().info("listening", address=address)


def _announce(descriptor: int, address: str) -> None:
    # Bytes: a text file would look its codec up in Python's own files, which this process, nobody
    # by now, may not be allowed to read.
    os.write(descriptor, f"{address}\n".encode())
    os.close(descriptor)


if __name__ == "__main__":
    sys.exit(main())
