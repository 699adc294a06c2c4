# SPDX-License-Identifier: GPL-2.0-only
"""The options of each subcommand: one function for each, which adds them to its parser."""

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
        help="run directory, run id or 'latest': the newest, also when another becomes that",
    )
    add("--listen", type=arguments.address, metavar="HOST:PORT")


def top(parser: argparse.ArgumentParser) -> None:
    newest(parser)
    add = parser.add_argument
    add(
        "--interval",
        type=arguments.duration,
        metavar="TIME",
        help="between two looks (2s); where the output is no terminal, look again and again",
    )
    add("--once", action="store_true", help="look once and end")


def report(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run", type=arguments.place, metavar="RUN", help=_WHICH_RUN)
    add("--format", choices=("text", "json"), default="text")
    add("--strict", action="store_true", help="a known issue fails the run, too")


def plant(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("fault", type=arguments.word, metavar="FAULT", help="as 'dax-soak faults' lists them")
    newest(parser)


def newest(parser: argparse.ArgumentParser) -> None:
    """Add the run that is meant, which is the newest where none is given."""
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
    add("--listen", type=arguments.address, metavar="HOST:PORT", help="where metrics are served")
    add("--run-dir", type=arguments.path, metavar="DIR", help="a new directory for the run")
    add(
        "--keep",
        action="store_true",
        help="keep the NVDIMM, so that the run can be resumed when its guest has died",
    )
    add(
        "--resume",
        type=arguments.place,
        metavar="RUN",
        help="go on with a run whose guest has died, in a new boot",
    )
    add("--strict", action="store_true", help="a known issue fails the run, too")
    add(
        "--bisect",
        action="store_true",
        help="exit as 'git bisect run' reads it: 0 good, 1 bad, 125 cannot be judged, 255 wrong usage",
    )
    add("-c", "--config", type=arguments.path, metavar="FILE", help="a soak.toml")
    add(
        "--until-covered",
        action="store_true",
        help="end as soon as all is done and seen that a pass needs, however long that takes within "
        "--duration",
    )
    add(
        "--linger",
        type=arguments.duration,
        default=20.0,
        metavar="TIME",
        help="how long metrics stay up after a run that ended badly (20s)",
    )
    add(
        "--mirror-ledger",
        action="store_true",
        help="keep the ledger in the guest's own memory and copy it to the host, as is done "
        "by itself where shared memory is slow",
    )
    # For tests: more hardware, and something else than a soak to run in the guest.
    add("--device", type=arguments.word, action="append", default=[], help=argparse.SUPPRESS)
    # The file that is run, and what it imports, by their paths from where they are imported.
    add("--script", type=arguments.path, nargs="+", help=argparse.SUPPRESS)
    add("--nvdimm", type=arguments.path, help=argparse.SUPPRESS)
    add("--package", type=arguments.word, action="append", default=[], help=argparse.SUPPRESS)
    _choices(parser)


def _machine(parser: argparse.ArgumentParser) -> None:
    """Add the options of everything that boots the lab."""
    add = parser.add_argument
    add(
        "--kernel",
        type=arguments.place,
        help="debian:6.1 (default), debian:6.12, debian:sid; build:6.12, built from Debian's source "
        "with iommufd and the like; host, the kernel of this machine; a bzImage file; or a "
        "directory in which a kernel was built",
    )
    add("--modules", type=arguments.path, metavar="DIR", help="the modules of a kernel given as a file")
    add("--filesystem", default="ext4", choices=("ext4", "xfs"))
    add("--accel", default="auto", choices=("auto", "kvm", "tcg"))
    add(
        "--append",
        type=arguments.kernel_words,
        default="",
        metavar="TEXT",
        help="more of the kernel's command line",
    )
    add(
        "--boot-timeout",
        type=arguments.duration,
        default=180.0,
        metavar="TIME",
        help="how long the guest may take to answer (3m)",
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
    """Add what `bench` runs in its guest: the options are those that a guest gives."""
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
        help="go on with the newest run where a crash or a reboot cut it short, else begin one",
    )
    add(
        "--watch-exporter",
        type=arguments.address,
        metavar="HOST:PORT",
        help="as a service, feed the watchdog only while the exporter there answers",
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
        help="what to soak (/etc/dax-soak/soak.toml); an example is written where there is none",
    )
    add(
        "--exporter-listen",
        type=arguments.address,
        metavar="HOST:PORT",
        help="where metrics are served (127.0.0.1:9823)",
    )
    add("--dry-run", action="store_true", help="print what would be written")
    add("--uninstall", action="store_true", help="remove what was written")


def check(parser: argparse.ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group()
    what.add_argument(
        "--install",
        action="store_true",
        help="install what the lab misses (as root), and look at the lab's needs alone",
    )
    what.add_argument(
        "-c",
        "--config",
        type=arguments.path,
        metavar="FILE",
        help="say whether the machine fits a soak.toml",
    )
    what.add_argument(
        "--write", type=arguments.path, metavar="FILE", help="write a soak.toml for what was found"
    )
    parser.add_argument("--for-tests", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(
        "--all", action="store_true", help="print everything about the kernel, hardware or not"
    )


def _choices(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--duration", type=arguments.duration, metavar="TIME", help="such as 90s, 2m or 1h30m")
    add("--seed", type=arguments.seed, metavar="N", help="from which all choices follow")
    add("--scenario", type=arguments.word, help="the mix of operations; 'dax-soak scenarios' lists them")
    add("--print-choices", type=arguments.count, metavar="N", help="print each worker's first N and end")
