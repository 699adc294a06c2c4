# SPDX-License-Identifier: GPL-2.0-only
"""What each block of a soak's ledger holds: the one place where its fields are named."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from soak.ledger.layout import Block, Field, Layout
from soak.model.cell import Cell
from soak.model.vocabulary import (
    ERRNOS,
    INVALIDATIONS,
    LONG_TERM_PINS,
    SHORT_PINS,
    DetectorName,
    Interface,
    Operation,
    ProbeResult,
    RegionKind,
    Role,
    RunState,
    VerdictWord,
    Violation,
    WorkerState,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SUPERVISOR: Final = "supervisor"
HOST: Final = "host"
WORKER: Final = "worker"
# A block of the faults that the soak makes itself: read by detectors, part of no account.
CANARY: Final = "canary"
NO_KNOWN_ISSUE: Final = "none"

# Upper bounds of the duration histogram, in nanoseconds: four to the octave, as a Prometheus native
# histogram of schema 2 has them, from 1 us to 128 s; one more bucket takes the rest.
BUCKETS_PER_OCTAVE: Final = 4
_FIRST_EXPONENT, _LAST_EXPONENT = -20, 7
BUCKET_BOUNDS_NS: Final = tuple(
    int(1e9 * 2 ** (step / BUCKETS_PER_OCTAVE))
    for step in range(_FIRST_EXPONENT * BUCKETS_PER_OCTAVE, _LAST_EXPONENT * BUCKETS_PER_OCTAVE + 1)
)

# The columns of a worker's counts.
COUNT_COLUMNS: Final = (
    "done",
    "interrupted",
    *(f"refused {name}" for name in ERRNOS),
    *(f"failed {name}" for name in ERRNOS),
)
DONE_COLUMN: Final = 0
INTERRUPTED_COLUMN: Final = 1
REFUSED_COLUMN: Final = 2
FAILED_COLUMN: Final = 2 + len(ERRNOS)

RECORDER_LENGTH: Final = 512
# One line of the flight recorder: written up to `length` before the operation, then `begun` is counted
# up; `result` (0 or an errno) and `end_ns` after it, then `ended`. What is in flight is therefore the
# newest line, when `begun` is ahead of `ended`; a worker killed at any moment leaves that readable.
RECORDER_COLUMNS: Final = (
    "choice",
    "cell",
    "start_ns",
    "region",
    "place",
    "offset",
    "length",
    "end_ns",
    "result",
)

HOLDS_LENGTH: Final = 256
# One short pin of a holder: written up to `take_before` before it is taken, then `holds_begun` is
# counted up. `take_after` and `release_before` bound the time in which the pages were pinned for
# certain, and stay 0 where that cannot be told; `release_after` is stored when they are not any more.
# `mapped` is 1 where the file stays mapped meanwhile, `certain` where the pages are the file's own,
# `repeated` where they are pinned, and so mapped, again and again.
HOLD_COLUMNS: Final = (
    "interface",
    "region",
    "place",
    "offset",
    "length",
    "mapped",
    "certain",
    "repeated",
    "take_before",
    "take_after",
    "release_before",
    "release_after",
)
# What became of the operations that wait for pins, in a row for each of them: those that stalled,
# those that are stalled now, the time that they spent so.
STALL_COLUMNS: Final = ("stalls", "stalled", "stalled_ns")

# Values of the pause word.
RUN_WORD: Final = 0
STOP_WORD: Final = (1 << 64) - 1

JOBS: Final = ("sweep", "sample", "counters", "canary", "summary", "recycle", "probe")
# What became of the faults that the soak made itself; `seen_ns` is when one was last seen.
CANARY_COLUMNS: Final = ("seen", "missed", "seen_ns")
# Their blocks: whose operation fails, who waits, and for whose pin.
CANARY_REFUSED, CANARY_INVALIDATOR, CANARY_HOLDER = (
    "canary-refused",
    "canary-invalidator",
    "canary-holder",
)
_TEXT_WORDS = 32


def leaks_field(region: str) -> str:
    """Return the name of the field with the leaks of a region."""
    return f"leaks {region}"


# What the leak detector measures a region against, so that another supervisor goes on where one was
# killed: the sum of counts when nobody used it, references that are there for a known reason, what one
# pin adds to the sum, pages that had been given back before, and what had leaked when the pages were
# last made new (by a recycle or a reboot).
ACCOUNT_COLUMNS: Final = ("sequence", "idle", "settled", "unit", "given_back", "explained", "unexplained")


def account_field(region: str) -> str:
    """Return the name of the field with the account of a region."""
    return f"account {region}"


def judged_field(worker: str) -> str:
    """Return the name of the field that says how much of a worker's counts was judged."""
    return f"judged {worker}"


