# SPDX-License-Identifier: GPL-2.0-only
"""The virtual machine: what it consists of, and which accelerator runs it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from soak.errors import UsageError
from soak.lab.guest.disks import PARAMETERS as DISK_PARAMETERS
from soak.lab.guest.namespaces import LABEL_SIZE
from soak.lab.host.host_clock import counter_khz
from soak.lab.protocol import CONTROL_PORT, JOURNAL_PORT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

BINARY: Final = "qemu-system-x86_64"
PACKAGE: Final = "qemu-system-x86"
# Has QEMU die with the process that starts it.
_STARTER: Final = "setpriv"
MEMORY_MIB: Final = 2560
# With "enhanced rep movsb" a kernel copies and clears memory with that, which TCG does byte by byte.
_PROCESSORS: Final = {
    "kvm": ("-accel", "kvm", "-cpu", "max", "-smp", "2"),
    "tcg": ("-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max,erms=off,fsrm=off", "-smp", "2"),
}
_KVM: Final = Path("/dev/kvm")
_FIRST_EDU_SLOT: Final = 0x10
_VERSION_SECONDS: Final = 60
_VIRTUALISATION_FLAGS: Final = re.compile(r"^flags\s*:.*\b(vmx|svm)\b", re.MULTILINE)

# The serial console is the guest's last word, the IOMMU is off by default in Debian's kernels, an NMI
# must show where a guest that hangs is stuck, and a panic must end the machine.
_APPEND: Final = (
    "console=ttyS0 panic=-1 intel_iommu=on unknown_nmi_panic=1 tsc=reliable loglevel=5 rdinit=/init"
)


@dataclass(frozen=True)
class Machine:
    """All that QEMU is told.

    It inherits its ports, descriptors of connected sockets, and the files of the boot, which need not
    have a name.
    """

    kernel: Path
    initrd: int
    nvdimm: int
    nvdimm_size: int
    nvdimm_alignment: int
    crash_store: int
    crash_store_size: int
    ledger: Path
    ledger_size: int
    console: Path
    functions: int
    accelerator: str
    append: str
    monitor_port: int
    journal_port: int
    control_port: int
    devices: tuple[str, ...] = ()

    @property
    def inherited(self) -> tuple[int, ...]:
        """The descriptors that QEMU needs."""
        files = (self.initrd, self.nvdimm, self.crash_store)
        return (*files, self.monitor_port, self.journal_port, self.control_port)

    def arguments(self) -> list[str]:
        """Return QEMU's command line. It dies with the process that starts it."""
        return [
            _STARTER,
            "--pdeathsig",
            "KILL",
            "--",
            BINARY,
            *_PROCESSORS[self.accelerator],
            "-machine",
            "q35,nvdimm=on",
            "-m",
            f"{MEMORY_MIB}M,slots=4,maxmem=16G",
            "-nodefaults",
            "-no-reboot",
            "-display",
            "none",
            *self._memory("nvdimm", _by_number(self.nvdimm), self.nvdimm_size),
            "-device",
            f"nvdimm,memdev=nvdimm,label-size={LABEL_SIZE}",
            "-device",
            "intel-iommu,intremap=on,caching-mode=on,device-iotlb=on",
            *self._functions(),
            *self._memory("ledger", self.ledger, self.ledger_size),
            "-device",
            "ivshmem-plain,memdev=ledger",
            # Where the kernel leaves its last words (ERST, seen as pstore) for the boot that follows.
            *self._memory("erst", _by_number(self.crash_store), self.crash_store_size),
            "-device",
            "acpi-erst,memdev=erst",
            "-device",
            "virtio-rng-pci",
            "-device",
            "virtio-serial-pci",
            *self._port("journal", self.journal_port, JOURNAL_PORT),
            *self._port("control", self.control_port, CONTROL_PORT),
            "-chardev",
            f"socket,id=monitor,fd={self.monitor_port}",
            "-mon",
            "chardev=monitor,mode=control",
            *(word for device in self.devices for word in _option(device)),
            # Appended to, so that it can be cut short meanwhile.
            "-chardev",
            f"file,id=console,path={_escaped(self.console)},append=on",
            "-serial",
            "chardev:console",
            "-kernel",
            str(self.kernel),
            "-initrd",
            str(_by_number(self.initrd)),
            "-append",
            " ".join((_APPEND, DISK_PARAMETERS, *self._clock(), self.append)).strip(),
        ]

    def _clock(self) -> Iterator[str]:
        """Yield what gives an emulated guest a clock that is right; one under KVM has the host's."""
        rate = counter_khz() if self.accelerator == "tcg" else None
        if rate is not None:
            yield f"tsc_early_khz={rate}"

    def _memory(self, name: str, path: Path, size: int) -> Sequence[str]:
        backend = f"memory-backend-file,id={name},share=on,mem-path={_escaped(path)},size={size}"
        if name == "nvdimm":
            # So that a namespace can be aligned to 1 GiB: guests see the memory where the host aligns it.
            backend += f",align={self.nvdimm_alignment}"
        return ("-object", backend)

    def _functions(self) -> list[str]:
        """Return edu devices, each in a slot and so in an IOMMU group of its own."""
        devices = []
        for index in range(self.functions):
            slot = f"{_FIRST_EDU_SLOT + index:02x}.0"
            devices += ["-device", f"edu,addr={slot},dma_mask=0xffffffffffffffff"]
        return devices

    def _port(self, name: str, descriptor: int, seen_as: str) -> Sequence[str]:
        return (
            "-chardev",
            f"socket,id={name},fd={descriptor}",
            "-device",
            f"virtserialport,chardev={name},name={seen_as}",
        )


