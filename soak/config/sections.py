# SPDX-License-Identifier: GPL-2.0-only
"""The configuration of a run: the keys of `soak.toml` and their defaults.

Each key is one field with a parser and a meaning; unknown keys are errors.
"""

from __future__ import annotations

import re
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

from soak.config.listen import DEFAULT_LISTEN
from soak.config.toml_text import parse_toml
from soak.config.values import (
    parse_address,
    parse_alignment,
    parse_duration,
    parse_functions,
    parse_interfaces,
    parse_interval,
    parse_kind,
    parse_memory,
    parse_name,
    parse_path,
    parse_paths,
    parse_rate,
    parse_seed,
    parse_share,
    parse_size,
    parse_truth,
    parse_workers,
)
from soak.errors import UsageError
from soak.files.printable import shown
from soak.files.regular import read_regular
from soak.model.vocabulary import Interface, RegionKind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

_T = TypeVar("_T")

_MAX_FILE_BYTES = 1 << 20
_MAX_REGIONS = 64
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]{1,60}")


def _key(
    parse: Callable[[object], Any],
    meaning: str,
    default: Any = MISSING,  # noqa: ANN401 - as the parser of the key returns it
) -> Any:  # noqa: ANN401 - dataclasses.field() itself is typed so
    return field(default=default, metadata={"parse": parse, "meaning": meaning})


@dataclass(frozen=True)
class RunSection:
    """[run]."""

    duration: float = _key(parse_duration, "how long to soak", 120.0)
    seed: int = _key(parse_seed, "seed of all choices", 1)


@dataclass(frozen=True)
class RegionSection:
    """[[region]]."""

    name: str = _key(parse_name, "unique name in journal, report and region_info")
    kind: RegionKind = _key(parse_kind, "device-dax, fs-dax or anonymous")
    path: str = _key(
        parse_path, "device file (device-dax) or directory on a DAX file system (fs-dax)", ""
    )
    size: int = _key(
        parse_size, "bytes to use; default: the whole device, 64M of fs-dax, 16M of anonymous", 0
    )
    alignment: int = _key(
        parse_alignment, "device-dax only: required alignment, 4K, 2M or 1G (the lab creates it)", 0
    )
    recyclable: bool = _key(
        parse_truth,
        "device-dax only: true if the soak alone uses the namespace and may rebind it to reset leaked "
        "page references (always true in the lab)",
        default=False,
    )


@dataclass(frozen=True)
class VfioSection:
    """[vfio]."""

    devices: tuple[str, ...] = _key(
        parse_functions, "PCI functions for vfio-pci: the first for probes, then one per mapper", ()
    )


@dataclass(frozen=True)
class WorkloadSection:
    """[workload]."""

    scenario: str = _key(parse_name, "mix of operations", "mixed")
    mappers: int = _key(parse_workers, "processes that map and unmap", 2)
    interfaces: tuple[Interface, ...] = _key(
        parse_interfaces, "long-term interfaces that mappers use in turn; every one if empty", ()
    )
    invalidators: int = _key(parse_workers, "processes that truncate and punch the fs-dax files", 1)
    holders: int = _key(parse_workers, "processes that take short pins of the same files", 1)
    trials: int = _key(parse_workers, "pairs of a holder and an invalidator with a file of their own", 2)
    rate: float = _key(
        parse_rate, "operations per second and worker (in a trial, of its holder); 0 for no limit", 0.0
    )
    slow_devices: tuple[str, ...] = _key(
        parse_paths,
        "slow, empty block devices for O_DIRECT; without any the workload omits O_DIRECT (the lab "
        "creates dm-delay and null_blk)",
        (),
    )
    fast_devices: tuple[str, ...] = _key(
        parse_paths, "fast, empty block devices for O_DIRECT (the lab creates a RAM disk)", ()
    )


@dataclass(frozen=True)
class StallSection:
    """[stall]."""

    late: float = _key(
        parse_duration, "a wait that ends later than this after the last pin is a late wakeup", 0.5
    )
    threshold: float = _key(
        parse_duration, "a wait that lasts longer than this after the last pin is a stall", 2.0
    )


@dataclass(frozen=True)
class CanariesSection:
    """[canaries]."""

    every: float = _key(
        parse_interval, "time between two canaries of each kind; 0 or false for none", 600.0
    )


@dataclass(frozen=True)
class ExporterSection:
    """[exporter]."""

    listen: str = _key(parse_address, "HOST:PORT to serve metrics at", DEFAULT_LISTEN)


@dataclass(frozen=True)
class LimitsSection:
    """[limits]."""

    memory: int = _key(
        parse_memory,
        "private memory per worker, such as 512M; allocations beyond it fail with ENOMEM; 0 for no limit",
        0,
    )
    wedged_workers: int = _key(
        parse_workers, "number of workers that may hang in the kernel before the run ends", 4
    )


@dataclass(frozen=True)
class LeaksSection:
    """[leaks]."""

    sweep: float = _key(parse_duration, "time between two sweeps of all pages", 10.0)
    recycle: float = _key(
        parse_share,
        "reference-count headroom (0 to 1) below which a recyclable region is recycled; 0 for never",
        0.2,
    )


