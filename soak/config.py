"""The configuration of a run: what `soak.toml` may say, and what holds where it is silent.

Each key stands once, as a field with its parser and its meaning; unknown keys are errors.
"""

from __future__ import annotations

import math
import re
import tomllib
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

from soak.errors import UsageError
from soak.listen import DEFAULT_LISTEN, read_listen
from soak.vocabulary import RegionKind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

_T = TypeVar("_T")

_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d|w)")
_SIZE_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"([0-9]+)([KMGT]?)(?:i?B)?")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")
_MAX_WORKERS = 64
_ALIGNMENTS = (1 << 12, 1 << 21, 1 << 30)
_MAX_RATE = 1_000_000
_MAX_DURATION_SECONDS = 366 * 86400.0
_MAX_SEED = 2**63 - 1
_MAX_SIZE = 2**63 - 1
_FUNCTION = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


def parse_duration(value: object) -> float:
    """Return seconds from `90`, `"90s"`, `"2m"` or `"1h30m"`.

    Raises:
        ValueError: it is none of these, is not positive, or is more than a year.
    """
    seconds = 0.0
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        # A whole number may be too large to become a float.
        seconds = float(value) if value <= _MAX_DURATION_SECONDS else math.inf
    elif isinstance(value, str):
        text = value.strip()
        if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
            seconds = float(text)
        elif text and _DURATION.sub("", text) == "":
            seconds = sum(float(n) * _DURATION_UNITS[unit] for n, unit in _DURATION.findall(text))
    if not 0 < seconds <= _MAX_DURATION_SECONDS:
        raise ValueError('a duration such as "90s", "2m" or "1h30m", of at most a year')
    return seconds


def parse_size(value: object) -> int:
    """Return bytes from a number or from `"512M"`.

    Raises:
        ValueError: it is neither, is not positive, or is more than any file has.
    """
    size = 0
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        size = int(match[1]) * _SIZE_UNITS[match[2]]
    if not 0 < size <= _MAX_SIZE:
        raise ValueError('a size in bytes or such as "512M" or "4G"')
    return size


def parse_alignment(value: object) -> int:
    """Return bytes from `"4K"`, `"2M"` or `"1G"`: the page sizes of x86-64.

    Raises:
        ValueError: it is none of them.
    """
    try:
        size = parse_size(value)
    except ValueError:
        size = 0
    if size not in _ALIGNMENTS:
        raise ValueError('"4K", "2M" or "1G"')
    return size


