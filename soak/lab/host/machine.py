# SPDX-License-Identifier: GPL-2.0-only
"""The virtual machine of a boot: what it consists of, as QEMU's command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from soak import run_directory
from soak.lab.guest.disks import PARAMETERS as DISK_PARAMETERS
from soak.lab.guest.namespaces import LABEL_SIZE
from soak.lab.host.host_clock import counter_khz
from soak.lab.host.qemu import BINARY, MEMORY_MIB, STARTER
from soak.lab.host.scratch import CRASH_STORE_SIZE
from soak.lab.protocol import CONTROL_PORT, JOURNAL_PORT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from soak.lab.host.scratch import Scratch
    from soak.lab.request import LabRequest

# With "enhanced rep movsb" a kernel copies and clears memory with that, which TCG does byte by byte.
_PROCESSORS: Final = {
    "kvm": ("-accel", "kvm", "-cpu", "max", "-smp", "2"),
    "tcg": ("-accel", "tcg,thread=multi,tb-size=512", "-cpu", "max,erms=off,fsrm=off", "-smp", "2"),
}
_FIRST_EDU_SLOT: Final = 0x10

# The serial console is the guest's last word, the IOMMU is off by default in Debian's kernels, an NMI
# must show where a guest that hangs is stuck, and a panic must end the machine. On a loaded host the
# timer is late, and a kernel that checks it panics (timer_irq_works(), arch/x86/kernel/apic/io_apic.c).
_APPEND: Final = (
    "console=ttyS0 panic=-1 intel_iommu=on unknown_nmi_panic=1 tsc=reliable no_timer_check loglevel=5 "
    "rdinit=/init"
)


class Ports(NamedTuple):
    """The descriptors of connected sockets that QEMU inherits as its ports."""

    monitor: int
    journal: int
    control: int


@dataclass(frozen=True)
class Machine:
    """The parts of a virtual machine; sizes and alignments in bytes.

    `initrd`, `nvdimm` and `crash_store` are descriptors of files, which need not have a name.
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
    devices: tuple[str, ...] = ()

    @classmethod
    def of_boot(cls, request: LabRequest, accelerator: str, scratch: Scratch, ledger_size: int) -> Self:
        """Return the machine that boots a request: ledger and console lie in its directory."""
        unpacked = request.kernel.unpacked if accelerator == "tcg" else None
        return cls(
            kernel=unpacked or request.kernel.image,
            initrd=scratch.initrd,
            nvdimm=scratch.nvdimm,
            nvdimm_size=scratch.nvdimm_size,
            nvdimm_alignment=scratch.nvdimm_alignment,
            crash_store=scratch.crash_store,
            crash_store_size=CRASH_STORE_SIZE,
            ledger=request.directory / run_directory.LEDGER,
            ledger_size=ledger_size,
            console=request.directory / run_directory.CONSOLE,
            functions=request.config.workload.mappers + 1,
            accelerator=accelerator,
            append=request.append,
            devices=request.devices,
        )

    @property
    def files(self) -> tuple[int, ...]:
        """The descriptors of files that QEMU inherits."""
        return (self.initrd, self.nvdimm, self.crash_store)

    def arguments(self, ports: Ports) -> list[str]:
        """Return QEMU's command line. It dies with the process that starts it."""
        return [
            STARTER,
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
            *self._port("journal", ports.journal, JOURNAL_PORT),
            *self._port("control", ports.control, CONTROL_PORT),
            "-chardev",
            f"socket,id=monitor,fd={ports.monitor}",
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


def _by_number(descriptor: int) -> Path:
    """Return the name under which a program finds a file that it has inherited."""
    return Path(f"/proc/self/fd/{descriptor}")


def _escaped(path: Path) -> str:
    """Double the commas, which separate QEMU's options."""
    return str(path).replace(",", ",,")
