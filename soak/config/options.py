# SPDX-License-Identifier: GPL-2.0-only
"""The options of each subcommand: each function adds them to its parser."""

from __future__ import annotations

import argparse
from typing import Final

from soak.config import arguments

_WHICH_RUN: Final = "run directory, run id or 'latest'"


def nothing(_parser: argparse.ArgumentParser) -> None:
    """Add nothing: the command has no options."""


def exporter(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "run",
        type=arguments.place,
        metavar="RUN",
        help="run directory, run id or 'latest' (follows the newest run)",
    )
    add("--listen", type=arguments.address, metavar="HOST:PORT", help="where to serve metrics")


def top(parser: argparse.ArgumentParser) -> None:
    newest(parser)
    add = parser.add_argument
    add(
        "--interval",
        type=arguments.duration,
        metavar="TIME",
        help="time between two updates (2s); without a terminal, print repeatedly",
    )
    add("--once", action="store_true", help="print once and exit")


def report(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run", type=arguments.place, metavar="RUN", help=_WHICH_RUN)
    add("--format", choices=("text", "json"), default="text")
    add("--strict", action="store_true", help="a known issue fails the run, too")


def plant(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("fault", type=arguments.word, metavar="FAULT", help="a fault that 'dax-soak faults' lists")
    newest(parser)


def newest(parser: argparse.ArgumentParser) -> None:
    """Add the optional argument RUN, by default the newest run."""
    parser.add_argument(
        "run", nargs="?", type=arguments.place, default="latest", metavar="RUN", help=_WHICH_RUN
    )


def lab(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _machine(parser)
    add(
        "--fault",
        type=arguments.word,
        action="append",
        default=[],
        metavar="NAME[:SECONDS]",
        help="plant a fault",
    )
    add("--listen", type=arguments.address, metavar="HOST:PORT", help="where to serve metrics")
    add("--run-dir", type=arguments.path, metavar="DIR", help="a new directory for the run")
    add(
        "--keep",
        action="store_true",
        help="keep the NVDIMM, so that --resume can continue the run if its guest dies",
    )
    add(
        "--resume",
        type=arguments.place,
        metavar="RUN",
        help="continue a run whose guest died, in a new boot",
    )
    add("--strict", action="store_true", help="a known issue fails the run, too")
    add(
        "--bisect",
        action="store_true",
        help="use the exit codes of 'git bisect run': 0 good, 1 bad, 125 skip, 255 usage error",
    )
    add("-c", "--config", type=arguments.path, metavar="FILE", help="a soak.toml")
    add(
        "--until-covered",
        action="store_true",
        help="end as soon as the run has covered everything that a pass needs, at the latest after "
        "--duration",
    )
    add(
        "--linger",
        type=arguments.duration,
        default=20.0,
        metavar="TIME",
        help="how long to serve metrics after a run that did not pass (20s)",
    )
    add(
        "--mirror-ledger",
        action="store_true",
        help="keep the ledger in the guest's memory and copy it to the host (automatic where shared "
        "memory is slow)",
    )
    # For tests: more devices, and a script to run in the guest instead of a soak.
    add("--device", type=arguments.word, action="append", default=[], help=argparse.SUPPRESS)
    # The script and the files that it imports, relative to the import path.
    add("--script", type=arguments.path, nargs="+", help=argparse.SUPPRESS)
    add("--nvdimm", type=arguments.path, help=argparse.SUPPRESS)
    add("--package", type=arguments.word, action="append", default=[], help=argparse.SUPPRESS)
    _choices(parser)


def _machine(parser: argparse.ArgumentParser) -> None:
    """Add the options of commands that boot the lab."""
    add = parser.add_argument
    add(
        "--kernel",
        type=arguments.place,
        help="debian:6.1 (default), debian:6.12, debian:sid; build:6.12, built from Debian's source "
        "with more options such as iommufd; host, this machine's kernel; a bzImage file; or a kernel "
        "build directory",
    )
    add("--modules", type=arguments.path, metavar="DIR", help="the modules of a bzImage file")
    add("--filesystem", default="ext4", choices=("ext4", "xfs"))
    add("--accel", default="auto", choices=("auto", "kvm", "tcg"))
    add(
        "--append",
        type=arguments.kernel_words,
        default="",
        metavar="TEXT",
        help="parameters to append to the kernel command line",
    )
    add(
        "--boot-timeout",
        type=arguments.duration,
        default=180.0,
        metavar="TIME",
        help="how long the guest may take to boot (3m)",
    )


def bench(parser: argparse.ArgumentParser) -> None:
    _machine(parser)
    add = parser.add_argument
    add(
        "--duration",
        type=arguments.duration,
        default=60.0,
        metavar="TIME",
        help="how long to measure (1m)",
    )
    add("--format", choices=("text", "json"), default="text")


def measure(parser: argparse.ArgumentParser) -> None:
    """Add the options of the command that `bench` runs in its guest."""
    add = parser.add_argument
    add("-c", "--config", type=arguments.path, required=True)
    add("--run-id", required=True)
    add("--ledger", type=arguments.path, required=True)
    add("--journal-port", type=arguments.path, required=True)
    add("--control", type=arguments.path)
    add("--mirror-ledger", action="store_true")


def run(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("-c", "--config", type=arguments.path, required=True, metavar="FILE", help="a soak.toml")
    add("--run-dir", type=arguments.path, metavar="DIR", help="a new directory for the run")
    add("--strict", action="store_true", help="a known issue fails the run, too")
    add(
        "--resume",
        action="store_true",
        help="continue the newest run if a crash or reboot interrupted it, else start a new one",
    )
    add(
        "--watch-exporter",
        type=arguments.address,
        metavar="HOST:PORT",
        help="as a service, feed the watchdog only while the exporter at this address responds",
    )
    add("--run-id", help=argparse.SUPPRESS)
    add("--ledger", type=arguments.path, help=argparse.SUPPRESS)
    add("--journal-port", type=arguments.path, help=argparse.SUPPRESS)
    add("--control", type=arguments.path, help=argparse.SUPPRESS)
    add("--mirror-ledger", action="store_true", help=argparse.SUPPRESS)
    _choices(parser)


def install(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--root", type=arguments.path, metavar="DIR", help="write below this directory")
    add(
        "--config",
        type=arguments.path,
        metavar="FILE",
        help="the configuration (/etc/dax-soak/soak.toml); created with an example if missing",
    )
    add(
        "--exporter-listen",
        type=arguments.address,
        metavar="HOST:PORT",
        help="where to serve metrics (127.0.0.1:9823)",
    )
    add("--dry-run", action="store_true", help="print the changes without making them")
    add("--uninstall", action="store_true", help="remove the installed files")


def check(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--install",
        action="store_true",
        help="check only the requirements of the lab, and install missing ones (as root)",
    )
    what.add_argument(
        "-c",
        "--config",
        type=arguments.path,
        metavar="FILE",
        help="check whether the machine fits a soak.toml",
    )
    what.add_argument(
        "--write", type=arguments.path, metavar="FILE", help="write a soak.toml for this machine"
    )
    parser.add_argument("--for-tests", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "--all", action="store_true", help="print all kernel features, even without the hardware"
    )


def _choices(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--duration", type=arguments.duration, metavar="TIME", help="such as 90s, 2m or 1h30m")
    add("--seed", type=arguments.seed, metavar="N", help="seed of all choices")
    add("--scenario", type=arguments.word, help="mix of operations; 'dax-soak scenarios' lists them")
    add("--print-choices", type=arguments.count, metavar="N", help="print each worker's first N and exit")
