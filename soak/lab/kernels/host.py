# SPDX-License-Identifier: GPL-2.0-only
"""`host`: the kernel that this machine runs, as it is installed."""

from __future__ import annotations

import os
from pathlib import Path

from soak.errors import UsageError


def host_kernel(root: Path = Path("/"), release: str | None = None) -> tuple[Path, Path]:
    """Return the boot image and the directory of modules of the running kernel.

    Raises:
        UsageError: they are not there, or may not be read.
    """
    release = release or os.uname().release
    modules = root / "lib/modules" / release
    # Some distributions keep the image among the modules.
    places = (root / f"boot/vmlinuz-{release}", modules / "vmlinuz")
    image = next((place for place in places if os.path.lexists(place)), None)
    if image is None:
        raise UsageError(
            f"This machine runs Linux {release}, but its boot image {str(places[0])!r} is not there "
            f"(a container has none of its host's kernel): give a file, a kernel build tree or one "
            f"of the other names."
        )
    for path in (image, modules / "modules.dep"):
        try:
            path.open("rb").close()
        except OSError as error:
            raise UsageError(
                f"This machine runs Linux {release}, but {str(path)!r} cannot be read "
                f"({error.strerror}): run the lab as root if you may not, install the kernel's package "
                f"again if it is not there, or give a kernel as a file."
            ) from None
    return image, modules
