# SPDX-License-Identifier: GPL-2.0-only
"""The kinds of canary: one fault per detector, and the deadline for its detection.

A canary advances by one step at each beat and does not block the supervisor. The exception is a step that
changes page references: the supervisor waits for it, so that no sweep runs in between.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeVar

from soak.detectors.canaries.steps import extra_pins, lying_holder, refused_hold, refused_map, truncater
from soak.detectors.tasks import look_at
from soak.ledger.schema import CANARY_HOLDER, CANARY_INVALIDATOR, CANARY_REFUSED
from soak.model.vocabulary import DetectorName, Violation
from soak.process.helper import HelperError
from soak.process.step_helper import StepHelper
from soak.regions import DeviceDaxRegion, FsDaxRegion
from soak.workload.pool import end_hold

if TYPE_CHECKING:
    from collections.abc import Iterator

    from soak.detectors.base import Finding
    from soak.detectors.stalls.judge import Clock
    from soak.ledger.writer import BlockWriter
    from soak.model.kernels import Release
    from soak.regions import Region
    from soak.workload.pins.long_term import LongTermInterface

_T = TypeVar("_T")
Differences = Callable[[], Mapping[str, int] | None]
Steps = Generator[None, None, None]

# Deadlines of a helper to get ready and of a detector to report, in soak time: a machine that was stopped
# causes neither a failed nor a missed canary.
MAKING_SECONDS: Final = 60.0
SEEING_SECONDS: Final = 10.0
# Deadline of a step that changes page references, for which the supervisor waits.
_STEP_SECONDS: Final = 5.0
# A truncate that is still in flight after this time waits for the pin.
_WAITING_SECONDS: Final = 0.3
# Attempts to count the pages for one canary, in case workers die meanwhile.
_MOST_COUNTS: Final = 3


class WedgedHelperError(HelperError):
    """A helper hangs in the kernel and cannot be killed; do not start another."""


@dataclass(frozen=True)
class Result:
    """One injected fault (`made`), and whether its detector saw it."""

    made: str
    seen: bool
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Attempt:
    """A canary under way, with the findings of its detector and the results so far."""

    number: int
    found: list[Finding] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)


class _Patience:
    """Waits in soak time, a beat at a time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def wait(self, seconds: float, ready: Callable[[], _T | None]) -> Generator[None, None, _T | None]:
        """Yield until `ready` returns a value, and return it; None at the deadline."""
        begun = time.monotonic_ns()
        while (value := ready()) is None:
            if self._clock.between(begun, time.monotonic_ns()) > int(seconds * 1e9):
                return None
            yield
        return value

    def answer(self, helper: StepHelper) -> Generator[None, None, Any]:
        """Run one step of a helper without blocking, and return the value that it yields.

        Raises:
            HelperError: the step failed or missed its deadline.
        """
        helper.start_step()
        value = yield from self.wait(MAKING_SECONDS, helper.answer)
        if value is None:
            raise HelperError(f"a helper did not complete its step within {MAKING_SECONDS:g} s")
        return value


class RefusalCanary:
    """An operation that fails with an unexpected errno."""

    detector: Final = DetectorName.REFUSALS
    _KINDS: Final = frozenset({Violation.WRONG_ERRNO, Violation.UNEXPECTED_REFUSAL})

    def __init__(
        self, block: BlockWriter, clock: Clock, bodies: Mapping[str, Callable[[], Iterator[str]]]
    ) -> None:
        """`bodies` has the helper's steps for each operation, by a description of the operation."""
        self.blocks = (block,)
        self._patience = _Patience(clock)
        self._bodies = bodies

    def go(self, attempt: Attempt) -> Steps:
        """Inject each fault and wait for the detector, one step per beat.

        Raises:
            HelperError: a fault could not be injected.
        """
        for made, body in self._bodies.items():
            attempt.found.clear()
            with _helper(body) as helper:
                errno = yield from self._patience.answer(helper)
            seen = yield from self._patience.wait(SEEING_SECONDS, lambda: _first(attempt, self._KINDS))
            attempt.results.append(Result(f"{made} ended with {errno}", seen is not None))

    def asks_for_rest(self) -> bool:
        return False

    def at_rest(self, differences: Differences) -> None:
        """Do nothing: this canary does not depend on the workers."""


