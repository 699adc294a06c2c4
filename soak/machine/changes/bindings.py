# SPDX-License-Identifier: GPL-2.0-only
"""Drivers of PCI functions: giving one to vfio-pci, and giving it back.

Everything goes through sysfs (Documentation/ABI/testing/sysfs-bus-pci). Unbinding waits for whoever uses
the device, without an end.
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
    """Say which driver alone may take the function; an empty line takes that back."""
    (_device(machine, function) / "driver_override").write_text(f"{driver or ''}\n")


def _unbind(machine: Machine, function: str) -> None:
    (_device(machine, function) / "driver/unbind").write_text(function)


def _look(machine: Machine, function: str, _wanted: Facts) -> Facts:
    if not _FUNCTION.fullmatch(function) or not _device(machine, function).exists():
        raise UsageError(f"There is no PCI function {function!r} on this machine: 'lspci -D' lists them.")
    if not (_bus(machine) / "drivers" / VFIO_PCI).exists():
        raise UsageError(
            f"The PCI function {function} cannot be given to {VFIO_PCI}, which the kernel does not "
            f"have: it needs CONFIG_VFIO_PCI, and 'modprobe {VFIO_PCI}' where that is a module."
        )
    return {"driver": driver_of(machine, function), "override": _override(machine, function)}


def _apply(machine: Machine, function: str, facts: Facts) -> None:
    _set_override(machine, function, VFIO_PCI)
    if facts["driver"] is not None:
        _unbind(machine, function)
    (_bus(machine) / "drivers_probe").write_text(function)
    if (driver := driver_of(machine, function)) != VFIO_PCI:
        raise UsageError(
            f"{VFIO_PCI} did not take the PCI function {function} (its driver is "
            f"{driver or 'none'}): the IOMMU must be on (such as intel_iommu=on on the kernel's "
            f"command line), and the kernel's log says more."
        )


def _undo(machine: Machine, function: str, facts: Facts) -> tuple[Outcome, str]:
    """Go back from whatever state: each step is skipped where it was done."""
    if not _device(machine, function).exists():
        return Outcome.LEFT, f"PCI function {function} is not in this machine any more"
    before, override = facts["driver"], facts["override"]
    now, override_now = driver_of(machine, function), _override(machine, function)
    ours = override_now in {VFIO_PCI, override}
    if not ours or now not in {None, before, VFIO_PCI}:
        return Outcome.LEFT, (
            f"PCI function {function} was given to another driver meanwhile (driver "
            f"{now or 'none'}, driver_override {override_now or 'none'}): it is left alone"
        )
    if now == VFIO_PCI != before:
        if override_now != VFIO_PCI:
            return Outcome.LEFT, (
                f"PCI function {function} was given to {VFIO_PCI} by another program; it is left alone"
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
        f"end whatever uses it, then: echo {function} > {device}/driver/unbind; "
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
