# SPDX-License-Identifier: GPL-2.0-only
"""Kernel settings that a soak needs to change, and how each is set and restored."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from soak.errors import UsageError
from soak.machine.changes.entry import Facts, Kind, Machine, Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# A worker's interpreter, its libraries and its own buffers take about 150; this leaves room.
_OTHER_MAPPINGS: Final = 1024
_NAME: Final = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)+")
_SECONDS: Final = 10.0


class Span(StrEnum):
    """How long a setting is needed."""

    RUN = "run"
    READING_ADDRESSES = "reading-addresses"


@dataclass(frozen=True)
class Demand:
    """What a run is going to use.

    `aio_contexts`: processes with asynchronous transfers, each with a context of one event.
    `mappings`: the maximum number of files that one worker maps at a time.
    """

    aio_contexts: int
    mappings: int


@dataclass(frozen=True)
class Need:
    """An upper or lower bound of a setting during a span."""

    name: str
    at_most: int | None
    at_least: Callable[[Demand, Callable[[str], int]], int] | None
    span: Span
    reason: str


# Not changed: kernel.io_uring_disabled (if an administrator forbids io_uring, the soak does not use it);
# kernel.yama.ptrace_scope and the pipe limits (a worker copies from itself, with pipes of default size).
NEEDS: Final = (
    Need(
        "kernel.kptr_restrict",
        1,
        None,
        Span.READING_ADDRESSES,
        "at 2 /proc/kallsyms shows no address even to root, and the leak detector needs that of "
        "vmemmap_base (kallsyms_show_value(), kernel/ksyms_common.c)",
    ),
    Need(
        "fs.aio-max-nr",
        None,
        lambda demand, read: read("fs.aio-nr") + demand.aio_contexts,
        Span.RUN,
        "io_setup() of a holder fails with EAGAIN if the contexts of the whole system would exceed it "
        "(ioctx_alloc(), fs/aio.c)",
    ),
    Need(
        "vm.max_map_count",
        None,
        lambda demand, _: demand.mappings + _OTHER_MAPPINGS,
        Span.RUN,
        "each worker maps each file of an fs-dax region, and mmap() fails with ENOMEM beyond this many "
        "mappings (do_mmap(), mm/mmap.c)",
    ),
)


def wanted_values(machine: Machine, demand: Demand, span: Span) -> Iterator[tuple[str, int]]:
    """Yield the settings to change, with their new values. Changes nothing.

    Skips a setting that this kernel lacks: the feature itself reports that when it is used.

    Raises:
        UsageError: a value is not a number.
    """
    for need in NEEDS:
        if need.span is not span or not _path(machine, need.name).exists():
            continue
        now = _number(machine, need.name)
        if need.at_most is not None and now > need.at_most:
            yield need.name, need.at_most
        elif need.at_least is not None:
            least = need.at_least(demand, lambda name: _number(machine, name))
            if now < least:
                yield need.name, least


def _path(machine: Machine, name: str) -> Path:
    return machine.sysctls / name.replace(".", "/")


def _number(machine: Machine, name: str) -> int:
    text = _read(machine, name)
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"Kernel setting {name} is {text!r}, expected a number.") from None


def _read(machine: Machine, name: str) -> str:
    """Return a value with single spaces between words; the kernel prints tabs."""
    return " ".join(_path(machine, name).read_text().split())


def _write(machine: Machine, name: str, value: str) -> None:
    """Write a value in one call, without O_TRUNC."""
    descriptor = os.open(_path(machine, name), os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, f"{value}\n".encode())
    finally:
        os.close(descriptor)


def _look(machine: Machine, name: str, wanted: Facts) -> Facts:
    if not _NAME.fullmatch(name) or not _path(machine, name).exists():
        raise UsageError(f"This machine has no kernel setting {name!r}: 'sysctl -a' lists them.")
    return {"before": _read(machine, name), "wanted": wanted["wanted"]}


def _apply(machine: Machine, name: str, facts: Facts) -> None:
    _write(machine, name, facts["wanted"])
    if (now := _read(machine, name)) != facts["wanted"]:
        raise UsageError(f"Kernel setting {name} stays {now}, wanted {facts['wanted']}: set it by hand.")


def _undo(machine: Machine, name: str, facts: Facts) -> tuple[Outcome, str]:
    now, before = _read(machine, name), facts["before"]
    if now == before:
        return Outcome.RESTORED, f"kernel setting {name} is {before}, as before"
    if now != facts["wanted"]:
        return Outcome.LEFT, (
            f"kernel setting {name} is left at {now}: another program has changed it since the soak "
            f"set it to {facts['wanted']}"
        )
    _write(machine, name, before)
    if (now := _read(machine, name)) != before:
        raise UsageError(f"kernel setting {name} stays {now}")
    return Outcome.RESTORED, f"kernel setting {name} is {before} again"


SYSCTL: Final = Kind(
    look=_look,
    apply=_apply,
    undo=_undo,
    by_hand=lambda name, facts: f"set it back with: sysctl -w {name}='{facts['before']}'",
    facts={"before": str, "wanted": str},
    outlives_boot=False,
    seconds=_SECONDS,
)