class StallCanary:
    """A truncate that waits for a pin which the ledger records as released."""

    detector: Final = DetectorName.STALLS
    _KINDS: Final = frozenset({Violation.STALL, Violation.LATE_WAKEUP})

    def __init__(
        self,
        holder: BlockWriter,
        invalidator: BlockWriter,
        clock: Clock,
        region: FsDaxRegion,
        release: Release,
        *,
        threshold: float,
    ) -> None:
        """`threshold` is that of a stall, in seconds."""
        self.blocks = (invalidator, holder)
        self._holder, self._invalidator = holder, invalidator
        self._patience = _Patience(clock)
        self._region, self._release = region, release
        self._seeing = threshold + SEEING_SECONDS
        # A supervisor that died may have left a canary unfinished.
        self._settle()

    def go(self, attempt: Attempt) -> Steps:
        """Inject the fault, wait for the detector and undo the fault, one step per beat.

        Raises:
            HelperError: the fault could not be injected or undone.
        """
        name, patience = f"stall-{attempt.number}", self._patience
        with ExitStack() as stack:
            # Runs last, after both helpers have ended.
            stack.callback(self._settle)
            holder = stack.enter_context(_helper(lambda: lying_holder(self._holder, self._region, name)))
            waiter = stack.enter_context(
                _helper(lambda: truncater(self._invalidator, self._release, self._region, name))
            )
            # The detector checks whether this process sleeps.
            self._invalidator.set("pid", waiter.pid)
            yield from patience.answer(holder)
            yield from patience.answer(waiter)
            holder.step(_STEP_SECONDS)
            waiter.start_step()
            ended = yield from patience.wait(_WAITING_SECONDS, waiter.answer)
            if ended is not None:
                raise HelperError(f"the truncate did not wait for the pin: {ended}")
            task = look_at(waiter.pid)
            yield from patience.answer(holder)
            seen = yield from patience.wait(self._seeing, lambda: _first(attempt, self._KINDS))
            evidence = {"task": task, "found": dict(seen.evidence)} if seen else {"task": task}
            made = "truncate-zero of fs-dax waited for a pin recorded as released"
            attempt.results.append(Result(made, seen is not None, evidence))
            holder.step(_STEP_SECONDS)
            if (yield from patience.wait(self._seeing, waiter.answer)) is None:
                raise HelperError("the truncate did not wake up after the pin was released")
            yield from patience.answer(holder)

    def asks_for_rest(self) -> bool:
        return False

    def at_rest(self, differences: Differences) -> None:
        """Do nothing: sweeps account for the pin of this canary."""

    def _settle(self) -> None:
        """Close the ledger entries of helpers that were killed in the middle of a step."""
        self._invalidator.set("ended", self._invalidator.get("begun"))
        end_hold(self._holder)
        mapped, unmapped = self._holder.view("pages_mapped"), self._holder.view("pages_unmapped")
        for position, pages in enumerate(mapped):
            unmapped[position] = pages


