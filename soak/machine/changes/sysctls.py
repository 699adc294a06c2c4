# SPDX-License-Identifier: GPL-2.0-only
"""Kernel settings: which a soak needs otherwise than they are, and how one is set and set back."""

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
    """For how long a setting is needed."""

    RUN = "run"
    READING_ADDRESSES = "reading-addresses"


@dataclass(frozen=True)
class Demand:
    """What a soak is going to use.

    `aio_contexts`: processes that take asynchronous transfers, each with a context of one event.
    `mappings`: the most files that one worker maps at once, each a mapping of its own.
    """

    aio_contexts: int
    mappings: int


@dataclass(frozen=True)
class Need:
    """A setting that must not be above, or below, some value, for some time."""

    name: str
    at_most: int | None
    at_least: Callable[[Demand, Callable[[str], int]], int] | None
    span: Span
    reason: str


# kernel.io_uring_disabled is left alone: where an administrator forbids io_uring, the soak goes without.
# kernel.yama.ptrace_scope and the limits on pipes do not bind: a worker copies from itself, and takes
# pipes of the default size.
NEEDS: Final = (
    Need(
        "kernel.kptr_restrict",
        1,
        None,
        Span.READING_ADDRESSES,
        "at 2 /proc/kallsyms shows no address even to root, and the leak detector starts from that of "
        "vmemmap_base (kallsyms_show_value(), kernel/ksyms_common.c)",
    ),
    Need(
        "fs.aio-max-nr",
        None,
        lambda demand, read: read("fs.aio-nr") + demand.aio_contexts,
        Span.RUN,
        "io_setup() of a holder fails with EAGAIN when the contexts of the whole system would have "
        "more events than that (ioctx_alloc(), fs/aio.c)",
    ),
    Need(
        "vm.max_map_count",
        None,
        lambda demand, _: demand.mappings + _OTHER_MAPPINGS,
        Span.RUN,
        "each file of an fs-dax region is a mapping of its own in each worker, and mmap() fails with "
        "ENOMEM beyond that many (do_mmap(), mm/mmap.c)",
    ),
)


def wanted_values(machine: Machine, demand: Demand, span: Span) -> Iterator[tuple[str, int]]:
    """Yield the settings that have to be changed, with their new values. Reads, changes nothing.

    A setting that this kernel does not have is none to change: what it is for says so when it is used.

    Raises:
        UsageError: a value is no number.
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
        raise UsageError(f"The kernel setting {name} is {text!r}, where a number was expected.") from None


def _read(machine: Machine, name: str) -> str:
    """Return a value with its words apart by one space: the kernel prints tabs."""
    return " ".join(_path(machine, name).read_text().split())


def _write(machine: Machine, name: str, value: str) -> None:
    """Write a value in one call, without O_TRUNC, as the kernel reads it."""
    descriptor = os.open(_path(machine, name), os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, f"{value}\n".encode())
    finally:
        os.close(descriptor)


def _look(machine: Machine, name: str, wanted: Facts) -> Facts:
    if not _NAME.fullmatch(name) or not _path(machine, name).exists():
        raise UsageError(f"There is no kernel setting {name!r} on this machine: 'sysctl -a' lists them.")
    return {"before": _read(machine, name), "wanted": wanted["wanted"]}


def _apply(machine: Machine, name: str, facts: Facts) -> None:
    _write(machine, name, facts["wanted"])
    if (now := _read(machine, name)) != facts["wanted"]:
        raise UsageError(
            f"The kernel setting {name} should be {facts['wanted']} and stays {now}: set it by hand."
        )


def _undo(machine: Machine, name: str, facts: Facts) -> tuple[Outcome, str]:
    now, before = _read(machine, name), facts["before"]
    if now == before:
        return Outcome.RESTORED, f"kernel setting {name} is {before}, as before"
    if now != facts["wanted"]:
        return Outcome.LEFT, (
            f"kernel setting {name} is {now}, which is not what the soak had set "
            f"({facts['wanted']}): another program has changed it, and it stays so"
        )
    _write(machine, name, before)
    if (now := _read(machine, name)) != before:
        raise UsageError(f"the kernel setting {name} stays {now}")
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
