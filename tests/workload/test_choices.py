# SPDX-License-Identifier: GPL-2.0-only
"""Choices: they follow from the seed alone, and never leave what they may touch."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from soak.cli import main
from soak.errors import UsageError
from soak.model.vocabulary import Operation, RegionKind, Role
from soak.regions.fs_dax import FILE_SIZE
from soak.regions.pages import PAGE_SIZE
from soak.workload.choices import SLOTS, Choice, PlannedRegion
from soak.workload.pins.methods import METHODS
from soak.workload.scenarios import SCENARIOS
from tests.support.soak import REGIONS, deterministic, planned, workers

if TYPE_CHECKING:
    from pathlib import Path

    from soak.workload.worker_plan import WorkerPlan

ENOUGH = 3000
TRUNCATIONS = {
    Operation.TRUNCATE_DOWN,
    Operation.TRUNCATE_ZERO,
    Operation.TRUNCATE_UP,
    Operation.OPEN_TRUNCATE,
}
# The first of seed 1, written down.
MAPPER_CHOICES = [
    Choice(0, 0, Operation.MAP, 0, 3, 34041856, 65536, 1),
    Choice(1, 3, Operation.UNMAP, 0, 3, 34041856, 65536, 1),
    Choice(2, 0, Operation.MAP, 0, 3, 20643840, 10199040, 1),
]
INVALIDATOR_CHOICES = [
    Choice(0, 0, Operation.TRUNCATE_DOWN, 0, 2, 2412544, 0, 0),
    Choice(1, 3, Operation.OPEN_TRUNCATE, 0, 0, 0, 0, 0),
    Choice(2, 2, Operation.TRUNCATE_UP, 0, 0, 2990080, 0, 0),
]

seeds = st.integers(0, 2**63 - 1)
planned_regions = st.lists(
    st.builds(
        PlannedRegion,
        st.text(max_size=3),
        st.sampled_from([RegionKind.DEVICE_DAX, RegionKind.ANONYMOUS]),
        st.integers(1, 1 << 16).map(lambda pages: pages * PAGE_SIZE),
    )
    | st.builds(
        PlannedRegion,
        st.text(max_size=3),
        st.just(RegionKind.FS_DAX),
        st.integers(8, 16).map(lambda files: files * FILE_SIZE),
    ),
    min_size=1,
    max_size=4,
)


def some(plan: WorkerPlan, incarnation: int = 0, count: int = 300) -> list[Choice]:
    return list(islice(plan.choices(incarnation), count))


def mapper(seed: int = 1) -> WorkerPlan:
    return next(plan for plan in workers(seed=seed) if plan.role is Role.MAPPER)


def invalidator(seed: int = 1) -> WorkerPlan:
    return next(plan for plan in workers(seed=seed) if plan.role is Role.INVALIDATOR)


@given(seeds)
@deterministic
def test_the_same_seed_gives_the_same_choices(seed: int) -> None:
    for first, second in zip(workers(2, 2, seed), workers(2, 2, seed), strict=True):
        assert some(first) == some(second)
        assert some(first, 3) == some(second, 3)


@given(seeds, seeds)
@deterministic
def test_seed_worker_and_incarnation_change_choices(seed: int, other: int) -> None:
    if seed == other:
        return
    for make in (mapper, invalidator):
        assert some(make(seed)) != some(make(other))
        assert some(make(seed), 0) != some(make(seed), 1)
    first, second = workers(2, 0, seed)
    assert some(first) != some(second)


def test_choices_of_a_seed_never_change() -> None:
    """A run is repeated by its seed: whoever changes what is drawn changes old seeds' meaning."""
    assert some(mapper(), count=3) == MAPPER_CHOICES
    assert some(invalidator(), count=3) == INVALIDATOR_CHOICES


@given(planned_regions, seeds)
@deterministic
def test_choices_are_page_aligned_ranges_of_their_region(regions: list[PlannedRegion], seed: int) -> None:
    for plan in planned(regions, seed=seed, mappers=1, invalidators=2, holders=2, transfers=True):
        for number, choice in enumerate(some(plan)):
            assert choice.number == number
            region = plan.regions[choice.region]
            limit = region.size if plan.role is Role.MAPPER else FILE_SIZE
            if plan.role is Role.HOLDER:
                assert choice.hold_ns > 0
                assert choice.length <= METHODS[choice.method].most_pages * PAGE_SIZE
            assert choice.offset % PAGE_SIZE == 0
            assert choice.length % PAGE_SIZE == 0
            assert 0 <= choice.offset <= choice.offset + choice.length <= limit
            assert choice.length > 0 or choice.operation in TRUNCATIONS
            cell = plan.cells[choice.cell]
            assert (cell.operation, cell.region) == (choice.operation, region.kind)


