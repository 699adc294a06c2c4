# SPDX-License-Identifier: GPL-2.0-only
"""Writes a soak.toml for the usable hardware, with a comment on every key."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final

import tomli_w

from soak.config.sections import Config, RegionSection, VfioSection, WorkloadSection
from soak.errors import UsageError
from soak.machine.pci import VFIO_DRIVER
from soak.model.vocabulary import RegionKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from soak.machine.check_line import Finding
    from soak.machine.survey import Section

_WIDTH: Final = 79
_MOST_NAME: Final = 32
_SINGLE: Final = ("run", "vfio", "workload", "stall", "leaks", "limits")
_HEAD: Final = (
    "Written by 'dax-soak check --write' for this machine. Keys without a hardware choice have their "
    "default. 'dax-soak check -c' checks whether the machine still fits."
)
_CONTROL: Final = RegionSection("anonymous", RegionKind.ANONYMOUS)


@dataclass(frozen=True)
class Proposal:
    """A configuration, and further functions that could be taken from their drivers."""

    config: Config
    others: tuple[str, ...] = ()

    @classmethod
    def of(cls, sections: Sequence[Section]) -> Proposal:
        """Choose from the usable hardware.

        Takes only PCI functions that have no driver or vfio-pci; to take one from another driver is the
        administrator's decision.
        """
        fit = {section.key: section.fit for section in sections}
        regions: list[RegionSection] = []
        for key, kind in (("device_dax", RegionKind.DEVICE_DAX), ("file_systems", RegionKind.FS_DAX)):
            for found in fit.get(key, ()):
                path = str(found.facts["path"])
                if _is_text(path):
                    name = _name(path, {region.name for region in regions} | {_CONTROL.name})
                    regions.append(RegionSection(name, kind, path))
        regions.append(_CONTROL)
        functions = _one_of_each_group(fit.get("functions", ()))
        free = [found for found in functions if found.facts["driver"] in {VFIO_DRIVER, None}]
        # One is for probes.
        mappers = min(WorkloadSection().mappers, max(len(free) - 1, 0))
        devices = tuple(str(found.facts["address"]) for found in free[: mappers + 1 if mappers else 0])
        return cls(
            Config(
                regions=tuple(regions),
                vfio=VfioSection(devices),
                workload=WorkloadSection(mappers=mappers),
            ),
            tuple(
                f"{found.facts['address']}: {found.says}"
                for found in functions
                if found.facts["address"] not in devices
            ),
        )

    def text(self) -> str:
        """Return the content of the file."""
        parts = [_comment(_HEAD)]
        for name in _SINGLE:
            parts.append(f"[{name}]\n" + "".join(_keys(getattr(self.config, name))))
            if name == "vfio":
                parts[-1] += self._vfio_hint()
        kinds = {region.kind for region in self.config.regions}
        parts += [
            _comment(f"No hardware here fits a region of kind {kind}. Such a region would be:\n")
            + _commented(RegionSection(str(kind), kind, path))
            for kind, path in ((RegionKind.DEVICE_DAX, "/dev/dax0.0"), (RegionKind.FS_DAX, "/mnt/pmem0"))
            if kind not in kinds
        ]
        parts += ["[[region]]\n" + "".join(_keys(region)) for region in self.config.regions]
        return "\n".join(parts)

    def _vfio_hint(self) -> str:
        hint = ""
        if not self.config.vfio.devices:
            hint += _comment(
                "No PCI function is free, so there are no mappers. Two mappers need three functions:\n"
            ) + _commented_line('devices = ["0000:00:10.0", "0000:00:11.0", "0000:00:12.0"]')
        if self.others:
            hint += _comment(
                "These functions can be given to vfio too; their drivers lose them for the run:\n"
            ) + "".join(_comment(other) for other in self.others)
        return hint


def write_proposal(proposal: Proposal, path: Path) -> None:
    """Write the configuration to a new file.

    Raises:
        UsageError: the file exists, or cannot be written.
    """
    try:
        with path.open("x", encoding="utf-8", newline="\n") as out:
            out.write(proposal.text())
    except FileExistsError:
        raise UsageError(f"{path} exists: give another name, or move the file away.") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}.") from None


def _keys(section: Any) -> Iterator[str]:  # noqa: ANN401 - any of the sections
    """Yield each key with its meaning; a key whose default its parser refuses is commented out."""
    for item in fields(section):
        value = getattr(section, item.name)
        key = item.name.replace("_", "-")
        yield _comment(f"{item.metadata['meaning']}")
        if isinstance(value, tuple):
            value = list(value)
        try:
            item.metadata["parse"](value)
        except ValueError:
            yield _commented_line(f"{key} =")
        else:
            yield tomli_w.dumps({key: value})


def _commented(region: RegionSection) -> str:
    text = "[[region]]\n" + "".join(_keys(region))
    return "".join(
        f"{line}\n" if line.startswith("#") else _commented_line(line) for line in text.splitlines()
    )


def _commented_line(line: str) -> str:
    return f"# {line}\n"


def _comment(text: str) -> str:
    """Format a text as a comment; TOML forbids control characters, which become '?'."""
    shown = "".join(char if char.isprintable() else "?" for char in text.strip())
    lines = textwrap.wrap(shown, _WIDTH - 2, break_long_words=False, break_on_hyphens=False)
    return "".join(_commented_line(line) for line in lines)


def _one_of_each_group(findings: Iterable[Finding]) -> list[Finding]:
    """Take one function of each group, which opens once; prefer those bound to vfio-pci."""
    chosen: dict[object, Finding] = {}
    for found in sorted(findings, key=lambda found: found.facts["driver"] != VFIO_DRIVER):
        chosen.setdefault(found.facts["group"], found)
    return list(chosen.values())


def _is_text(path: str) -> bool:
    """Return whether a path is valid UTF-8, as TOML requires."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _name(path: str, used: set[str]) -> str:
    """Derive a region's name from a path, different from those in use."""
    plain = re.sub(r"[^a-z0-9._-]+", "-", path.lower().removeprefix("/dev/")).strip("-._")
    base = (plain or "region")[:_MOST_NAME]
    name, number = base, 2
    while name in used:
        suffix = f"-{number}"
        name, number = base[: _MOST_NAME - len(suffix)] + suffix, number + 1
    return name