def leak_columns(known_issues: Sequence[str]) -> tuple[str, ...]:
    """Name the words of a leak group: references now, ever, and predicted, for each explanation."""
    issues = (*known_issues, NO_KNOWN_ISSUE)
    return (
        "sequence",
        *(f"leaked {issue}" for issue in issues),
        *(f"leaked_total {issue}" for issue in issues),
        *(f"predicted {issue}" for issue in issues),
    )


def worker_block(
    name: str,
    role: Role,
    cells: Sequence[Cell],
    regions: Sequence[str],
    files: int,
    *,
    kind: str = WORKER,
) -> Block:
    """Describe the block of one worker, which only that worker writes.

    `files` counts the files of all fs-dax regions. Who plays a worker in a canary has another `kind`.
    """
    labels = tuple(cell.label for cell in cells)
    return _block(
        name,
        kind,
        {"role": role},
        Field("pid"),
        Field("incarnation"),
        Field("state", values=tuple(WorkerState)),
        Field("iterations"),
        Field("acknowledged"),
        # How often the files of this worker were given up and replaced, because it hung for good.
        Field("generation"),
        # The trial, counted from 1: whose pin is taken, whose pin is given back (holder), and which
        # is over (invalidator). They are how the two of a pair take turns.
        Field("trial_held"),
        Field("trial_released"),
        Field("trial_over"),
        # Files on which a pin was granted: nobody touches them again.
        Field("quarantine", (max(files, 1),)),
        Field("begun"),
        Field("ended"),
        # Pages whose pin was granted and given back, ever; the difference is what is held now.
        Field("pages_mapped", (tuple(regions),)),
        Field("pages_unmapped", (tuple(regions),)),
        Field("counts", (labels, COUNT_COLUMNS)),
        Field("duration_sum_ns", (labels,)),
        Field("duration_buckets", (labels, len(BUCKET_BOUNDS_NS) + 1)),
        Field("recorder", (RECORDER_LENGTH, RECORDER_COLUMNS)),
        *(_hold_fields() if role is Role.HOLDER else ()),
    )


def _hold_fields() -> tuple[Field, ...]:
    return (Field("holds_begun"), Field("holds", (HOLDS_LENGTH, HOLD_COLUMNS)))


def canary_blocks(regions: Sequence[str]) -> list[Block]:
    """Describe the blocks of canaries, which look to a detector as those of workers do."""
    hold = Cell(Operation.HOLD, RegionKind.FS_DAX, Interface.VMSPLICE)
    truncate = Cell(Operation.TRUNCATE_ZERO, RegionKind.FS_DAX, Interface.NONE)
    maps = [Cell(Operation.MAP, kind, over) for kind in RegionKind for over in LONG_TERM_PINS]
    return [
        worker_block(name, role, cells, regions, 0, kind=CANARY)
        for name, role, cells in (
            (CANARY_REFUSED, Role.MAPPER, [*maps, hold]),
            (CANARY_INVALIDATOR, Role.INVALIDATOR, [truncate]),
            (CANARY_HOLDER, Role.HOLDER, [hold]),
        )
    ]


