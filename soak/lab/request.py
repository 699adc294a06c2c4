# SPDX-License-Identifier: GPL-2.0-only
"""What a lab is asked to soak, and the sizes of its emulated memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from soak.config.sections import Config, RegionSection
from soak.lab.guest.namespaces import Namespace, nvdimm_size
from soak.model.vocabulary import RegionKind

if TYPE_CHECKING:
    from soak.lab.kernels.store import Kernel

# A namespace keeps its own struct pages, so less than its size can be mapped.
REGION_SIZES: Final = {
    RegionKind.DEVICE_DAX: 480 << 20,
    RegionKind.FS_DAX: 64 << 20,
    RegionKind.ANONYMOUS: 16 << 20,
}
_BESIDE_NVDIMM: Final = 256 << 20

# Stands for a path that only the guest knows.
_IN_LAB: Final = "lab"


@dataclass(frozen=True)
class LabRequest:
    """What somebody wants soaked."""

    kernel: Kernel
    config: Config
    filesystem: str
    faults: tuple[tuple[str, float], ...]
    append: str
    listen: str
    strict: bool
    layers: tuple[Path, ...]
    linger_seconds: float
    mirror: bool
    began: float
    # More of QEMU's command line, a `-device` each.
    devices: tuple[str, ...] = ()
    # What the guest runs, and what to call it while it has not shown a first operation.
    program: tuple[str, ...] = ("run",)
    doing: str = "calibrating on fresh pages"
    # Whether the run ends as soon as its verdict needs nothing more.
    until_covered: bool = False
    # Whether the run goes on in `directory`, and whether it shall be possible to go on once more.
    resumed: bool = False
    keep: bool = False
    # Given when it is booted: each attempt has a run of its own.
    directory: Path = Path()
    run_id: str = ""
    boot_seconds: float = 0.0


def namespaces(config: Config) -> list[Namespace]:
    """Return the namespaces that a configuration's regions need."""
    return [
        Namespace.of(region.name, region.kind, region.size, region.alignment)
        for region in config.regions
        if region.kind is not RegionKind.ANONYMOUS
    ]


def space_needed(config: Config) -> int:
    """Return how many bytes the files of a boot take in the run directory."""
    return nvdimm_size(namespaces(config)) + _BESIDE_NVDIMM


def lab_config(config: Config | None) -> Config:
    """Return a configuration with the lab's own regions and sizes, where it says nothing of them.

    Host and guest plan with the same sizes, so that choices can be printed without a guest.
    """
    config = config or Config()
    regions = config.regions or tuple(
        RegionSection(kind, kind, _IN_LAB, size) for kind, size in REGION_SIZES.items()
    )
    workload = config.workload
    if not workload.slow_devices:
        workload = replace(workload, slow_devices=(_IN_LAB,), fast_devices=(_IN_LAB,))
    return replace(
        config,
        workload=workload,
        regions=tuple(
            replace(
                region,
                size=region.size or REGION_SIZES[region.kind],
                # The guest makes its namespaces for this run alone.
                recyclable=region.kind is RegionKind.DEVICE_DAX,
            )
            for region in regions
        ),
    )
