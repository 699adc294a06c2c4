# SPDX-License-Identifier: GPL-2.0-only
"""Kernel modules that the soak loads, and unloads again if unused."""

from __future__ import annotations

import contextlib
import errno
import subprocess
from dataclasses import dataclass
from typing import Final

from soak.abi.modules import delete_module
from soak.errors import UsageError
from soak.machine.changes.entry import Facts, Kind, Machine, Outcome

_SECONDS: Final = 60.0


@dataclass(frozen=True)
class Module:
    """A module that the soak may load. The path `shows` below /sys exists when the kernel has it.

    `brings` lists it and its possible dependencies, users before the modules they use: the unload order.
    """

    shows: str
    brings: tuple[str, ...]


MODULES: Final = {
    "vfio-pci": Module(
        "bus/pci/drivers/vfio-pci",
        # vfio_virqfd is a module of its own up to 6.2; vfio uses iommufd where the kernel has it.
        ("vfio_pci", "vfio_pci_core", "vfio_virqfd", "vfio_iommu_type1", "vfio", "irqbypass", "iommufd"),
    )
}


def is_there(machine: Machine, name: str) -> bool:
    return (machine.sysfs / MODULES[name].shows).exists()


def _is_loaded(machine: Machine, name: str) -> bool:
    """Return whether a module is loaded; a built-in one has no `initstate`."""
    return (machine.sysfs / "module" / name / "initstate").exists()


def _look(machine: Machine, name: str, _wanted: Facts) -> Facts:
    brings = MODULES[name].brings
    return {"new": [module for module in brings if not _is_loaded(machine, module)]}


def _apply(machine: Machine, name: str, _facts: Facts) -> None:
    # modprobe inherits the lock of helpers (close_fds=False), because it may outlive this helper.
    try:
        done = subprocess.run(
            ["modprobe", name], check=False, capture_output=True, text=True, close_fds=False
        )
        reason = done.stderr.strip()
    except FileNotFoundError:
        reason = "modprobe is missing, install kmod"
    if not is_there(machine, name):
        raise UsageError(f"Kernel module {name} cannot be loaded: {reason or 'modprobe gave no reason'}.")


def _undo(machine: Machine, name: str, facts: Facts) -> tuple[Outcome, str]:
    kept = []
    for module in facts["new"]:
        if not _is_loaded(machine, module):
            continue
        if _has_devices(machine, module):
            kept.append(module)
            continue
        try:
            delete_module(module)
        except OSError as error:
            if error.errno in {errno.EAGAIN, errno.EBUSY}:
                kept.append(module)
            elif error.errno != errno.ENOENT:
                raise
    if kept:
        return Outcome.LEFT, f"kernel module {name} stays loaded: {', '.join(kept)} is in use"
    return Outcome.RESTORED, f"kernel module {name} is not loaded, as before"


def _has_devices(machine: Machine, module: str) -> bool:
    """Return whether a driver of the module has a device, which the kernel would let unloading unbind."""
    with contextlib.suppress(FileNotFoundError):
        for driver in (machine.sysfs / "module" / module / "drivers").iterdir():
            # Devices are symbolic links; `module` is the only other one.
            links = [path for path in driver.iterdir() if path.is_symlink()]
            if any(path.name != "module" for path in links):
                return True
    return False


KERNEL_MODULE: Final = Kind(
    look=_look,
    apply=_apply,
    undo=_undo,
    by_hand=lambda _, facts: f"unload the modules with: rmmod {' '.join(facts['new'])}",
    facts={"new": list},
    outlives_boot=False,
    seconds=_SECONDS,
    carries=frozenset({"binding"}),
)