def supervisor_block(
    regions: Sequence[str], worker_cells: Mapping[str, Sequence[Cell]], known_issues: Sequence[str]
) -> Block:
    """Describe the supervisor's block: its state, and what its detectors and jobs found."""
    issues = (*known_issues, NO_KNOWN_ISSUE)
    workers = tuple(worker_cells)
    return _block(
        SUPERVISOR,
        SUPERVISOR,
        {},
        Field("pid"),
        Field("state", values=tuple(RunState)),
        Field("kernel_release", (_TEXT_WORDS,), text=True),
        Field("boot_id", (_TEXT_WORDS,), text=True),
        # Of this supervisor, monotonic; those before it may have run in another boot.
        Field("started_ns"),
        Field("ends_ns"),
        Field("first_start_realtime_ns"),
        Field("starts"),
        Field("boots"),
        # The newest line of the journal when the ledger was last copied to disk.
        Field("saved_seq"),
        # How long the run has soaked, under all its supervisors.
        Field("soaked_ns"),
        Field("heartbeats"),
        Field("heartbeat_ns"),
        # Add this to a monotonic time of this ledger to get nanoseconds since the epoch.
        Field("realtime_offset_ns"),
        Field("pause"),
        Field("verdict", values=tuple(VerdictWord)),
        Field("violations", (tuple(Violation), issues)),
        # Those that are counted above when a probe has shown whether the issue explains them.
        Field("undecided", (tuple(known_issues), tuple(Violation))),
        # What the last probe of each has shown: one of these is 1, or none where it was not probed.
        Field("probes", (tuple(known_issues), tuple(ProbeResult))),
        Field("unexpected_pins", (tuple(RegionKind), tuple(Interface))),
        # Invalidations against which a pin was held, by operation and interface: what was judged.
        Field("trials", (tuple(INVALIDATIONS), SHORT_PINS)),
        Field("waits", (tuple(INVALIDATIONS), STALL_COLUMNS)),
        Field("wakeup_delay_sum_ns", (SHORT_PINS,)),
        Field("wakeup_delay_buckets", (SHORT_PINS, len(BUCKET_BOUNDS_NS) + 1)),
        # One group for each region: what its pages carry too much, by what explains it.
        *(Field(leaks_field(region), (leak_columns(known_issues),)) for region in regions),
        *(Field(account_field(region), (ACCOUNT_COLUMNS,)) for region in regions),
        # Pages of maps whose worker was killed before it could note how they ended.
        Field("uncertain", (tuple(regions),)),
        # How far the detectors have judged the workers' counts and rings: what was judged after
        # these were stored is judged again by the next supervisor, never left out.
        *(
            Field(judged_field(name), (tuple(cell.label for cell in cells), COUNT_COLUMNS))
            for name, cells in worker_cells.items()
        ),
        Field("read", (workers, ("ended", "holds"))),
        Field("headroom_ppm", (tuple(regions),)),
        Field("sweeps", (tuple(regions),)),
        Field("swept_pages", (tuple(regions),)),
        Field("sweep_duration_ns", (tuple(regions),)),
        Field("last_sweep_ns", (tuple(regions),)),
        Field("detectors", (tuple(DetectorName), ("success", "runs", "duration_ns"))),
        Field("canaries", (tuple(DetectorName), CANARY_COLUMNS)),
        Field("restarts", (workers,)),
        Field("wedged", (workers,)),
        Field("dead", (workers,)),
        Field("jobs", (JOBS, ("runs", "failures", "lateness_ns"))),
        Field("journal_errors"),
        Field("foll_pins_acquired"),
        Field("foll_pins_released"),
        Field("locked_bytes"),
        Field("pinned_bytes"),
        Field("tainted"),
        Field("coverage_cells"),
        Field("coverage_cells_required"),
    )


def host_block() -> Block:
    """Describe the block of a lab's host, which alone knows that the guest died."""
    return _block(
        HOST,
        HOST,
        {},
        Field("pid"),
        Field("state", values=tuple(RunState)),
        Field("accelerator", (_TEXT_WORDS,), text=True),
        Field("heartbeat_realtime_ns"),
        # When it last saw the guest's supervisor beat: the guest's own clock may be wrong.
        Field("guest_heartbeat_realtime_ns"),
        Field("boots"),
        Field("verdict", values=tuple(VerdictWord)),
        Field("lost_machines"),
        Field("journal_lines"),
        Field("journal_errors"),
    )


def soak_layout(
    run: dict[str, Any],
    workers: Sequence[tuple[str, Role, Sequence[Cell]]],
    known_issues: Sequence[str],
    *,
    lab: bool,
) -> Layout:
    """Describe the ledger of a run; `run["regions"]` has name, kind, size and files of each."""
    regions = [region["name"] for region in run["regions"]]
    files = sum(region["files"] for region in run["regions"])
    cells = {name: cells for name, _, cells in workers}
    blocks = [supervisor_block(regions, cells, known_issues)]
    if lab:
        blocks.append(host_block())
    blocks += [worker_block(name, role, cells, regions, files) for name, role, cells in workers]
    blocks += canary_blocks(regions)
    return Layout.of(blocks, {**run, "bucket_bounds_ns": list(BUCKET_BOUNDS_NS)})


def _block(name: str, kind: str, labels: dict[str, str], *fields: Field) -> Block:
    return Block(name, kind, {field.name: field for field in fields}, labels)
