"""The address that an exporter listens at. A module of its own: servers are slow to import."""

from __future__ import annotations

import re
from typing import Final

from soak.errors import UsageError

DEFAULT_LISTEN: Final = "127.0.0.1:9823"
_LISTEN: Final = re.compile(r"(?:\[(?P<six>[^\[\]]+)\]|(?P<host>[^:\[\]]+)):(?P<port>[0-9]{1,5})")
_MAX_PORT: Final = 65535


def parse_listen(text: str, option: str = "--listen") -> tuple[str, int]:
    """Read "HOST:PORT", an IPv6 address in brackets; port 0 leaves the choice to the kernel.

    `option` is where the text was given.

    Raises:
        UsageError: the text is no such address.
    """
    match = _LISTEN.fullmatch(text)
    if match is None or int(match["port"]) > _MAX_PORT:
        raise UsageError(
            f"{option} takes HOST:PORT, such as {DEFAULT_LISTEN} or [::1]:9823, not {text!r}."
        )
    return match["six"] or match["host"], int(match["port"])
