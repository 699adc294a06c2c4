# SPDX-License-Identifier: GPL-2.0-only
"""The address that metrics are served at. A module of its own: servers are slow to import."""

from __future__ import annotations

import re
from typing import Final

from soak.errors import UsageError

DEFAULT_LISTEN: Final = "127.0.0.1:9823"
# What no resolver can be asked for is refused here: sockets raise errors of the IDNA codec for it.
_LABEL: Final = "[A-Za-z0-9_-]{1,63}"
_LISTEN: Final = re.compile(
    r"(?:\[(?P<six>[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*(?:%[A-Za-z0-9._-]+)?)\]"
    rf"|(?P<host>{_LABEL}(?:\.{_LABEL})*\.?)):(?P<port>[0-9]{{1,5}})"
)
_LONGEST_NAME: Final = 253
_MAX_PORT: Final = 65535


def read_listen(value: object) -> tuple[str, int]:
    """Read "HOST:PORT", an IPv6 address in brackets; port 0 leaves the choice to the kernel.

    Raises:
        ValueError: it is no such address; the message says what is.
    """
    match = _LISTEN.fullmatch(value) if isinstance(value, str) else None
    if match is not None:
        host, port = match["six"] or match["host"], int(match["port"])
        if len(host) <= _LONGEST_NAME and port <= _MAX_PORT:
            return host, port
    raise ValueError(f"HOST:PORT, such as {DEFAULT_LISTEN} or [::1]:9823")


def parse_listen(text: str, option: str = "--listen") -> tuple[str, int]:
    """Read an address as `read_listen` does; `option` is where it was given.

    Raises:
        UsageError: the text is no such address.
    """
    try:
        return read_listen(text)
    except ValueError as error:
        raise UsageError(f"{option} takes {error}, not {text!r}.") from None
