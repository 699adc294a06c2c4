# SPDX-License-Identifier: GPL-2.0-only
"""Drivers of PCI functions: binds a function to vfio-pci, and back.

All through sysfs (Documentation/ABI/testing/sysfs-bus-pci). Unbinding waits, without a timeout, until the
device is unused.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from soak.errors import UsageError
from soak.machine.changes.entry import Facts, Kind, Machine, Outcome

if TYPE_CHECKING:
    from pathlib import Path

VFIO_PCI: Final = "vfio-pci"
_FUNCTION: Final = re.compile(r"[0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_NO_OVERRIDE: Final = "(null)"  # as driver_override_show() prints it
_SECONDS: Final = 30.0


def _bus(machine: Machine) -> Path:
    return machine.sysfs / "bus/pci"


def _device(machine: Machine, function: str) -> Path:
    return _bus(machine) / "devices" / function


def driver_of(machine: Machine, function: str) -> str | None:
    """Return the driver that a PCI function is bound to."""
    try:
        return (_device(machine, function) / "driver").readlink().name
    except FileNotFoundError:
        return None


def _override(machine: Machine, function: str) -> str | None:
    text = (_device(machine, function) / "driver_override").read_text().strip()
    return None if text == _NO_OVERRIDE else text


def _set_override(machine: Machine, function: str, driver: str | None) -> None:
    """Set the only driver that may bind the function; an empty line clears it."""
    (_device(machine, function) / "driver_override").write_text(f"{driver or ''}\n")


def _unbind(machine: Machine, function: str) -> None:
    (_device(machine, function) / "driver/unbind").write_text(function)


def _look(machine: Machine, function: str, _wanted: Facts) -> Facts:
    if not _FUNCTION.fullmatch(function) or not _device(machine, function).exists():
        raise UsageError(f"This machine has no PCI function {function!r}: 'lspci -D' lists them.")
    if not (_bus(machine) / "drivers" / VFIO_PCI).exists():
        raise UsageError(
            f"PCI function {function} cannot be bound to {VFIO_PCI}: the driver is not loaded. Run "
            f"'modprobe {VFIO_PCI}'; the kernel needs CONFIG_VFIO_PCI."
        )
    return {"driver": driver_of(machine, function), "override": _override(machine, function)}


def _apply(machine: Machine, function: str, facts: Facts) -> None:
    _set_override(machine, function, VFIO_PCI)
    if facts["driver"] is not None:
        _unbind(machine, function)
    (_bus(machine) / "drivers_probe").write_text(function)
    if (driver := driver_of(machine, function)) != VFIO_PCI:
        raise UsageError(
            f"{VFIO_PCI} did not bind PCI function {function} (its driver is {driver or 'none'}): "
            f"enable the IOMMU (intel_iommu=on on Intel), and see the kernel log."
        )


def _undo(machine: Machine, function: str, facts: Facts) -> tuple[Outcome, str]:
    """Undo from any state; skips each step that is already undone."""
    if not _device(machine, function).exists():
        return Outcome.LEFT, f"PCI function {function} is no longer in this machine"
    before, override = facts["driver"], facts["override"]
    now, override_now = driver_of(machine, function), _override(machine, function)
    ours = override_now in {VFIO_PCI, override}
    if not ours or now not in {None, before, VFIO_PCI}:
        return Outcome.LEFT, (
            f"PCI function {function} is left alone: another program bound it to another driver "
            f"(driver {now or 'none'}, driver_override {override_now or 'none'})"
        )
    if now == VFIO_PCI != before:
        if override_now != VFIO_PCI:
            return Outcome.LEFT, (
                f"PCI function {function} is left alone: another program bound it to {VFIO_PCI}"
            )
        _unbind(machine, function)
    if override_now != override:
        _set_override(machine, function, override)
    if before is not None and driver_of(machine, function) is None:
        driver = _bus(machine) / "drivers" / before
        if not driver.exists():
            raise UsageError(f"its driver {before} is not loaded")
        (driver / "bind").write_text(function)
    if (now := driver_of(machine, function)) != before:
        raise UsageError(f"its driver is {now or 'none'} and was {before or 'none'}")
    return Outcome.RESTORED, f"PCI function {function} has its driver again: {before or 'none'}"


def _by_hand(function: str, facts: Facts) -> str:
    device = f"/sys/bus/pci/devices/{function}"
    bind = f"; echo {function} > /sys/bus/pci/drivers/{facts['driver']}/bind"
    return (
        f"stop the processes that use it, then: echo {function} > {device}/driver/unbind; "
        f"echo {facts['override'] or ''} > {device}/driver_override{bind if facts['driver'] else ''}"
    )


BINDING: Final = Kind(
    look=_look,
    apply=_apply,
    undo=_undo,
    by_hand=_by_hand,
    facts={"driver": (str, type(None)), "override": (str, type(None))},
    outlives_boot=False,
    seconds=_SECONDS,
)
