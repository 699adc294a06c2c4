# SPDX-License-Identifier: GPL-2.0-only
"""The parameters of a lab run, and the sizes of its emulated memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from soak.config.sections import Config, RegionSection
from soak.lab.guest.namespaces import Namespace, nvdimm_size
from soak.model.vocabulary import RegionKind

if TYPE_CHECKING:
    from soak.lab.kernels.store import Kernel

# Mappable sizes; a namespace is larger, as it also holds its own struct pages.
REGION_SIZES: Final = {
    RegionKind.DEVICE_DAX: 480 << 20,
    RegionKind.FS_DAX: 64 << 20,
    RegionKind.ANONYMOUS: 16 << 20,
}
_BESIDE_NVDIMM: Final = 256 << 20

# Placeholder of a path that only the guest knows.
_IN_LAB: Final = "lab"


@dataclass(frozen=True)
class LabRequest:
    """The parameters of one lab run. `began` is the monotonic time of the command's start."""

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
    # Further `-device` arguments of QEMU.
    devices: tuple[str, ...] = ()
    # The guest's command, and the text to show until its first operation.
    program: tuple[str, ...] = ("run",)
    doing: str = "calibrating on fresh pages"
    # End the run as soon as every promised cell is covered.
    until_covered: bool = False
    # Continue the run in `directory`; keep the NVDIMM so that it can be continued again.
    resumed: bool = False
    keep: bool = False
    # Set at boot: each attempt has its own run.
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
    """Return the bytes that the files of a boot take in the run directory."""
    return nvdimm_size(namespaces(config)) + _BESIDE_NVDIMM


def lab_config(config: Config | None) -> Config:
    """Complete a configuration with the lab's default regions and sizes.

    Host and guest plan with the same sizes, so the host can print choices without a guest.
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
