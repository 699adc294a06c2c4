# SPDX-License-Identifier: GPL-2.0-only
"""`host`: the installed kernel that this machine runs."""

from __future__ import annotations

import os
from pathlib import Path

from soak.errors import UsageError


def host_kernel(root: Path = Path("/"), release: str | None = None) -> tuple[Path, Path]:
    """Return the boot image and the directory of modules of the running kernel.

    Raises:
        UsageError: they are missing, or cannot be read.
    """
    release = release or os.uname().release
    modules = root / "lib/modules" / release
    # Some distributions keep the image in the modules' directory.
    places = (root / f"boot/vmlinuz-{release}", modules / "vmlinuz")
    image = next((place for place in places if os.path.lexists(place)), None)
    if image is None:
        raise UsageError(
            f"The boot image {str(places[0])!r} of this machine's Linux {release} is missing (a "
            f"container does not have its host's): give a file, a kernel build tree or another name."
        )
    for path in (image, modules / "modules.dep"):
        try:
            path.open("rb").close()
        except OSError as error:
            raise UsageError(
                f"The file {str(path)!r} of this machine's Linux {release} cannot be read "
                f"({error.strerror}): run the lab as root, reinstall the kernel's package, or give "
                f"a kernel as a file."
            ) from None
    return image, modules
