# SPDX-License-Identifier: GPL-2.0-only
"""The address to serve metrics at. A separate module, because the server is slow to import."""

from __future__ import annotations

import re
from typing import Final

from soak.errors import UsageError

DEFAULT_LISTEN: Final = "127.0.0.1:9823"
# Refuse names that no resolver accepts: sockets raise UnicodeError (IDNA codec) for them.
_LABEL: Final = "[A-Za-z0-9_-]{1,63}"
_LISTEN: Final = re.compile(
    r"(?:\[(?P<six>[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*(?:%[A-Za-z0-9._-]+)?)\]"
    rf"|(?P<host>{_LABEL}(?:\.{_LABEL})*\.?)):(?P<port>[0-9]{{1,5}})"
)
_LONGEST_NAME: Final = 253
_MAX_PORT: Final = 65535


def read_listen(value: object) -> tuple[str, int]:
    """Parse "HOST:PORT", with an IPv6 address in brackets; port 0 lets the kernel choose.

    Raises:
        ValueError: the value is not such an address; the message is what was expected.
    """
    match = _LISTEN.fullmatch(value) if isinstance(value, str) else None
    if match is not None:
        host, port = match["six"] or match["host"], int(match["port"])
        if len(host) <= _LONGEST_NAME and port <= _MAX_PORT:
            return host, port
    raise ValueError(f"HOST:PORT, such as {DEFAULT_LISTEN} or [::1]:9823")


def parse_listen(text: str, option: str = "--listen") -> tuple[str, int]:
    """Parse an address like `read_listen`; `option` names its origin in the message.

    Raises:
        UsageError: the text is not such an address.
    """
    try:
        return read_listen(text)
    except ValueError as error:
        raise UsageError(f"{option} is {text!r}, expected {error}.") from None
