# SPDX-License-Identifier: GPL-2.0-only
"""The schema of a soak's ledger: the blocks and their fields."""

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
# A canary's block: detectors read it, totals leave it out.
CANARY: Final = "canary"
NO_KNOWN_ISSUE: Final = "none"

# Upper bounds of the duration histogram, in nanoseconds: four to the octave, as a Prometheus native
# histogram of schema 2 has them, from 1 us to 128 s; one more bucket counts all longer durations.
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
# One line of the flight recorder. Before an operation a worker stores the columns up to `length` and
# increments `begun`; after it, `result` (0 or an errno) and `end_ns`, and increments `ended`. While
# `begun` is ahead of `ended`, the newest line is the operation in flight, also if the worker was killed.
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
# One short pin of a holder. Before the pin a holder stores the columns up to `take_before` and increments
# `holds_begun`. The pages were certainly pinned from `take_after` to `release_before`, which stay 0 if
# unknown; after the release it stores `release_after`. `mapped` is 1 if the file stays mapped meanwhile,
# `certain` if the pages belong to the file, `repeated` if the holder pins, and so maps, them repeatedly.
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
# Of each invalidation: the stalls in total, the operations stalled now, and the total time of stalls.
STALL_COLUMNS: Final = ("stalls", "stalled", "stalled_ns")

# Values of the pause word.
RUN_WORD: Final = 0
STOP_WORD: Final = (1 << 64) - 1

JOBS: Final = ("sweep", "sample", "counters", "canary", "summary", "recycle", "probe")
# The results of canaries; `seen_ns` is the monotonic time of the last one seen.
CANARY_COLUMNS: Final = ("seen", "missed", "seen_ns")
# The blocks of canaries: of the failing operation, of the waiting one, and of the pin it waits for.
CANARY_REFUSED, CANARY_INVALIDATOR, CANARY_HOLDER = (
    "canary-refused",
    "canary-invalidator",
    "canary-holder",
)
_TEXT_WORDS = 32


def leaks_field(region: str) -> str:
    """Return the name of the field with the leaks of a region."""
    return f"leaks {region}"


# The leak detector's baseline of a region, with which another supervisor continues. See `Account` in
# `soak.detectors.leaks.measure`; a recycle or a reboot reinitialises the pages.
ACCOUNT_COLUMNS: Final = ("sequence", "idle", "settled", "unit", "given_back", "explained", "unexplained")


def account_field(region: str) -> str:
    """Return the name of the field with the account of a region."""
    return f"account {region}"


def judged_field(worker: str) -> str:
    """Return the name of the field with the judged counts of a worker."""
    return f"judged {worker}"


def leak_columns(known_issues: Sequence[str]) -> tuple[str, ...]:
    """Return the columns of a leak group: references now, in total and predicted, by known issue."""
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
    """Describe the block of one worker.

    `files` is the number of files in all fs-dax regions. A canary's block has another `kind`.
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
        # How often this worker's files were abandoned and replaced, because the worker was wedged.
        Field("generation"),
        # The last trial, counted from 1, in which the holder has taken its pin, the holder has released
        # it, and the invalidator has ended. The two workers of a pair synchronise through these words.
        Field("trial_held"),
        Field("trial_released"),
        Field("trial_over"),
        # Files with an unexpectedly granted pin: no worker uses them again.
        Field("quarantine", (max(files, 1),)),
        Field("begun"),
        Field("ended"),
        # Total pages pinned and unpinned; the difference is pinned now.
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
    """Describe the blocks of canaries; detectors read them like those of workers."""
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
    """Describe the supervisor's block: its state, and the findings of its detectors and jobs."""
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
        # Monotonic start of this supervisor; earlier ones may have run in another boot.
        Field("started_ns"),
        Field("ends_ns"),
        Field("first_start_realtime_ns"),
        Field("starts"),
        Field("boots"),
        # The number of the newest journal line when the ledger was last copied to disk.
        Field("saved_seq"),
        # Time the run has soaked under all its supervisors, without pauses.
        Field("soaked_ns"),
        Field("heartbeats"),
        Field("heartbeat_ns"),
        # The wall clock minus the monotonic clock, in nanoseconds.
        Field("realtime_offset_ns"),
        Field("pause"),
        Field("verdict", values=tuple(VerdictWord)),
        Field("violations", (tuple(Violation), issues)),
        # Violations to be counted above once a probe shows whether the issue explains them.
        Field("undecided", (tuple(known_issues), tuple(Violation))),
        # The result of the last probe of each issue: 1 for that result, all 0 before the first probe.
        Field("probes", (tuple(known_issues), tuple(ProbeResult))),
        Field("unexpected_pins", (tuple(RegionKind), tuple(Interface))),
        # Judged trials, by invalidation and by interface of the pin.
        Field("trials", (tuple(INVALIDATIONS), SHORT_PINS)),
        Field("waits", (tuple(INVALIDATIONS), STALL_COLUMNS)),
        Field("wakeup_delay_sum_ns", (SHORT_PINS,)),
        Field("wakeup_delay_buckets", (SHORT_PINS, len(BUCKET_BOUNDS_NS) + 1)),
        # One group for each region: leaked references by known issue.
        *(Field(leaks_field(region), (leak_columns(known_issues),)) for region in regions),
        *(Field(account_field(region), (ACCOUNT_COLUMNS,)) for region in regions),
        # Pages of maps whose worker was killed before it recorded the result.
        Field("uncertain", (tuple(regions),)),
        # How far the detectors have judged the workers' counts and rings. The next supervisor continues
        # from here: it may judge an operation twice, but skips none.
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
    """Describe the block of the lab's host, which outlives the guest."""
    return _block(
        HOST,
        HOST,
        {},
        Field("pid"),
        Field("state", values=tuple(RunState)),
        Field("accelerator", (_TEXT_WORDS,), text=True),
        Field("heartbeat_realtime_ns"),
        # The last heartbeat of the guest's supervisor by the host's clock: the guest's may be wrong.
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
    """Describe the ledger of a run; `run["regions"]` has name, kind, size and files of each region."""
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
