"""The files of a boot that QEMU needs: the guest's initramfs and the image that stands for the NVDIMM."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Self

from soak.errors import UsageError
from soak.lab import protocol
from soak.lab.cpio import CpioWriter

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from soak.lab.protocol import Order


class Scratch:
    """Owns the files of one boot in a run directory; they are gone when it is closed."""

    def __init__(
        self,
        directory: Path,
        layers: Sequence[Path],
        order: Order,
        nvdimm_size: int,
        *,
        script: bytes | None = None,
    ) -> None:
        """Write the files; `script` is what the guest runs in place of a soak.

        Raises:
            UsageError: there is no space for them.
        """
        self._directory = directory
        self.initrd, self.nvdimm = directory / ".initrd", directory / ".nvdimm"
        try:
            self._write_initrd(layers, order, script)
            with self.nvdimm.open("wb") as image:
                # A store into a hole on a full disk would kill QEMU.
                os.posix_fallocate(image.fileno(), 0, nvdimm_size)
        except OSError as error:
            self.close()
            raise UsageError(
                f"The lab's files in {directory} cannot be written: {error.strerror}."
            ) from None

    def close(self) -> None:
        self.initrd.unlink(missing_ok=True)
        self.nvdimm.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write_initrd(self, layers: Sequence[Path], order: Order, script: bytes | None) -> None:
        with self.initrd.open("wb") as out:
            for layer in layers:
                with layer.open("rb") as source:
                    shutil.copyfileobj(source, out)
            archive = CpioWriter(out)
            archive.file(protocol.ORDER_FILE, order.to_json().encode())
            if script is not None:
                archive.file(protocol.SCRIPT_FILE, script)
            archive.close()