class LeakCanary:
    """One pinned page of each region, in no account."""

    detector: Final = DetectorName.LEAKS
    blocks: tuple[BlockWriter, ...] = ()

    def __init__(self, clock: Clock, regions: Sequence[DeviceDaxRegion | FsDaxRegion]) -> None:
        self._patience = _Patience(clock)
        self._regions = regions
        self._ready: StepHelper | None = None
        self._asked = False
        # The differences of each region without the pin and with it; empty if a worker died meanwhile.
        self._measured: dict[str, tuple[int, int]] | None = None
        self._error: HelperError | None = None

    def go(self, attempt: Attempt) -> Steps:
        """Get ready and count the pages; start over if a worker died meanwhile.

        Raises:
            HelperError: the fault could not be injected or undone.
        """
        for turn in range(_MOST_COUNTS):
            yield from self._count(attempt, f"leak-{attempt.number}-{turn}")
            if self._measured:
                return
        raise HelperError(f"a worker died during each of {_MOST_COUNTS} attempts to count the pages")

    def _count(self, attempt: Attempt, name: str) -> Steps:
        self._measured = self._error = None
        with _helper(lambda: extra_pins(self._regions, name)) as helper:
            yield from self._patience.answer(helper)
            self._ready, self._asked = helper, False
            try:
                while self._measured is None and self._error is None:
                    yield
            finally:
                self._ready = None
            if self._error is not None:
                raise self._error
            for region, (before, with_pin) in (self._measured or {}).items():
                attempt.results.append(
                    Result(
                        f"one page of region {region} was pinned outside all accounts",
                        with_pin - before == 1,
                        {"region": region, "difference": [before, with_pin]},
                    )
                )
            yield from self._patience.answer(helper)

    def asks_for_rest(self) -> bool:
        """Return True once when ready. If the workers do not come to rest, the next sweep measures."""
        asks = self._ready is not None and not self._asked
        self._asked = self._asked or asks
        return asks

    def at_rest(self, differences: Differences) -> None:
        """Measure without the pin and with it, while no worker takes or releases pins."""
        helper = self._ready
        if helper is None or self._measured is not None or self._error is not None:
            return
        try:
            before = differences()
            helper.step(_STEP_SECONDS)
            with_pin = differences()
            helper.step(_STEP_SECONDS)
        except HelperError as error:
            self._error = error
            return
        self._measured = {}
        if before is not None and with_pin is not None:
            names = [region.name for region in self._regions]
            self._measured = {name: (before.get(name, 0), with_pin.get(name, 0)) for name in names}


Canary = RefusalCanary | StallCanary | LeakCanary


def make_canaries(
    regions: Sequence[Region],
    block: Callable[[str], BlockWriter],
    clock: Clock,
    release: Release,
    *,
    long_term: Sequence[tuple[LongTermInterface, str]],
    threshold: float,
    swept: Sequence[str],
) -> list[Canary]:
    """Return the canaries that these regions support.

    `block` returns a block of the ledger by name; `long_term` pairs each interface with a PCI function
    that no worker uses; `swept` names the regions with readable reference counts.
    """
    canaries: list[Canary] = []
    files = next((region for region in regions if isinstance(region, FsDaxRegion)), None)
    refused = block(CANARY_REFUSED)
    target = files or next(iter(regions), None)
    bodies: dict[str, Callable[[], Iterator[str]]] = {}
    if target is not None:
        bodies = {
            f"map of {target.kind} over {kind.interface}": partial(
                refused_map, refused, release, target, kind, function
            )
            for kind, function in long_term
        }
    if not bodies and files is not None:
        bodies = {"hold of fs-dax over vmsplice": partial(refused_hold, refused, release)}
    if bodies:
        canaries.append(RefusalCanary(refused, clock, bodies))
    if files is not None:
        canaries.append(
            StallCanary(
                block(CANARY_HOLDER),
                block(CANARY_INVALIDATOR),
                clock,
                files,
                release,
                threshold=threshold,
            )
        )
    counted = [
        region
        for region in regions
        if isinstance(region, (DeviceDaxRegion, FsDaxRegion)) and region.name in swept
    ]
    if counted:
        canaries.append(LeakCanary(clock, counted))
    return canaries


@contextmanager
def _helper(body: Callable[[], Iterator[Any]]) -> Iterator[StepHelper]:
    """Start a helper, and end it on every path.

    Raises:
        WedgedHelperError: the helper cannot be killed.
    """
    helper = StepHelper(body)
    try:
        yield helper
    finally:
        if not helper.close():
            raise WedgedHelperError("a helper hangs in the kernel and cannot be killed")


def _first(attempt: Attempt, kinds: frozenset[Violation]) -> Finding | None:
    return next((finding for finding in attempt.found if finding.kind in kinds), None)