@dataclass(frozen=True)
class Config:
    """A whole configuration."""

    run: RunSection = field(default_factory=RunSection)
    regions: tuple[RegionSection, ...] = ()
    vfio: VfioSection = field(default_factory=VfioSection)
    workload: WorkloadSection = field(default_factory=WorkloadSection)
    stall: StallSection = field(default_factory=StallSection)
    leaks: LeaksSection = field(default_factory=LeaksSection)
    canaries: CanariesSection = field(default_factory=CanariesSection)
    exporter: ExporterSection = field(default_factory=ExporterSection)
    limits: LimitsSection = field(default_factory=LimitsSection)
    known_issues: Mapping[str, bool] = field(default_factory=dict)

    def to_table(self) -> dict[str, Any]:
        """Return the TOML table of this configuration."""
        return {
            "run": _plain(self.run),
            "vfio": _plain(self.vfio),
            "workload": _plain(self.workload),
            "stall": _plain(self.stall),
            "leaks": _plain(self.leaks),
            "canaries": _plain(self.canaries),
            "exporter": _plain(self.exporter),
            "limits": _plain(self.limits),
            "known-issues": dict(self.known_issues),
            "region": [_plain(region) for region in self.regions],
        }


SECTIONS: Mapping[str, type[Any]] = {
    "run": RunSection,
    "vfio": VfioSection,
    "workload": WorkloadSection,
    "stall": StallSection,
    "leaks": LeaksSection,
    "canaries": CanariesSection,
    "exporter": ExporterSection,
    "limits": LimitsSection,
}
_KNOWN_ISSUES, _REGION = "known-issues", "region"
# Keys whose 0 differs from the default of an omitted key.
_MEANT_ZEROS = frozenset(
    ("seed", "mappers", "invalidators", "holders", "trials", "wedged-workers", "recycle", "every")
)


def load_config(path: Path) -> Config:
    """Read and check a configuration file.

    Raises:
        UsageError: the file cannot be read, is not TOML, or is invalid.
    """
    try:
        table = parse_toml(read_regular(path, _MAX_FILE_BYTES).decode())
    except OSError as error:
        raise UsageError(f"The configuration {str(path)!r} cannot be read: {error.strerror}.") from None
    except ValueError as error:
        # TOMLDecodeError, UnicodeDecodeError, or int() on thousands of digits.
        raise UsageError(f"The configuration {str(path)!r} is not TOML: {error}.") from None
    return parse_config(table, str(path) if str(path).isprintable() else repr(str(path)))


def parse_config(table: Mapping[str, Any], source: str) -> Config:
    """Check a configuration table; `source` names its file in messages.

    Raises:
        UsageError: a key is unknown, missing or has an invalid value.
    """
    _refuse_unknown(table, {*SECTIONS, _KNOWN_ISSUES, _REGION}, source, "")
    sections = {
        name: _section(kind, table.get(name, {}), source, name) for name, kind in SECTIONS.items()
    }
    entries = table.get(_REGION, [])
    if not isinstance(entries, list):
        raise UsageError(f"{source}: region is {shown(entries)}, expected a list: write [[region]].")
    if len(entries) > _MAX_REGIONS:
        raise UsageError(f"{source}: found {len(entries)} regions, expected at most {_MAX_REGIONS}.")
    regions = tuple(
        _section(RegionSection, entry, source, f"region[{number}]")
        for number, entry in enumerate(entries)
    )
    names = [region.name for region in regions]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{source}: two regions are named {name!r}: rename one.")
    for region in regions:
        if region.kind is not RegionKind.ANONYMOUS and not region.path:
            raise UsageError(f"{source}: the region {region.name!r} of kind {region.kind} needs a path.")
    stall, workload = sections["stall"], sections["workload"]
    if stall.late >= stall.threshold:
        raise UsageError(
            f"{source}: stall.late is {stall.late:g} s, expected less than stall.threshold "
            f"({stall.threshold:g} s)."
        )
    if bool(workload.slow_devices) != bool(workload.fast_devices):
        raise UsageError(
            f"{source}: workload.slow-devices and workload.fast-devices go together: set both, or none "
            f"for a workload without O_DIRECT."
        )
    issues = table.get(_KNOWN_ISSUES, {})
    if not isinstance(issues, dict) or not all(isinstance(on, bool) for on in issues.values()):
        raise UsageError(
            f"{source}: [known-issues] is {shown(issues)}, expected true or false for each name."
        )
    return Config(regions=regions, known_issues=issues, **sections)


def _section(kind: type[_T], table: object, source: str, name: str) -> _T:
    if not isinstance(table, dict):
        raise UsageError(f"{source}: {name} is {shown(table)}, expected a table.")
    known: dict[str, Field[Any]] = {_spelled(item.name): item for item in fields(kind)}  # type: ignore[arg-type]  # every section is a dataclass
    _refuse_unknown(table, set(known), source, f"{name}.")
    values = {}
    for key, item in known.items():
        if key in table:
            try:
                values[item.name] = item.metadata["parse"](table[key])
            except ValueError as error:
                raise UsageError(
                    f"{source}: {name}.{key} is {shown(table[key])}, expected {error}."
                ) from None
        elif item.default is MISSING:
            raise UsageError(f"{source}: {name}.{key} is missing: {item.metadata['meaning']}.")
    return kind(**values)


def _refuse_unknown(table: Mapping[str, Any], known: set[str], source: str, prefix: str) -> None:
    for key in table:
        if key not in known:
            raise UsageError(
                f"{source}: unknown key {prefix}{_quoted(key)} (choose from {', '.join(sorted(known))})."
            )


def _quoted(key: str) -> str:
    """Return a key in TOML syntax: bare if possible."""
    return key if _BARE_KEY.fullmatch(key) else shown(key)


def _plain(section: Any) -> dict[str, Any]:  # noqa: ANN401 - any of the sections
    values = {_spelled(item.name): getattr(section, item.name) for item in fields(section)}
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in values.items()
        if value not in ("", 0) or key in _MEANT_ZEROS
    }


def _spelled(name: str) -> str:
    return name.replace("_", "-")
