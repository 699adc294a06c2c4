"""What a lab is asked to soak, and the sizes of its emulated memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from soak.config import Config, RegionSection
from soak.vocabulary import RegionKind

if TYPE_CHECKING:
    from pathlib import Path

    from soak.lab.kernels import Kernel

NVDIMM_SIZE: Final = 1 << 30
DEVICE_DAX_SIZE: Final = 512 << 20
FS_DAX_SIZE: Final = 384 << 20
# A namespace keeps its own struct pages, so less than its size can be mapped.
REGION_SIZES: Final = {
    RegionKind.DEVICE_DAX: 480 << 20,
    RegionKind.FS_DAX: 64 << 20,
    RegionKind.ANONYMOUS: 16 << 20,
}
SPACE_NEEDED: Final = NVDIMM_SIZE + (256 << 20)

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
    directory: Path
    run_id: str
    layers: tuple[Path, ...]
    boot_seconds: float
    linger_seconds: float
    mirror: bool
    began: float
    # What the guest runs, and what to call it while it has not shown a first operation.
    program: tuple[str, ...] = ("run",)
    doing: str = "calibrating on fresh pages"


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
            replace(region, size=region.size or REGION_SIZES[region.kind]) for region in regions
        ),
    )