def parse_seed(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_SEED:
        raise ValueError(f"a whole number from 0 to {_MAX_SEED}")
    return value


def _text(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("a text that is not empty")
    return value


def _address(value: object) -> str:
    read_listen(value)
    return str(value)


def _name(value: object) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError("a name of up to 32 small letters, digits, dots and dashes")
    return value


def _kind(value: object) -> RegionKind:
    if not isinstance(value, str) or value not in set(RegionKind):
        raise ValueError(f"one of {', '.join(RegionKind)}")
    return RegionKind(value)


def _share(value: object) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < 1:
        raise ValueError("a number from 0 to less than 1")
    return float(value)


def _rate(value: object) -> float:
    if (
        not isinstance(value, (int, float))
        or isinstance(value, bool)
        or not 0 <= value <= _MAX_RATE
    ):
        raise ValueError(f"a number from 0 to {_MAX_RATE}")
    return float(value)


def _memory(value: object) -> int:
    try:
        return 0 if value == 0 and not isinstance(value, bool) else parse_size(value)
    except ValueError as error:
        raise ValueError(f"{error}, or 0") from None


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")  # noqa: TRY004 - as the other parsers say it
    return value


def _workers(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_WORKERS:
        raise ValueError(f"a whole number from 0 to {_MAX_WORKERS}")
    return value


def _functions(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(
        isinstance(item, str) and _FUNCTION.fullmatch(item) for item in value
    ):
        raise ValueError('a list of PCI functions such as ["0000:00:05.0"]')
    return tuple(value)


def _paths(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise ValueError('a list of device files such as ["/dev/ram0"]')
    return tuple(value)


def _interval(value: object) -> float:
    if value is False or (value == 0 and not isinstance(value, bool)) or value == "0":
        return 0.0
    try:
        return parse_duration(value)
    except ValueError as error:
        raise ValueError(f"{error}, or 0 for never") from None


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
    seed: int = _key(parse_seed, "from which all choices follow", 1)


@dataclass(frozen=True)
class RegionSection:
    """[[region]]."""

    name: str = _key(_name, "by which the region is told apart in journal, report and region_info")
    kind: RegionKind = _key(_kind, "device-dax, fs-dax or anonymous")
    path: str = _key(
        _text, "device file (device-dax) or directory on a DAX file system (fs-dax)", ""
    )
    size: int = _key(parse_size, "bytes to use; the whole device where it is not given", 0)
    alignment: int = _key(
        parse_alignment,
        "of device-dax: what the device must have (the lab makes it so): 4K, 2M or 1G",
        0,
    )
    recyclable: bool = _key(
        _truth,
        "of device-dax: true where the namespace is there for the soak alone, and may be taken from "
        "its driver to make leaking pages new (the lab's always may)",
        default=False,
    )


@dataclass(frozen=True)
class VfioSection:
    """[vfio]."""

    devices: tuple[str, ...] = _key(
        _functions, "PCI functions bound to vfio-pci: the first for probes, one for each mapper", ()
    )


@dataclass(frozen=True)
class WorkloadSection:
    """[workload]."""

    scenario: str = _key(_name, "which mix of operations to run", "mixed")
    mappers: int = _key(_workers, "processes that map and unmap", 2)
    invalidators: int = _key(_workers, "processes that truncate and punch the fs-dax files", 1)
    holders: int = _key(_workers, "processes that take short pins of the same files", 1)
    trials: int = _key(
        _workers, "pairs of a holder and an invalidator that have a file to themselves", 2
    )
    rate: float = _key(
        _rate,
        "operations a second for each worker, of a trial for its holder; 0 for as many as there can be",
        0.0,
    )
    slow_devices: tuple[str, ...] = _key(
        _paths,
        "block devices that take their time, for O_DIRECT; they must hold nothing; without any there "
        "is no O_DIRECT (the lab makes dm-delay and null_blk)",
        (),
    )
    fast_devices: tuple[str, ...] = _key(
        _paths,
        "block devices that are quick, for O_DIRECT; they must hold nothing (the lab makes a RAM disk)",
        (),
    )


@dataclass(frozen=True)
class StallSection:
    """[stall]."""

    late: float = _key(
        parse_duration, "how long after the last pin a wait may end before it ends late", 0.5
    )
    threshold: float = _key(
        parse_duration, "how long after the last pin a wait may last before it is a stall", 2.0
    )


@dataclass(frozen=True)
class CanariesSection:
    """[canaries]."""

    every: float = _key(
        _interval, "time between two faults of each kind that the soak makes itself; 0 or false: none",
        600.0,
    )  # fmt: skip


@dataclass(frozen=True)
class ExporterSection:
    """[exporter]."""

    listen: str = _key(_address, "where metrics are served, HOST:PORT", DEFAULT_LISTEN)


@dataclass(frozen=True)
class LimitsSection:
    """[limits]."""

    memory: int = _key(
        _memory,
        "private memory that a worker may have, such as 512M; what goes beyond fails with ENOMEM; 0 "
        "for no limit",
        0,
    )

    wedged_workers: int = _key(
        _workers, "how many workers may hang in the kernel for good before the run ends", 4
    )


@dataclass(frozen=True)
class LeaksSection:
    """[leaks]."""

    sweep: float = _key(parse_duration, "time between two sweeps over all pages", 10.0)
    recycle: float = _key(
        _share,
        "share of head-room below which the pages of a recyclable region are made new; 0 for never",
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
        """Return what a TOML file with just this configuration holds."""
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
# Keys of which 0 says something else than leaving them out.
_MEANT_ZEROS = frozenset(
    ("seed", "mappers", "invalidators", "holders", "trials", "wedged-workers", "recycle", "every")
)


def load_config(path: Path) -> Config:
    """Read a configuration file.

    Raises:
        UsageError: the file cannot be read, is no TOML, or says something that cannot be meant.
    """
    try:
        table = tomllib.loads(path.read_text())
    except OSError as error:
        raise UsageError(
            f"The configuration {str(path)!r} cannot be read: {error.strerror}."
        ) from None
    except ValueError as error:
        # TOMLDecodeError and UnicodeDecodeError are that, and a number of thousands of digits is.
        raise UsageError(f"The configuration {str(path)!r} is no TOML: {error}.") from None
    return parse_config(table, str(path))


def parse_config(table: Mapping[str, Any], source: str) -> Config:
    """Check a configuration that was read from `source`.

    Raises:
        UsageError: names the key, what was found and what was expected.
    """
    _refuse_unknown(table, {*SECTIONS, _KNOWN_ISSUES, _REGION}, source, "")
    sections = {
        name: _section(kind, table.get(name, {}), source, name) for name, kind in SECTIONS.items()
    }
    entries = table.get(_REGION, [])
    if not isinstance(entries, list):
        raise UsageError(f"{source}: [region] must be a list: write [[region]].")
    regions = tuple(
        _section(RegionSection, entry, source, f"region[{number}]")
        for number, entry in enumerate(entries)
    )
    names = [region.name for region in regions]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{source}: two regions are named {name!r}: give each its own name.")
    for region in regions:
        if region.kind is not RegionKind.ANONYMOUS and not region.path:
            raise UsageError(
                f"{source}: the region {region.name!r} of kind {region.kind} needs a path."
            )
    stall, workload = sections["stall"], sections["workload"]
    if stall.late >= stall.threshold:
        raise UsageError(
            f"{source}: stall.late is {stall.late:g} s and stall.threshold {stall.threshold:g} s: "
            f"the threshold must be longer."
        )
    if bool(workload.slow_devices) != bool(workload.fast_devices):
        raise UsageError(
            f"{source}: workload.slow-devices and workload.fast-devices go together: give at least "
            f"one of each, or none for a workload without O_DIRECT."
        )
    issues = table.get(_KNOWN_ISSUES, {})
    if not isinstance(issues, dict) or not all(isinstance(on, bool) for on in issues.values()):
        raise UsageError(f"{source}: [known-issues] holds names with true or false.")
    return Config(regions=regions, known_issues=issues, **sections)


def _section(kind: type[_T], table: object, source: str, name: str) -> _T:
    if not isinstance(table, dict):
        raise UsageError(f"{source}: {name} must be a table, found {table!r}.")
    known: dict[str, Field[Any]] = {_spelled(item.name): item for item in fields(kind)}  # type: ignore[arg-type]  # every section is a dataclass
    _refuse_unknown(table, set(known), source, f"{name}.")
    values = {}
    for key, item in known.items():
        if key in table:
            try:
                values[item.name] = item.metadata["parse"](table[key])
            except ValueError as error:
                raise UsageError(
                    f"{source}: {name}.{key} is {table[key]!r}, expected {error}."
                ) from None
        elif item.default is MISSING:
            raise UsageError(f"{source}: {name}.{key} is missing: {item.metadata['meaning']}.")
    return kind(**values)


def _refuse_unknown(table: Mapping[str, Any], known: set[str], source: str, prefix: str) -> None:
    for key in table:
        if key not in known:
            raise UsageError(
                f"{source}: {prefix}{key} is no known key: known here are {', '.join(sorted(known))}."
            )


def _plain(section: Any) -> dict[str, Any]:  # noqa: ANN401 - any of the sections
    values = {_spelled(item.name): getattr(section, item.name) for item in fields(section)}
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in values.items()
        if value not in ("", 0) or key in _MEANT_ZEROS
    }


def _spelled(name: str) -> str:
    return name.replace("_", "-")
