# SPDX-License-Identifier: GPL-2.0-only
"""A probe: does a truncate that waits for a pin wake up when the pin is released?"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Final

from soak.abi.aio import IOCB_CMD_PWRITE, Transfers
from soak.abi.fallocate import truncate
from soak.abi.mmap import MAP_SHARED, PROT_READ, PROT_WRITE, Mapping
from soak.abi.splice import PagePipe
from soak.abi.transfer import open_direct
from soak.detectors.tasks import ASLEEP, look_at, waits_for_pages
from soak.model.known_issues import O_DIRECT_LOST_WAKEUP, REMAPPED_PAGE_STALL
from soak.model.vocabulary import ProbeResult
from soak.process.child import fork, serve_parent
from soak.process.helper import in_helper
from soak.regions.pages import PAGE_SIZE
from soak.regions.transfer_disks import DATA_OFFSET

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    # Pins the page at an address for a while; the callback returns whether the truncate waits for it.
    _Hold = Callable[[int, Callable[[], bool]], None]

_PROBE_SECONDS: Final = 60.0
_HOLD_SECONDS: Final = 0.1
# Limits count polls, not time, so that a machine that was stopped loses no wake-up.
_POLL_SECONDS: Final = 0.01
_POLLS_TO_WAKE: Final = 200
_POLLS_TO_FREE: Final = 500


@dataclass(frozen=True)
class WakeupProbe:
    """The result of one truncate: whether it `waited` for the pin, and whether the release woke it.

    If not `woken`, `unmapped` is whether munmap ended it, `freed` whether a signal did, and `task` is
    the state of its task before both.
    """

    waited: bool
    woken: bool
    unmapped: bool
    freed: bool
    task: dict[str, Any]

    @property
    def asleep(self) -> bool:
        """Whether the truncate kept sleeping; a woken one may just lack a CPU."""
        asleep = self.task.get("state") in ASLEEP
        return not self.woken and asleep and waits_for_pages(self.task.get("stack", ()))

    @property
    def lost(self) -> bool:
        """Whether the wake-up was lost."""
        return self.waited and self.asleep and (self.unmapped or self.freed)


@dataclass(frozen=True)
class WakeupAnswer:
    """A probe and its control: the same truncate, which waits for a plain pin in a pipe."""

    probe: WakeupProbe
    control: WakeupProbe

    @property
    def result(self) -> ProbeResult:
        """Whether the wake-up was lost.

        Inconclusive unless both truncates waited and neither lacked a CPU.
        """
        both = (self.probe, self.control)
        if not all(one.waited and (one.woken or one.asleep) for one in both):
            return ProbeResult.INCONCLUSIVE
        if self.probe.lost and self.control.woken:
            return ProbeResult.CONFIRMED
        return ProbeResult.REFUTED

    @property
    def facts(self) -> dict[str, Any]:
        return {"lost": self.probe.lost, **asdict(self.probe), "control": asdict(self.control)}


@dataclass(frozen=True)
class ProbePlace:
    """The directory of the probes, the attempts for each, and a slow block device if there is one."""

    directory: Path
    attempts: int
    slow_device: Path | None

    @cached_property
    def control(self) -> WakeupProbe:
        """The control of all probes in this place, run once."""
        return probe_pipe(self)


def probe_pipe(place: ProbePlace, *, touch: bool = False) -> WakeupProbe:
    """Truncate a file with a page pinned in a pipe; `touch` the page while the truncate waits.

    Raises:
        HelperError: the probe failed or did not finish.
    """

    def hold(address: int, waited_for: Callable[[], bool]) -> None:
        pipe = PagePipe()
        number = pipe.take(address, PAGE_SIZE)
        if number:
            raise OSError(number, os.strerror(number), "vmsplice")
        waits = waited_for()
        if touch and waits:
            # The truncate has unmapped the page here, and a load maps it again. A truncate that did not
            # wait has removed it from the file, and the load would raise SIGBUS.
            ctypes.string_at(address, 1)
        time.sleep(_HOLD_SECONDS)
        pipe.close()

    return _probe(place, hold)


def probe_transfer(place: ProbePlace) -> WakeupProbe | None:
    """Truncate a file while O_DIRECT writes a page of it to a slow device; None without a device.

    Raises:
        HelperError: the probe failed or did not finish.
    """
    device = place.slow_device
    if device is None:
        return None

    def hold(address: int, waited_for: Callable[[], bool]) -> None:
        descriptor = open_direct(device)
        with Transfers() as transfers:
            number = transfers.submit(IOCB_CMD_PWRITE, descriptor, address, PAGE_SIZE, DATA_OFFSET)
            if number:
                raise OSError(number, os.strerror(number), "io_submit")
            waited_for()
            while transfers.completed(_POLL_SECONDS) is None:
                pass
        os.close(descriptor)

    return _probe(place, hold)


def _beside_control(
    probe: Callable[[ProbePlace], WakeupProbe | None],
) -> Callable[[ProbePlace], WakeupAnswer | None]:
    def compare(place: ProbePlace) -> WakeupAnswer | None:
        control, made = place.control, probe(place)
        return None if made is None else WakeupAnswer(made, control)

    return compare


# The probe of each known issue of waits; it returns None if the place does not allow it.
PROBES: Final[dict[str, Callable[[ProbePlace], WakeupAnswer | None]]] = {
    O_DIRECT_LOST_WAKEUP.name: _beside_control(probe_transfer),
    REMAPPED_PAGE_STALL.name: _beside_control(partial(probe_pipe, touch=True)),
}


def _probe(place: ProbePlace, hold: _Hold) -> WakeupProbe:
    """Try until the truncate waits; on a loaded machine it may start after the release."""
    for _ in range(place.attempts):
        made = in_helper(lambda: asdict(_try(place.directory / "probe", hold)), _PROBE_SECONDS)
        probe = WakeupProbe(**made)
        if probe.waited:
            break
    return probe


def _try(path: Path, hold: _Hold) -> WakeupProbe:
    path.write_bytes(b"\xa5" * PAGE_SIZE)
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    mapping = Mapping(PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor)
    # Fork before the page is pinned: a copy of the pipe in the child would keep the pin.
    start, go = os.pipe()
    parent = os.getpid()
    pid = fork(
        lambda: _truncate_on_start(start, descriptor, parent), child_ends=[start], parent_ends=[go]
    )
    waited = False

    def waited_for() -> bool:
        nonlocal waited
        os.write(go, b"!")
        # The child sleeps in the truncate, or it has exited already.
        for _ in range(_POLLS_TO_WAKE):
            if waits_for_pages(look_at(pid)["stack"]):
                waited = True
                break
            if _has_ended(pid):
                break
            time.sleep(_POLL_SECONDS / 10)
        return waited

    try:
        hold(mapping.address, waited_for)
        woken = _ends(pid, _POLLS_TO_WAKE)
        task = {} if woken else look_at(pid)
        freed = unmapped = False
        if not woken:
            mapping.close()
            unmapped = _ends(pid, _POLLS_TO_WAKE)
        if not woken and not unmapped:
            os.kill(pid, signal.SIGUSR1)
            freed = _ends(pid, _POLLS_TO_FREE)
    finally:
        os.kill(pid, signal.SIGKILL)
        if _ends(pid, _POLLS_TO_WAKE):
            os.waitpid(pid, 0)
            path.unlink()
    return WakeupProbe(waited, woken, unmapped, freed, task)


def _truncate_on_start(start: int, descriptor: int, parent: int) -> None:
    serve_parent(parent)
    signal.signal(signal.SIGUSR1, lambda *_: None)
    os.read(start, 1)
    truncate(descriptor, 0)


def _ends(pid: int, polls: int) -> bool:
    for _ in range(polls):
        if _has_ended(pid):
            return True
        time.sleep(_POLL_SECONDS)
    return False


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