def _option(text: str) -> tuple[str, str]:
    """Return the option of one more device, or of what it needs: `-blockdev driver=file,...`."""
    option, _, value = text.rpartition(" ")
    return option or "-device", value


def find_qemu() -> str:
    """Return QEMU's version.

    Raises:
        UsageError: it is not there, or does not start; the sentence says what to do.
    """
    for program, package in ((BINARY, PACKAGE), (_STARTER, "util-linux")):
        if shutil.which(program) is None:
            raise UsageError(
                f"{program} is not installed: 'apt-get install --no-install-recommends {package}' gets "
                f"it."
            )
    try:
        shown = subprocess.run(
            [BINARY, "--version"], check=False, capture_output=True, text=True, timeout=_VERSION_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"{BINARY} cannot be started: {error}. Install {PACKAGE} again.") from None
    if shown.returncode != 0:
        raise UsageError(
            f"'{BINARY} --version' failed (exit code {shown.returncode}): {shown.stderr.strip()}. "
            f"Install {PACKAGE} again."
        )
    match = re.search(r"version (\S+)", shown.stdout)
    return match[1] if match else "of an unknown version"


def accelerators(wanted: str) -> tuple[list[str], str]:
    """Return what to try, in order, and a sentence that says why.

    /dev/kvm alone is no proof: there are hosts on which it opens, answers, and no stock kernel starts.
    """
    if wanted != "auto":
        return [wanted], f"accelerator {wanted}, as asked"
    if not os.access(_KVM, os.R_OK | os.W_OK):
        return ["tcg"], f"emulation, because {_KVM} cannot be used"
    if not _VIRTUALISATION_FLAGS.search(Path("/proc/cpuinfo").read_text()):
        return ["tcg"], f"emulation: {_KVM} is there, but the processor shows neither vmx nor svm"
    return ["kvm", "tcg"], "KVM, with emulation to fall back on if the guest does not start"


def _by_number(descriptor: int) -> Path:
    """Return the name under which a program finds a file that it has inherited."""
    return Path(f"/proc/self/fd/{descriptor}")


def _escaped(path: Path) -> str:
    """Double the commas, which separate QEMU's options."""
    return str(path).replace(",", ",,")
