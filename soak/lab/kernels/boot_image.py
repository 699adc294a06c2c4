# SPDX-License-Identifier: GPL-2.0-only
"""The header of an x86 boot image (Documentation/arch/x86/boot.rst)."""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, Final

from soak.errors import UsageError
from soak.files.regular import GZIP_MAGIC, open_to_read

if TYPE_CHECKING:
    from pathlib import Path

_BOOT_FLAG_OFFSET, _BOOT_FLAG = 0x1FE, 0xAA55
_MAGIC_OFFSET, _MAGIC = 0x202, b"HdrS"
_VERSION_OFFSET, _SETUP_START = 0x20E, 0x200
_SETUP_SIZE: Final = 0x8000
# A release becomes the name of a directory.
_RELEASE: Final = re.compile(rb"([0-9][!-.0-~]*)[ \0]")


def boot_image_release(image: Path) -> str:
    """Return the kernel release in the header of a bzImage.

    Raises:
        UsageError: the file cannot be read, or is not a bootable x86 kernel.
    """
    try:
        with open_to_read(image) as file:
            setup = file.read(_SETUP_SIZE)
    except OSError as error:
        raise UsageError(
            f"The kernel {str(image)!r} cannot be read ({error.strerror}): give a bzImage or "
            f"vmlinuz file, a kernel build tree, or a name from 'dax-soak lab --help'."
        ) from None
    if setup.startswith(GZIP_MAGIC):
        raise UsageError(
            f"The file {str(image)!r} is compressed with gzip: unpack it, or give a bzImage or vmlinuz."
        )
    if (
        len(setup) <= _VERSION_OFFSET + 2
        or struct.unpack_from("<H", setup, _BOOT_FLAG_OFFSET)[0] != _BOOT_FLAG
        or setup[_MAGIC_OFFSET : _MAGIC_OFFSET + len(_MAGIC)] != _MAGIC
    ):
        raise UsageError(
            f"The file {str(image)!r} is not an x86 boot image (it lacks the header of a bzImage): "
            f"give arch/x86/boot/bzImage or a vmlinuz, not the ELF file vmlinux."
        )
    # The pointer is 0 if the image has no release.
    pointer = struct.unpack_from("<H", setup, _VERSION_OFFSET)[0]
    release = _RELEASE.match(setup, pointer + _SETUP_START)
    if pointer == 0 or release is None:
        raise UsageError(
            f"The boot image {str(image)!r} has no kernel release in its header, or is truncated: "
            f"build or copy it again."
        )
    return release[1].decode()