@given(planned_regions, seeds)
@deterministic
def test_each_unmap_matches_its_map(regions: list[PlannedRegion], seed: int) -> None:
    (plan,) = planned(regions, seed=seed, mappers=1)
    live: dict[int, Choice] = {}
    for choice in some(plan):
        assert 0 <= choice.place < SLOTS
        if choice.operation is Operation.MAP:
            # A slot has its own addresses, so one mapping in each is what keeps them apart.
            assert choice.place not in live
            if plan.regions[choice.region].kind is not RegionKind.FS_DAX:
                live[choice.place] = choice
        else:
            assert choice.operation is Operation.UNMAP
            mapped = live.pop(choice.place)
            assert choice[3:] == mapped[3:]


@given(seeds, st.integers(1, 4))
@deterministic
def test_invalidations_stay_within_the_modelled_file_size(seed: int, sharers: int) -> None:
    for plan in workers(0, sharers, seed):
        sizes = dict.fromkeys(plan.files, FILE_SIZE)
        for choice in some(plan):
            size = sizes[choice.place]
            match choice.operation:
                case Operation.TRUNCATE_DOWN:
                    assert 0 <= choice.offset < size
                case Operation.TRUNCATE_ZERO | Operation.OPEN_TRUNCATE:
                    assert choice.offset == 0 < size
                case Operation.TRUNCATE_UP:
                    assert size < choice.offset <= FILE_SIZE
                case _:
                    assert choice.length > 0
                    assert choice.offset + choice.length <= size
            if choice.operation in TRUNCATIONS:
                assert choice.length == 0
                sizes[choice.place] = choice.offset


@given(st.lists(st.integers(4, 9), min_size=1, max_size=3), st.integers(1, 12))
@deterministic
def test_a_file_has_one_invalidator(file_counts: list[int], invalidators: int) -> None:
    regions = [
        PlannedRegion(f"files-{index}", RegionKind.FS_DAX, count * FILE_SIZE)
        for index, count in enumerate(file_counts)
    ]
    try:
        plans = planned(regions, invalidators=invalidators)
    except UsageError:
        assert invalidators > min(file_counts)
        return
    owners = Counter((plan.regions[0].name, file) for plan in plans for file in plan.files)
    assert set(owners.values()) == {1}
    for region, count in zip(regions, file_counts, strict=True):
        owned = sorted(file for name, file in owners if name == region.name)
        assert owned in ([], list(range(count)))


def test_every_promised_cell_occurs() -> None:
    for plan in workers(1, 1):
        drawn = Counter(choice.cell for choice in some(plan, count=ENOUGH))
        assert set(drawn) == set(range(len(plan.cells)))
        # A cell that is rare would not be completed often enough in a short run.
        assert min(drawn.values()) >= ENOUGH // 100


def test_without_files_there_is_no_invalidator() -> None:
    plans = planned([REGIONS[0]], mappers=2, invalidators=3)
    assert [plan.name for plan in plans] == ["mapper-0", "mapper-1"]


def test_an_unknown_scenario_error_lists_known_scenarios() -> None:
    with pytest.raises(UsageError, match="Unknown scenario 'nonsense'") as caught:
        planned(scenario="nonsense")
    for name in SCENARIOS:
        assert name in str(caught.value)


def test_a_mapper_needs_a_region() -> None:
    with pytest.raises(UsageError, match="no region to map"):
        planned([], mappers=1)


def printed(capsys: pytest.CaptureFixture[str], *options: str) -> list[str]:
    assert main(["lab", *options]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out.splitlines()


def test_choices_are_printed_without_a_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DAX_SOAK_CACHE", str(tmp_path / "cache"))
    lines = printed(capsys, "--print-choices", "7", "--seed", "5")
    names = Counter(line.split(" ", 1)[0] for line in lines)
    pairs = {f"trial-{role}-{pair}" for role in ("holder", "invalidator") for pair in (0, 1)}
    assert set(names) == {"mapper-0", "mapper-1", "invalidator-0", "holder-0", *pairs}
    assert set(names.values()) == {7}
    assert lines == printed(capsys, "--print-choices", "7", "--seed", "5")
    assert lines != printed(capsys, "--print-choices", "7", "--seed", "6")
    longer = printed(capsys, "--print-choices", "9", "--seed", "5")
    assert [line for line in longer if int(line.split(" ")[1]) < 7] == lines
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["fs-dax", "device-dax"])
def test_choices_of_a_configuration_are_printed(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "soak.toml"
    path.write_text(
        "[run]\nseed = 3\n[workload]\nmappers = 1\ninvalidators = 1\nholders = 1\ntrials = 0\n"
        f'[[region]]\nname = "one"\nkind = "{kind}"\npath = "lab"\nsize = "16M"\n'
    )
    lines = printed(capsys, "--print-choices", "4", "-c", str(path))
    names = {"mapper-0", *(("invalidator-0", "holder-0") if kind == "fs-dax" else ())}
    assert {line.split(" ")[0] for line in lines} == names
    assert all(line.split(" ")[3] == "one" for line in lines)
    assert lines == printed(capsys, "--print-choices", "4", "-c", str(path), "--seed", "3")
