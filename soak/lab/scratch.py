"""The files of a boot that QEMU needs: the guest's initramfs and the image that stands for the NVDIMM."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Final, Self

from soak.errors import UsageError
from soak.lab import protocol
from soak.lab.cpio import CpioWriter
from soak.lab.namespaces import nvdimm_alignment, nvdimm_size

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from soak.lab.protocol import Order

_NVDIMM: Final = ".nvdimm"
_CRASH_STORE: Final = ".erst"
CRASH_STORE_SIZE: Final = 1 << 20


class Scratch:
    """Owns the files of a boot in a run directory; they are gone when it is closed.

    What a machine would keep over a reboot, its NVDIMM and the store of its crash logs, stays where
    `keep` says so, and is there from the boot before where `resumed` does.
    """

    def __init__(
        self,
        directory: Path,
        layers: Sequence[Path],
        order: Order,
        *,
        script: Mapping[str, bytes] | None = None,
        keep: bool = False,
        nvdimm: Path | None = None,
    ) -> None:
        """Write the files; `script` are the files that it runs in place of a soak.

        A file for the NVDIMM that is given is kept, and its crash logs beside it.

        Raises:
            UsageError: there is no space for them, or nothing was kept of the boot before.
        """
        self._directory = directory
        self._keep = keep or nvdimm is not None
        self.initrd = directory / ".initrd"
        self.nvdimm = nvdimm or directory / _NVDIMM
        self.crash_store = self.nvdimm.with_name(_CRASH_STORE)
        try:
            if order.resumed:
                self._check_kept()
            self._write_initrd(layers, order, script)
            if not order.resumed:
                for path, size in (
                    (self.nvdimm, nvdimm_size(order.spaces)),
                    (self.crash_store, CRASH_STORE_SIZE),
                ):
                    with path.open("wb") as image:
                        # A store into a hole on a full disk would kill QEMU.
                        os.posix_fallocate(image.fileno(), 0, size)
        except OSError as error:
            self.close()
            raise UsageError(
                f"The lab's files in {directory} cannot be written: {error.strerror}."
            ) from None
        self.nvdimm_size = self.nvdimm.stat().st_size
        self.nvdimm_alignment = nvdimm_alignment(order.spaces)

    def _check_kept(self) -> None:
        if not (self.nvdimm.exists() and self.crash_store.exists()):
            raise UsageError(
                f"The run in {self._directory} cannot be resumed: its NVDIMM was not kept. Start it "
                f"with --keep next time."
            )

    def close(self) -> None:
        self.initrd.unlink(missing_ok=True)
        if not self._keep:
            self.nvdimm.unlink(missing_ok=True)
            self.crash_store.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write_initrd(
        self, layers: Sequence[Path], order: Order, script: Mapping[str, bytes] | None
    ) -> None:
        with self.initrd.open("wb") as out:
            for layer in layers:
                with layer.open("rb") as source:
                    shutil.copyfileobj(source, out)
            archive = CpioWriter(out)
            archive.file(protocol.ORDER_FILE, order.to_json().encode())
            for name, data in (script or {}).items():
                archive.file(name, data)
            archive.close()
