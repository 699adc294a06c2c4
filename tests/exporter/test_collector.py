# SPDX-License-Identifier: GPL-2.0-only
"""What the ledger says is what the collector exports."""

from __future__ import annotations

import os
import tempfile
from bisect import bisect_left
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.exposition import generate_latest

from exporter.catalogue import EXPOSED_BOUNDS
from exporter.collector import LedgerCollector
from exporter.groups import GROUPS
from soak.lab.request import lab_config
from soak.ledger.layout import WORD
from soak.ledger.reader import LedgerReader
from soak.ledger.schema import BUCKET_BOUNDS_NS, INTERRUPTED_COLUMN, RECORDER_COLUMNS, leaks_field
from soak.ledger.view import LedgerView
from soak.ledger.writer import Ledger
from soak.model.vocabulary import INVALIDATIONS, SHORT_PINS, Interface, RunState, VerdictWord, WorkerState
from soak.workload.plan import make_plan
from tests.exporter.support import (
    KNOWN_ISSUE,
    MAP_FS_DAX,
    OFFSET_NS,
    RUN,
    Samples,
    make_ledger,
    parse,
    start,
    value,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from soak.ledger.writer import BlockWriter

SECOND = 1_000_000_000
MAPPING = {"region": "fs-dax", "interface": "vfio-type1"}
deterministic = settings(derandomize=True, database=None, deadline=None, max_examples=60)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return make_ledger(tmp_path / "ledger")


@pytest.fixture
def supervisor(ledger: Ledger) -> BlockWriter:
    return ledger.block("supervisor")


@pytest.fixture
def mapper(ledger: Ledger) -> BlockWriter:
    return ledger.block("mapper-0")


def read(path: Path, now_ns: int = OFFSET_NS + 101 * SECOND) -> Samples:
    with LedgerReader.open(path) as reader:
        return parse(generate_latest(LedgerCollector(lambda: reader, lambda: now_ns)).decode())


def with_prefix(samples: Samples, name: str) -> dict[frozenset[tuple[str, str]], float]:
    return {labels: found for (full, labels), found in samples.items() if full == name}


@pytest.mark.usefixtures("ledger")
def test_a_new_ledger_exports_zeros_and_stays_small(tmp_path: Path) -> None:
    samples = read(tmp_path / "ledger")
    assert value(samples, "up") == 1
    for outcome in ("done", "refused", "failed", "interrupted"):
        labels = {"operation": "punch-hole", "region": "fs-dax", "interface": "none"}
        assert value(samples, "operations_total", **labels, outcome=outcome) == 0
    for expected in ("true", "false"):
        labels = {**MAPPING, "errno": "EOPNOTSUPP", "expected": expected}
        assert value(samples, "pin_refusals_total", **labels) == 0
    assert value(samples, "violations_total", kind="leak", known_issue="none") == 0
    assert value(samples, "workers", role="mapper", state="absent") == 2
    assert value(samples, "unexpected_pins_total", **MAPPING) == 0
    assert value(samples, "operations_in_flight", operation="map", region="fs-dax") == 0
    for wait in INVALIDATIONS:
        for name in ("stalls_total", "stall_seconds_total", "stalled_operations"):
            assert value(samples, name, operation=wait, region="fs-dax") == 0
    assert all(text for _, labels in samples for _, text in labels)


@pytest.mark.parametrize("filled", [0, 1])
def test_default_lab_run_exports_below_1000_series(tmp_path: Path, filled: int) -> None:
    layout = make_plan(lab_config(None)).layout({"run_id": "1", "filesystem": "ext4"}, lab=True)
    ledger = Ledger.create(tmp_path / "ledger", layout)
    start(ledger.block("supervisor"))
    # What joins when it occurs has occurred everywhere, the second time.
    for block in layout.blocks.values():
        for name in {"counts", "unexpected_pins", "violations"} & set(block.fields):
            words = ledger.block(block.name).view(name)
            for position in range(len(words)):
                words[position] = filled
    assert len(read(tmp_path / "ledger")) < 1000
    with LedgerReader.open(tmp_path / "ledger") as reader:
        assert all(group(LedgerView(reader, OFFSET_NS)) for group in GROUPS.values())


def test_operations_are_summed_over_workers_by_outcome(tmp_path: Path, ledger: Ledger) -> None:
    for name, factor in (("mapper-0", 1), ("mapper-1", 10)):
        block = ledger.block(name)
        row = block.index("counts", MAP_FS_DAX.label, "done")[0]
        block.set_at("counts", 2 * factor, MAP_FS_DAX.label, "done")
        block.set_at("counts", 3 * factor, MAP_FS_DAX.label, "refused EOPNOTSUPP")
        block.set_at("counts", 4 * factor, MAP_FS_DAX.label, "failed EFAULT")
        block.set("counts", 5 * factor, row, INTERRUPTED_COLUMN)
        block.set_at("counts", 6 * factor, "unmap fs-dax vfio-type1", "failed EINVAL")
    samples = read(tmp_path / "ledger")
    cell = {"operation": "map", **MAPPING}
    for outcome, count in (("done", 22), ("refused", 33), ("failed", 44), ("interrupted", 55)):
        assert value(samples, "operations_total", **cell, outcome=outcome) == count
    refusals = with_prefix(samples, "dax_soak_pin_refusals_total")
    assert {
        (labels["errno"], labels["expected"]): count
        for labels, count in ((dict(key), count) for key, count in refusals.items())
        if labels["region"] == "fs-dax"
    } == {("EOPNOTSUPP", "true"): 33, ("EOPNOTSUPP", "false"): 0, ("EFAULT", "false"): 44}
    assert {dict(labels)["interface"] for labels in refusals} == {"vfio-type1"}


@pytest.fixture(scope="module")
def shared_ledger() -> Iterator[tuple[Path, Ledger]]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "ledger"
        yield path, make_ledger(path)


@deterministic
@given(durations=st.lists(st.integers(0, 300 * SECOND) | st.sampled_from(BUCKET_BOUNDS_NS)))
def test_bucket_counts_durations_up_to_its_bound(
    shared_ledger: tuple[Path, Ledger], durations: list[int]
) -> None:
    path, ledger = shared_ledger
    block = ledger.block("mapper-1")
    block.clear()
    row = block.index("counts", MAP_FS_DAX.label, "done")[0]
    for duration in durations:
        block.add("duration_buckets", 1, row, bisect_left(BUCKET_BOUNDS_NS, duration))
        block.add("duration_sum_ns", duration, row)
    samples, cell = read(path), {"operation": "map", **MAPPING}
    for bound in EXPOSED_BOUNDS:
        below = sum(duration <= bound * SECOND for duration in durations)
        found = value(samples, "operation_duration_seconds_bucket", **cell, le=str(bound))
        assert found == below
    everything = value(samples, "operation_duration_seconds_bucket", **cell, le="+Inf")
    assert everything == len(durations)
    assert value(samples, "operation_duration_seconds_count", **cell) == len(durations)
    seconds = value(samples, "operation_duration_seconds_sum", **cell)
    assert seconds == pytest.approx(sum(durations) / SECOND)


def begin(block: BlockWriter, number: int, start_ns: int, end_ns: int = 0) -> None:
    row = (number - 1) % block.block.fields["recorder"].shape[0]
    cell = block.index("counts", MAP_FS_DAX.label, "done")[0]
    for column, word in (("cell", cell), ("start_ns", start_ns), ("end_ns", end_ns)):
        block.set("recorder", word, row, RECORDER_COLUMNS.index(column))
    block.set("begun", number)
    block.set("ended", number - 1)


def test_operations_in_flight_have_not_ended(tmp_path: Path, ledger: Ledger) -> None:
    begin(ledger.block("mapper-0"), 513, 90 * SECOND)  # the recorder has gone round once
    begin(ledger.block("mapper-1"), 3, 80 * SECOND)
    where = {"operation": "map", "region": "fs-dax"}
    samples = read(tmp_path / "ledger")
    assert value(samples, "operations_in_flight", **where) == 2
    oldest = value(samples, "oldest_operation_start_timestamp_seconds", **where)
    assert oldest == OFFSET_NS / SECOND + 80
    # One has ended and is not counted yet; the other belongs to a worker that was killed.
    begin(ledger.block("mapper-1"), 3, 80 * SECOND, end_ns=81 * SECOND)
    ledger.block("supervisor").set_at("dead", 1, "mapper-0")
    samples = read(tmp_path / "ledger")
    assert value(samples, "operations_in_flight", **where) == 0
    assert value(samples, "oldest_operation_start_timestamp_seconds", **where) == 0


def test_pins_are_summed_by_region_kind(tmp_path: Path, ledger: Ledger) -> None:
    for name in ("mapper-0", "mapper-1"):
        block = ledger.block(name)
        block.set_at("pages_mapped", 30, "pmem-a")
        block.set_at("pages_mapped", 7, "pmem-b")
        block.set_at("pages_unmapped", 10, "pmem-a")
    ledger.block("supervisor").set_at("unexpected_pins", 5, MAPPING["region"], "vfio-type1")
    holder = ledger.block("holder-0")  # its pins last for a moment, and are no mapping
    holder.set_at("counts", 9, "hold fs-dax vmsplice", "done")
    samples = read(tmp_path / "ledger")
    assert value(samples, "mapped_bytes", **MAPPING) == 2 * (20 + 7) * 4096
    assert value(samples, "mapped_bytes", **{**MAPPING, "region": "device-dax"}) == 0
    assert value(samples, "unexpected_pins_total", **MAPPING) == 5
    assert {
        dict(labels)["interface"] for labels in with_prefix(samples, "dax_soak_unexpected_pins_total")
    } == {"vfio-type1"}


def test_unexpected_short_pin_is_exported_once_counted(tmp_path: Path, supervisor: BlockWriter) -> None:
    supervisor.set_at("unexpected_pins", 2, "fs-dax", "o-direct")
    odd = {"region": "fs-dax", "interface": "o-direct"}
    assert value(read(tmp_path / "ledger"), "unexpected_pins_total", **odd) == 2


def test_stalls_are_labelled_by_waiting_operation(tmp_path: Path, supervisor: BlockWriter) -> None:
    supervisor.set_at("waits", 3, "punch-hole", "stalls")
    supervisor.set_at("waits", 1, "punch-hole", "stalled")
    supervisor.set_at("waits", 7 * SECOND // 2, "punch-hole", "stalled_ns")
    samples = read(tmp_path / "ledger")
    where = {"operation": "punch-hole", "region": "fs-dax"}
    assert value(samples, "stalls_total", **where) == 3
    assert value(samples, "stalled_operations", **where) == 1
    assert value(samples, "stall_seconds_total", **where) == 3.5
    assert value(samples, "stalls_total", **{**where, "operation": "unlink"}) == 0


@deterministic
@given(delays=st.lists(st.tuples(st.sampled_from(SHORT_PINS), st.integers(0, 300 * SECOND)), max_size=20))
def test_wakeup_delays_are_labelled_by_interface(
    shared_ledger: tuple[Path, Ledger], delays: list[tuple[Interface, int]]
) -> None:
    path, ledger = shared_ledger
    supervisor = ledger.block("supervisor")
    supervisor.clear()
    start(supervisor)
    for interface, delay in delays:
        row = SHORT_PINS.index(interface)
        supervisor.add("wakeup_delay_buckets", 1, row, bisect_left(BUCKET_BOUNDS_NS, delay))
        supervisor.add("wakeup_delay_sum_ns", delay, row)
    samples = read(path)
    for interface in SHORT_PINS:
        where = {"region": "fs-dax", "interface": interface}
        own = [delay for pin, delay in delays if pin == interface]
        for bound in (*EXPOSED_BOUNDS, float("inf")):
            below = sum(delay <= bound * SECOND for delay in own)
            le = "+Inf" if bound == float("inf") else str(bound)
            assert value(samples, "wakeup_delay_seconds_bucket", **where, le=le) == below
        seconds = value(samples, "wakeup_delay_seconds_sum", **where)
        assert seconds == pytest.approx(sum(own) / SECOND)


def set_leaks(supervisor: BlockWriter, region: str, **numbers: int) -> None:
    """Write a leak group, as `leaked_none=3`."""
    _, *columns = supervisor.block.fields[leaks_field(region)].axes[0]  # type: ignore[misc]  # names
    by_key = {column.replace(" ", "_").replace("-", "_"): column for column in columns}
    wanted = {by_key[key]: number for key, number in numbers.items()}
    supervisor.set_group(leaks_field(region), [wanted.get(column, 0) for column in columns])


def test_leaks_and_sweeps_are_labelled_by_region_kind(tmp_path: Path, supervisor: BlockWriter) -> None:
    set_leaks(supervisor, "pmem-a", leaked_none=3, leaked_total_none=9, predicted_zero_page_leak=4)
    set_leaks(supervisor, "pmem-b", leaked_none=2, leaked_zero_page_leak=1)
    for field, first, second in (
        ("headroom_ppm", 900_000, 250_000),
        ("swept_pages", 100, 11),
        ("sweep_duration_ns", SECOND, SECOND // 2),
        ("last_sweep_ns", 70 * SECOND, 60 * SECOND),
    ):
        supervisor.set_at(field, first, "pmem-a")
        supervisor.set_at(field, second, "pmem-b")
    supervisor.set_at("last_sweep_ns", 50 * SECOND, "dax0.0")
    samples = read(tmp_path / "ledger")
    own, known = ({"region": "fs-dax", "known_issue": name} for name in ("none", KNOWN_ISSUE))
    assert value(samples, "leaked_page_references", **own) == 5
    assert value(samples, "leaked_page_references", **known) == 1
    assert value(samples, "page_references_leaked_total", **own) == 9
    assert value(samples, "predicted_leaked_page_references", **known) == 4
    assert value(samples, "page_reference_headroom_ratio", region="fs-dax") == 0.25
    assert value(samples, "pages_swept_total", region="fs-dax") == 111
    assert value(samples, "page_sweep_duration_seconds", region="fs-dax") == 1.5
    for kind, seconds in (("fs-dax", 60), ("device-dax", 50)):
        swept = value(samples, "last_page_sweep_timestamp_seconds", region=kind)
        assert swept == OFFSET_NS / SECOND + seconds
    assert value(samples, "last_page_sweep_timestamp_seconds", region="anonymous") == 0


def test_oldest_sweep_ignores_unswept_regions(tmp_path: Path, supervisor: BlockWriter) -> None:
    supervisor.set_at("last_sweep_ns", 70 * SECOND, "pmem-b")
    swept = value(read(tmp_path / "ledger"), "last_page_sweep_timestamp_seconds", region="fs-dax")
    assert swept == OFFSET_NS / SECOND + 70


def test_torn_leak_group_is_not_exported(tmp_path: Path, supervisor: BlockWriter) -> None:
    supervisor.view(leaks_field("pmem-a"))[0] += 1
    samples = read(tmp_path / "ledger")
    assert value(samples, "up") == 0
    assert not with_prefix(samples, "dax_soak_leaked_page_references")
    assert value(samples, "run_active") == 1
    assert value(samples, "workers", role="mapper", state="absent") == 2


def test_supervisor_fields_are_exported(tmp_path: Path, ledger: Ledger) -> None:
    supervisor, host = ledger.block("supervisor"), ledger.block("host")
    fields = {
        "foll_pins_acquired": "foll_pins_acquired_total",
        "foll_pins_released": "foll_pins_released_total",
        "locked_bytes": "locked_memory_bytes",
        "pinned_bytes": "foll_pinned_memory_bytes",
        "tainted": "kernel_tainted",
        "coverage_cells": "coverage_cells",
        "coverage_cells_required": "coverage_cells_required",
    }
    for number, field in enumerate(fields, start=1):
        supervisor.set(field, number)
    supervisor.set("journal_errors", 2)
    host.set("journal_errors", 3)
    supervisor.set_at("violations", 4, "lost-machine", "none")
    supervisor.set_at("violations", 6, "leak", KNOWN_ISSUE)
    host.set("lost_machines", 1)
    supervisor.set_at("detectors", 1, "leaks", "success")
    supervisor.set_at("detectors", SECOND // 4, "leaks", "duration_ns")
    supervisor.set_at("jobs", 3 * SECOND, "sweep", "lateness_ns")
    supervisor.set_at("canaries", 8, "leaks", "seen")
    supervisor.set_at("canaries", 9, "leaks", "missed")
    supervisor.set_at("canaries", 60 * SECOND, "leaks", "seen_ns")
    samples = read(tmp_path / "ledger")
    for number, name in enumerate(fields.values(), start=1):
        assert value(samples, name) == number
    assert value(samples, "journal_write_errors_total") == 5
    assert value(samples, "violations_total", kind="lost-machine", known_issue="none") == 5
    assert value(samples, "violations_total", kind="leak", known_issue=KNOWN_ISSUE) == 6
    assert value(samples, "detector_success", detector="leaks") == 1
    assert value(samples, "detector_success", detector="refusals") == 0
    assert value(samples, "detector_duration_seconds", detector="leaks") == 0.25
    assert value(samples, "job_lateness_seconds", job="sweep") == 3
    assert value(samples, "canaries_total", detector="leaks", result="seen") == 8
    assert value(samples, "canaries_total", detector="leaks", result="missed") == 9
    assert value(samples, "canaries_total", detector="stalls", result="seen") == 0
    seen = value(samples, "last_canary_timestamp_seconds", detector="leaks")
    assert seen == OFFSET_NS / SECOND + 60
    assert value(samples, "last_canary_timestamp_seconds", detector="stalls") == 0


def test_workers_are_counted_by_role_and_state(tmp_path: Path, ledger: Ledger) -> None:
    supervisor = ledger.block("supervisor")
    for name in ("mapper-0", "mapper-1", "invalidator-0"):
        ledger.block(name).set_word("state", WorkerState.RUNNING)
    supervisor.set_at("dead", 1, "mapper-1")
    supervisor.set_at("restarts", 2, "mapper-0")
    supervisor.set_at("restarts", 3, "mapper-1")
    supervisor.set_at("wedged", 1, "invalidator-0")
    samples = read(tmp_path / "ledger")
    assert value(samples, "workers", role="mapper", state="running") == 1
    assert value(samples, "workers", role="mapper", state="dead") == 1
    assert value(samples, "workers", role="invalidator", state="running") == 1
    assert value(samples, "worker_restarts_total", role="mapper") == 5
    assert value(samples, "wedged_workers", role="invalidator") == 1
    assert value(samples, "wedged_workers", role="mapper") == 0


def test_the_run_and_its_regions_are_described(tmp_path: Path, ledger: Ledger) -> None:
    ledger.block("supervisor").set_text("kernel_release", '6.1.0 "odd\\one"\n')
    samples = read(tmp_path / "ledger")
    run = {
        "run_id": "run-1",
        "kernel_release": '6.1.0 "odd\\one"\n',
        "scenario": "default",
        "seed": "7",
        "accelerator": "none",
        "filesystem": "ext4",
    }
    assert value(samples, "run_info", **run) == 1
    for region in RUN["regions"]:
        labels = {"region": region["kind"], "name": region["name"], "size": str(region["size"])}
        assert value(samples, "region_info", **labels) == 1
    assert value(samples, "run_start_timestamp_seconds") == OFFSET_NS / SECOND + 5
    assert value(samples, "ledger_update_timestamp_seconds") == OFFSET_NS / SECOND + 100


def test_missing_facts_are_labelled_none(tmp_path: Path) -> None:
    make_ledger(tmp_path / "ledger", run={"seed": 0, "filesystem": "", "regions": RUN["regions"]})
    (labels,) = with_prefix(read(tmp_path / "ledger"), "dax_soak_run_info")
    missing = ("run_id", "kernel_release", "scenario", "accelerator", "filesystem")
    assert dict(labels) == {"seed": "0", **dict.fromkeys(missing, "none")}


def test_host_overrides_boots_and_verdict(tmp_path: Path, ledger: Ledger) -> None:
    ledger.block("host").set("boots", 3)
    ledger.block("host").set_word("verdict", VerdictWord.FAIL)
    ledger.block("supervisor").set_word("verdict", VerdictWord.PASS)
    samples = read(tmp_path / "ledger")
    assert value(samples, "boots_total") == 3
    verdicts = {word: value(samples, "verdict", verdict=word) for word in VerdictWord}
    assert verdicts == {VerdictWord.FAIL: 1, VerdictWord.UNKNOWN: 0, VerdictWord.PASS: 0}


def test_without_a_host_the_supervisors_values_apply(tmp_path: Path) -> None:
    supervisor = make_ledger(tmp_path / "ledger", lab=False).block("supervisor")
    supervisor.set_word("verdict", VerdictWord.PASS)
    samples = read(tmp_path / "ledger")
    assert value(samples, "boots_total") == 1
    assert value(samples, "verdict", verdict="pass") == 1
    supervisor.clear()  # as before its process has begun
    samples = read(tmp_path / "ledger")
    assert value(samples, "boots_total") == 0
    assert value(samples, "verdict", verdict="unknown") == 1
    assert value(samples, "run_start_timestamp_seconds") == 0
    assert value(samples, "run_active") == 0


@pytest.mark.parametrize(
    ("state", "host_state", "age_seconds", "active"),
    [
        (RunState.PREPARING, RunState.PREPARING, 0, 1),
        (RunState.RUNNING, RunState.RUNNING, 14, 1),
        (RunState.PAUSED, RunState.RUNNING, 1, 1),
        (RunState.RUNNING, RunState.RUNNING, 15, 0),
        (RunState.RUNNING, RunState.LOST, 1, 0),
        (RunState.RUNNING, RunState.ENDED, 1, 0),
        (RunState.ENDED, RunState.RUNNING, 1, 0),
    ],
)
def test_active_run_is_not_over_and_has_heartbeats(
    tmp_path: Path,
    ledger: Ledger,
    *,
    state: RunState,
    host_state: RunState,
    age_seconds: int,
    active: int,
) -> None:
    ledger.block("supervisor").set_word("state", state)
    ledger.block("host").set_word("state", host_state)
    now = OFFSET_NS + (100 + age_seconds) * SECOND
    assert value(read(tmp_path / "ledger", now), "run_active") == active


@pytest.mark.parametrize(("age_seconds", "active"), [(1, 1), (14, 1), (15, 0)])
def test_wrong_guest_clock_does_not_affect_activity(
    tmp_path: Path, ledger: Ledger, age_seconds: int, active: int
) -> None:
    now = OFFSET_NS + 100 * SECOND
    ledger.block("supervisor").set("heartbeat_ns", SECOND)
    assert value(read(tmp_path / "ledger", now), "run_active") == 0
    ledger.block("host").set("guest_heartbeat_realtime_ns", now - age_seconds * SECOND)
    samples = read(tmp_path / "ledger", now)
    assert value(samples, "run_active") == active
    updated = value(samples, "ledger_update_timestamp_seconds")
    assert updated == now / SECOND - age_seconds


def words_before_recorder(ledger: Ledger) -> list[int]:
    """Return where the words of all blocks lie in the file, flight recorders left out."""
    return [
        block.offset + (field.offset + word) * WORD
        for block in ledger.layout.blocks.values()
        for field in block.fields.values()
        if field.name != "recorder"
        for word in range(field.words)
    ]


@deterministic
@given(data=st.data())
def test_no_damage_stops_a_scrape(shared_ledger: tuple[Path, Ledger], data: st.DataObject) -> None:
    path, ledger = shared_ledger
    places = st.sampled_from(words_before_recorder(ledger)) | st.integers(0, 8191)
    numbers = st.sampled_from([0, 1, (1 << 63), (1 << 64) - 1]) | st.integers(0, (1 << 64) - 1)
    damages = data.draw(st.lists(st.tuples(places, numbers), min_size=1, max_size=6))
    with tempfile.TemporaryDirectory() as directory:
        copy = Path(directory) / "ledger"
        copy.write_bytes(path.read_bytes())
        descriptor = os.open(copy, os.O_RDWR)
        try:
            for place, number in damages:
                os.pwrite(descriptor, number.to_bytes(WORD, "little"), place)
        finally:
            os.close(descriptor)
        collector = LedgerCollector(lambda: LedgerReader.open(copy))
        samples = parse(generate_latest(collector).decode())
    assert value(samples, "up") in {0, 1}
    assert value(samples, "run_active") in {0, 1}
