# SPDX-License-Identifier: GPL-2.0-only
"""The files of a boot that QEMU needs: the guest's initramfs and the image that stands for the NVDIMM."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from typing import IO, TYPE_CHECKING, Final, Self

from soak.errors import UsageError
from soak.lab import protocol
from soak.lab.guest.namespaces import nvdimm_alignment, nvdimm_size
from soak.lab.image.cpio import CpioWriter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from soak.lab.protocol import Order

_NVDIMM: Final = ".nvdimm"
_CRASH_STORE: Final = ".erst"
CRASH_STORE_SIZE: Final = 1 << 20


class Scratch:
    """Owns the files of a boot, which QEMU inherits as descriptors.

    They have no name, so that a kill of any process leaves nothing behind. With `keep`, the NVDIMM and
    the store of crash logs, which survive a reboot of a real machine, have a name in the run directory;
    with `resumed` they are those of the previous boot.
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
        kept = (nvdimm or directory / _NVDIMM) if keep or nvdimm is not None else None
        with contextlib.ExitStack() as stack:
            try:
                initrd = self._nameless(stack)
                _write_initrd(initrd, layers, order, script)
                images = [
                    self._image(stack, kept, nvdimm_size(order.spaces), resumed=order.resumed),
                    self._image(
                        stack,
                        kept.with_name(_CRASH_STORE) if kept else None,
                        CRASH_STORE_SIZE,
                        resumed=order.resumed,
                    ),
                ]
            except OSError as error:
                raise UsageError(
                    f"The lab's files in {directory} cannot be written: {error.strerror}."
                ) from None
            self.initrd, self.nvdimm, self.crash_store = (file.fileno() for file in (initrd, *images))
            self.nvdimm_size = os.fstat(self.nvdimm).st_size
            self._files = stack.pop_all()
        self.nvdimm_alignment = nvdimm_alignment(order.spaces)

    def _nameless(self, stack: contextlib.ExitStack) -> IO[bytes]:
        return stack.enter_context(tempfile.TemporaryFile(dir=self._directory))

    def _image(
        self, stack: contextlib.ExitStack, path: Path | None, size: int, *, resumed: bool
    ) -> IO[bytes]:
        """Open what stands for memory that lasts, or make it."""
        if resumed:
            if path is None or not path.exists():
                raise UsageError(
                    f"The run in {self._directory} cannot be resumed: its NVDIMM was not kept. Start "
                    f"it with --keep next time."
                )
            return stack.enter_context(path.open("r+b"))
        image = self._nameless(stack) if path is None else stack.enter_context(path.open("w+b"))
        # A store into a hole on a full disk would kill QEMU.
        os.posix_fallocate(image.fileno(), 0, size)
        return image

    def close(self) -> None:
        self._files.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _write_initrd(
    out: IO[bytes], layers: Sequence[Path], order: Order, script: Mapping[str, bytes] | None
) -> None:
    for layer in layers:
        with layer.open("rb") as source:
            shutil.copyfileobj(source, out)
    archive = CpioWriter(out)
    archive.file(protocol.ORDER_FILE, order.to_json().encode())
    for name, data in (script or {}).items():
        archive.file(name, data)
    archive.close()
    out.flush()
