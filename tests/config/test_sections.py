# SPDX-License-Identifier: GPL-2.0-only
"""The configuration: what it says comes back, and what it cannot mean is refused by name."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from soak.config.sections import (
    CanariesSection,
    Config,
    ExporterSection,
    LeaksSection,
    LimitsSection,
    RegionSection,
    RunSection,
    StallSection,
    VfioSection,
    WorkloadSection,
    load_config,
    parse_config,
)
from soak.config.values import parse_duration, parse_size
from soak.errors import UsageError
from soak.files.printable import shown
from soak.model.vocabulary import LONG_TERM_PINS, RegionKind
from soak.workload.plan import make_plan
from tests.support.soak import KNOWN_ISSUE, deterministic

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SOURCE = "soak.toml"
YEAR = 366 * 86400
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
SIZES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
SECTIONS: dict[str, Any] = {
    "run": RunSection,
    "region": RegionSection,
    "vfio": VfioSection,
    "workload": WorkloadSection,
    "stall": StallSection,
    "leaks": LeaksSection,
    "exporter": ExporterSection,
    "limits": LimitsSection,
    "canaries": CanariesSection,
}
# Every key, by the section it stands in.
KEYS = [
    (section, field.name.replace("_", "-"))
    for section, kind in SECTIONS.items()
    for field in fields(kind)
]
# What each key expects to find, as its sentence says it.
EXPECTED = {
    "rate": "a number from 0",
    "listen": "HOST:PORT, such as",
    "memory": "a size in bytes or such as",
    "recycle": "a number from 0 to less than 1",
    "recyclable": "true or false",
    "alignment": '"4K", "2M" or "1G"',
    "duration": "a duration such as",
    "seed": "a whole number from 0",
    "name": "a name of up to 32",
    "kind": "one of device-dax, fs-dax, anonymous",
    "path": "a path without NUL",
    "size": "a size in bytes or such as",
    "devices": "a list of PCI functions",
    "scenario": "a name of up to 32",
    "mappers": "a whole number from 0 to 64",
    "interfaces": "a list of long-term interfaces",
    "invalidators": "a whole number from 0 to 64",
    "holders": "a whole number from 0 to 64",
    "trials": "a whole number from 0 to 64",
    "slow-devices": "a list of device files",
    "fast-devices": "a list of device files",
    "late": "a duration such as",
    "threshold": "a duration such as",
    "wedged-workers": "a whole number from 0 to 64",
    "sweep": "a duration such as",
    "every": "a duration such as",
}
WRONG: tuple[Any, ...] = (
    True,
    -1,
    1.5e300,
    float("nan"),
    10**400,
    "",
    "ä?",
    [7],
    ["x"],
    {"a": 1},
    tomllib.loads("d = 2024-01-01T00:00:00Z\n")["d"],
    tomllib.loads("t = 07:32:00\n")["t"],
)
# A list that is right for `devices`.
FITTING: dict[str, tuple[Any, ...]] = {
    "path": ("ä?",),
    "slow-devices": (["x"],),
    "fast-devices": (["x"],),
    "recyclable": (True,),
}

names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,31}", fullmatch=True)
seconds = st.floats(0.001, YEAR) | st.integers(1, YEAR)
texts = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20
)
functions = st.from_regex(r"[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]", fullmatch=True)
sizes = st.integers(0, 1 << 62)
regions = st.builds(RegionSection, names, st.sampled_from(RegionKind), texts, sizes) | st.builds(
    RegionSection, names, st.just(RegionKind.ANONYMOUS), st.just(""), sizes
)
workload: dict[str, st.SearchStrategy[Any]] = {
    "scenario": names,
    "interfaces": st.lists(st.sampled_from(LONG_TERM_PINS), unique=True).map(tuple),
    **dict.fromkeys(("mappers", "invalidators", "holders", "trials"), st.integers(0, 64)),
}
configs = st.builds(
    Config,
    st.builds(RunSection, seconds.map(float), st.integers(0, 2**63 - 1)),
    st.lists(regions, max_size=4, unique_by=lambda region: region.name).map(tuple),
    st.builds(VfioSection, st.lists(functions, max_size=3).map(tuple)),
    st.builds(
        WorkloadSection,
        **workload,
        rate=st.floats(0, 1e6),
        # Slow and quick devices come together.
        slow_devices=st.lists(texts, min_size=1, max_size=2).map(tuple),
        fast_devices=st.lists(texts, min_size=1, max_size=2).map(tuple),
    )
    | st.builds(WorkloadSection, **workload),
    st.builds(StallSection, st.floats(0.001, 1.0), st.floats(1.5, YEAR)),
    st.builds(LeaksSection, seconds.map(float)),
    st.builds(CanariesSection, st.just(0.0) | seconds.map(float)),
    st.builds(ExporterSection, st.sampled_from(["localhost:0", "[fe80::1%eth0]:9823"])),
    st.builds(LimitsSection, st.integers(0, 1 << 40), st.integers(0, 64)),
    st.dictionaries(names, st.booleans(), max_size=3),
)


def table_with(section: str, key: str, value: object) -> dict[str, Any]:
    """Return a configuration in which one key has this value and everything else is right."""
    if section == "region":
        return {"region": [{"name": "dax", "kind": "anonymous", key: value}]}
    return {section: {key: value}}


def refusal(act: Callable[[], object]) -> str:
    """Return the one sentence with which something is refused."""
    with pytest.raises(UsageError) as caught:
        act()
    sentence = str(caught.value)
    assert "\n" not in sentence
    return sentence


@given(st.lists(st.tuples(st.integers(1, 100), st.sampled_from(list(UNITS))), min_size=1))
@deterministic
def test_a_duration_is_the_sum_of_its_parts(parts: list[tuple[int, str]]) -> None:
    total = sum(number * UNITS[unit] for number, unit in parts)
    text = "".join(f"{number}{unit}" for number, unit in parts)
    if total <= YEAR:
        assert parse_duration(text) == total
        assert parse_duration(f" {text} ") == total
    else:
        with pytest.raises(ValueError, match="at most a year"):
            parse_duration(text)


@given(seconds)
@deterministic
def test_a_duration_in_seconds_is_itself(number: float) -> None:
    assert parse_duration(number) == number
    assert parse_duration(f"{number:.3f}s") == pytest.approx(number, abs=0.001)
    assert parse_duration(f"{number:.3f}") == pytest.approx(number, abs=0.001)


def test_milliseconds_are_not_minutes() -> None:
    assert parse_duration("250ms") == pytest.approx(0.25)
    assert parse_duration("1m500ms") == pytest.approx(60.5)


@pytest.mark.parametrize(
    "value",
    [*WRONG, "0s", "5x", "m", "1h x", "1 h", "-3s", "1e3s", "367d", "9" * 500, None],
    ids=lambda value: repr(value)[:20],
)
def test_invalid_duration_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="a duration such as"):
        parse_duration(value)


@given(st.integers(1, 1 << 20), st.sampled_from(list(SIZES)), st.sampled_from(["", "B", "iB"]))
@deterministic
def test_a_size_is_its_number_of_units(number: int, unit: str, suffix: str) -> None:
    assert parse_size(f"{number}{unit}{suffix}") == number * SIZES[unit]
    assert parse_size(number) == number


@pytest.mark.parametrize("value", ["0", 0, -1, "1.5G", "G", "4g", "4 G", 4.0, True, None, [1], {}])
def test_invalid_size_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="a size in bytes"):
        parse_size(value)


@given(configs)
@deterministic
def test_written_configuration_reads_back_equal(config: Config) -> None:
    text = tomli_w.dumps(config.to_table())
    assert parse_config(tomllib.loads(text), SOURCE) == config


def test_the_file_of_an_effective_configuration_loads(tmp_path: Path) -> None:
    config = Config(
        regions=(
            RegionSection("dax", RegionKind.DEVICE_DAX, "/dev/dax0.0", 0),
            RegionSection("control", RegionKind.ANONYMOUS),
        ),
        vfio=VfioSection(("0000:00:05.0",)),
        workload=WorkloadSection(mappers=0, invalidators=0),
        known_issues={KNOWN_ISSUE: False},
    )
    path = tmp_path / "run.toml"
    path.write_text(tomli_w.dumps(config.to_table()))
    assert load_config(path) == config


def test_empty_file_yields_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "soak.toml"
    path.write_text("")
    assert load_config(path) == Config()


@given(
    st.sampled_from(["", *SECTIONS]),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12),
    st.integers() | st.text(max_size=3) | st.just({}),
)
@deterministic
def test_unknown_key_is_an_error_in_every_section(section: str, key: str, value: Any) -> None:  # noqa: ANN401 - any TOML value
    known = {name for place, name in KEYS if place == section} if section else {*SECTIONS}
    if key in {*known, "known-issues"}:
        return
    table = table_with(section, key, value) if section else {key: value}
    with pytest.raises(UsageError) as caught:
        parse_config(table, "/etc/some.toml")
    sentence = str(caught.value)
    assert sentence.startswith("/etc/some.toml: ")
    assert key in sentence or shown(key) in sentence
    assert sentence.isprintable()
    for name in known:
        assert name in sentence


@pytest.mark.parametrize(("section", "key"), KEYS)
@pytest.mark.parametrize("value", WRONG, ids=lambda value: repr(value)[:20])
def test_wrong_type_reports_found_and_expected_value(section: str, key: str, value: object) -> None:
    if value in FITTING.get(key, ()):
        return
    sentence = refusal(lambda: parse_config(table_with(section, key, value), SOURCE))
    assert sentence.startswith(f"{SOURCE}: ")
    place = rf"{section}(\[0\])?\.{key}"
    assert re.search(place, sentence)
    assert shown(value) in sentence
    assert f"expected {EXPECTED[key]}" in sentence


@pytest.mark.parametrize("section", [name for name in SECTIONS if name != "region"])
@pytest.mark.parametrize("value", [1, "x", [], [{}]])
def test_section_that_is_not_a_table_is_refused(section: str, value: object) -> None:
    sentence = refusal(lambda: parse_config({section: value}, SOURCE))
    assert sentence == f"{SOURCE}: {section} is {value!r}, expected a table."


@pytest.mark.parametrize("value", [{"name": "a", "kind": "anonymous"}, 1, "x"])
def test_regions_are_a_list(value: object) -> None:
    assert "write [[region]]" in refusal(lambda: parse_config({"region": value}, SOURCE))


@pytest.mark.parametrize("value", [1, [], {KNOWN_ISSUE: 1}, {KNOWN_ISSUE: "yes"}])
def test_known_issues_are_switches(value: object) -> None:
    sentence = refusal(lambda: parse_config({"known-issues": value}, SOURCE))
    assert "true or false" in sentence


def test_unknown_known_issue_is_refused() -> None:
    config = parse_config({"known-issues": {"no-such-issue": True}}, SOURCE)
    sentence = refusal(lambda: make_plan(config))
    assert "'no-such-issue'" in sentence
    assert KNOWN_ISSUE in sentence


@pytest.mark.parametrize("missing", ["name", "kind"])
def test_region_needs_name_and_kind(missing: str) -> None:
    region = {"name": "dax", "kind": "anonymous"}
    del region[missing]
    sentence = refusal(lambda: parse_config({"region": [region]}, SOURCE))
    assert f"region[0].{missing} is missing" in sentence


@pytest.mark.parametrize("kind", [RegionKind.DEVICE_DAX, RegionKind.FS_DAX])
def test_dax_region_needs_a_path(kind: RegionKind) -> None:
    region = {"name": "dax", "kind": str(kind)}
    sentence = refusal(lambda: parse_config({"region": [region]}, SOURCE))
    assert "'dax'" in sentence
    assert "needs a path" in sentence


def test_duplicate_region_name_is_refused() -> None:
    entry = {"name": "twin", "kind": "anonymous"}
    sentence = refusal(lambda: parse_config({"region": [entry, dict(entry)]}, SOURCE))
    assert "two regions are named 'twin'" in sentence


def test_more_invalidators_than_files_are_refused() -> None:
    table = {
        "workload": {"invalidators": 3},
        "region": [{"name": "files", "kind": "fs-dax", "path": "/mnt", "size": "16M"}],
    }
    sentence = refusal(lambda: make_plan(parse_config(table, SOURCE)))
    assert "'files' has 2 files" in sentence
    assert "3 invalidators" in sentence


def test_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "absent.toml"
    assert refusal(lambda: load_config(path)) == (
        f"The configuration '{path}' cannot be read: No such file or directory."
    )
    assert str(tmp_path) in refusal(lambda: load_config(tmp_path))


@pytest.mark.parametrize(
    "content", [b"run", b"[run", b"\xff\xfe", b"run = {\n", b"n = " + b"9" * 5000, b"a = 1\na = 2\n"]
)
def test_invalid_toml_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    assert refusal(lambda: load_config(path)).startswith(f"The configuration '{path}' is not TOML: ")


def test_stall_threshold_must_exceed_late() -> None:
    sentence = refusal(lambda: parse_config({"stall": {"late": "2s", "threshold": 2}}, SOURCE))
    assert "stall.late is 2 s" in sentence
    assert "less than stall.threshold" in sentence


@pytest.mark.parametrize("key", ["slow-devices", "fast-devices"])
def test_slow_devices_need_fast_devices(key: str) -> None:
    sentence = refusal(lambda: parse_config({"workload": {key: ["/dev/ram0"]}}, SOURCE))
    assert "workload.slow-devices and workload.fast-devices go together" in sentence


@pytest.mark.parametrize("off", [0, 0.0, "0", False])
def test_canaries_can_be_turned_off(off: object) -> None:
    assert parse_config({"canaries": {"every": off}}, SOURCE).canaries.every == 0


def test_canaries_have_an_interval() -> None:
    assert Config().canaries.every == 600
    assert parse_config({"canaries": {"every": "90s"}}, SOURCE).canaries.every == 90
    sentence = refusal(lambda: parse_config({"canaries": {"every": True}}, SOURCE))
    assert "or 0 for never" in sentence
