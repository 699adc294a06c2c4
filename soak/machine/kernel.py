# SPDX-License-Identifier: GPL-2.0-only
"""Features of the running kernel that a soak uses, and the cost of each missing one."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from soak.abi.aio import Transfers
from soak.abi.bpf import KernelReader
from soak.abi.btf import VMLINUX, Btf, BtfError
from soak.abi.io_uring import try_io_uring
from soak.abi.procfs import foll_pins, symbol_address, task_stack
from soak.abi.vfio import supports_type1
from soak.machine.check_line import Finding, State
from soak.machine.pci import TURN_ON

if TYPE_CHECKING:
    from collections.abc import Callable

_IOMMUS: Final = Path("/sys/class/iommu")
_GROUPS: Final = Path("/sys/kernel/iommu_groups")
_VFIO_PCI: Final = Path("/sys/bus/pci/drivers/vfio-pci")
_VFIO: Final = Path("/dev/vfio/vfio")
_IOMMUFD: Final = Path("/dev/iommu")
_NUMBERS: Final = Path("/proc/devices")
_LOCKDOWN: Final = Path("/sys/kernel/security/lockdown")
_PSTORE: Final = Path("/sys/module/pstore/parameters/backend")
_SYMBOL: Final = "vmemmap_base"
# The start of the kernel's code, a symbol of every kernel.
_TEXT: Final = "_stext"
_WORD: Final = 8
_AS_ROOT: Final = "run this as root"


class LackingError(Exception):
    """The kernel lacks the feature, or denies it to this process; the message is the reason."""


@dataclass(frozen=True)
class Offer:
    """A kernel feature that a soak uses. `look` describes it, or raises LackingError."""

    subject: str
    look: Callable[[], str]
    cost: str
    remedy: str


def kernel_findings() -> list[Finding]:
    """Try every kernel feature that a soak uses."""
    return [_try(offer) for offer in OFFERS]


def _try(offer: Offer) -> Finding:
    facts = {"cost": offer.cost}
    try:
        return Finding(offer.subject, State.OK, offer.look(), facts=facts)
    except PermissionError as error:
        remedy = _AS_ROOT if os.geteuid() else offer.remedy
        return _missing(offer, error.strerror or "not permitted", remedy)
    except OSError as error:
        return _missing(offer, _reason(error), offer.remedy)
    except (LackingError, LookupError, BtfError) as error:
        return _missing(offer, str(error), offer.remedy)


def _missing(offer: Offer, reason: str, remedy: str) -> Finding:
    return Finding(offer.subject, State.MISSING, f"{reason}: {offer.cost}", remedy, {"cost": offer.cost})


def _reason(error: OSError) -> str:
    if error.filename is not None and Path(str(error.filename)).is_absolute():
        return f"{error.filename}: {error.strerror}"
    return f"{error.strerror}"


def _iommu() -> str:
    # A unit alone proves nothing: the iommufd selftest registers a mock one.
    groups = list(_GROUPS.iterdir()) if _GROUPS.exists() else []
    if not groups:
        raise LackingError("no IOMMU is on")
    units = sorted(entry.name for entry in _IOMMUS.iterdir())
    return f"{len(groups)} groups, by {', '.join(units)}"


def _type1() -> str:
    if not supports_type1():
        raise LackingError(f"{_VFIO} has no type1 driver")
    return f"{_VFIO} with the type1 driver"


def _vfio_pci() -> str:
    if not _VFIO_PCI.exists():
        raise LackingError("the driver vfio-pci is not loaded")
    bound = [entry.name for entry in _VFIO_PCI.iterdir() if ":" in entry.name]
    return f"loaded, {len(bound)} functions bound to it"


def _iommufd() -> str:
    if not _IOMMUFD.exists():
        raise LackingError(f"no {_IOMMUFD}")
    return str(_IOMMUFD)


def _vfio_cdev() -> str:
    # drivers/vfio/device_cdev.c allocates device numbers under this name before any function is bound.
    if "vfio-dev" not in _NUMBERS.read_text().split():
        raise LackingError("functions bound to vfio-pci get no device file")
    return "functions bound to vfio-pci get a device file in /dev/vfio/devices"


def _io_uring() -> str:
    try:
        try_io_uring()
    except OSError as error:
        reasons = {errno.ENOSYS: "the kernel lacks it", errno.EPERM: "it is disabled"}
        raise LackingError(reasons.get(error.errno or 0, _reason(error))) from None
    return "available"


def _aio() -> str:
    with Transfers():
        return "available"


def _kallsyms() -> str:
    symbol_address(_SYMBOL)
    return "addresses of kernel symbols can be read"


def _bpf() -> str:
    """Read a word of kernel text through a BPF test run, as the leak detector does."""
    with KernelReader(_WORD) as reader:
        if not any(reader.read(symbol_address(_TEXT))):
            raise LackingError("a test run reads zeros at the kernel's code")
    return "test runs read kernel memory"


def _btf() -> str:
    layout = Btf.of_running_kernel().structure("page")
    return f"{VMLINUX}, struct page has {layout.size} bytes"


def _lockdown() -> str:
    """Read the mode, which is in brackets (security/lockdown/lockdown.c)."""
    if not _LOCKDOWN.exists():
        return "the kernel has no lockdown, or securityfs is not mounted"
    mode = _LOCKDOWN.read_text().partition("[")[2].partition("]")[0]
    if mode == "confidentiality":
        raise LackingError("locked down for confidentiality")
    return f"mode {mode}"


def _stacks() -> str:
    task_stack(os.getpid())
    return "/proc/PID/stack can be read"


def _pins() -> str:
    try:
        foll_pins()
    except KeyError:
        raise LackingError("/proc/vmstat counts no nr_foll_pin_acquired") from None
    return "/proc/vmstat counts them"


def _pstore() -> str:
    backend = _PSTORE.read_text().strip() if _PSTORE.exists() else "(null)"
    if backend == "(null)":
        raise LackingError("no backend")
    return f"backend {backend}"


OFFERS: Final = (
    Offer("IOMMU", _iommu, "no mappings over vfio", TURN_ON),
    Offer(
        "vfio type1",
        _type1,
        "no pins by vfio type1, so no mappers",
        "'modprobe vfio_iommu_type1'; the kernel needs CONFIG_VFIO_IOMMU_TYPE1",
    ),
    Offer(
        "vfio-pci",
        _vfio_pci,
        "no PCI function can be given to vfio",
        "'modprobe vfio-pci'; the kernel needs CONFIG_VFIO_PCI",
    ),
    Offer(
        "iommufd",
        _iommufd,
        "no pins by iommufd",
        "'modprobe iommufd'; the kernel needs CONFIG_IOMMUFD (Debian's kernels lack it, 'dax-soak "
        "lab --kernel build:6.12' has it)",
    ),
    Offer(
        "vfio cdev",
        _vfio_cdev,
        "no device can be attached to iommufd",
        "the kernel needs CONFIG_VFIO_DEVICE_CDEV (Linux 6.6)",
    ),
    Offer(
        "io_uring",
        _io_uring,
        "no pins by registered buffers",
        "'sysctl kernel.io_uring_disabled=0'; the kernel needs CONFIG_IO_URING",
    ),
    Offer("aio", _aio, "no short pins by O_DIRECT", "the kernel needs CONFIG_AIO"),
    Offer(
        "BPF",
        _bpf,
        "no leak detection (page references cannot be read): the verdict is unknown",
        "run as root; the kernel needs CONFIG_BPF_SYSCALL and CONFIG_BPF_EVENTS",
    ),
    Offer(
        "BTF",
        _btf,
        "no leak detection (struct page cannot be decoded): the verdict is unknown",
        "the kernel needs CONFIG_DEBUG_INFO_BTF",
    ),
    Offer(
        "kallsyms",
        _kallsyms,
        "no leak detection (struct pages cannot be located): the verdict is unknown",
        "run as root with 'sysctl kernel.kptr_restrict=1' or 0; the kernel needs CONFIG_KALLSYMS_ALL",
    ),
    Offer(
        "lockdown",
        _lockdown,
        "no leak detection (kernel memory cannot be read): the verdict is unknown",
        "boot without lockdown=confidentiality",
    ),
    Offer(
        "stacks",
        _stacks,
        "evidence of stalls has no stacks",
        "run as root; the kernel needs CONFIG_STACKTRACE",
    ),
    Offer(
        "pin counters",
        _pins,
        "leaks are not cross-checked against the kernel's pin counters",
        "run as root; the kernel must be 5.7 or newer",
    ),
    Offer(
        "pstore",
        _pstore,
        "the kernel log is lost after a panic",
        "'modprobe efi_pstore' or 'modprobe erst_dbg' if the firmware supports it, or ramoops",
    ),
)
