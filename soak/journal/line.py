# SPDX-License-Identifier: GPL-2.0-only
"""The encoding of one journal line: JSON with a format number and a checksum.

The checksum is the last field: zlib's CRC-32 of all preceding bytes, as 8 hexadecimal digits. It detects
any single flipped bit and any burst error of up to 32 bits.
"""

from __future__ import annotations

import json
import re
import zlib
from typing import Any, Final

from soak.files.bounded_json import parse_json

FORMAT: Final = 1
MAX_NUMBER: Final = (1 << 63) - 1

_CHECKSUM: Final = re.compile(rb',"crc32":"([0-9a-f]{8})"\}\n?\Z')


class LineError(ValueError):
    """The text is not a journal line; the message says why."""


class CutLineError(LineError):
    """The text does not end with a checksum: a crash or a full disk may have cut it."""


def encode_line(line: dict[str, Any]) -> bytes:
    """Encode a line that has a `seq`; a value that JSON cannot represent becomes text."""
    body = json.dumps({"format": FORMAT, **line}, separators=(",", ":"), default=str)[:-1].encode()
    return b'%s,"crc32":"%08x"}\n' % (body, zlib.crc32(body))


def is_number(value: object) -> bool:
    """Return whether a value is a valid `seq`, from 1 to `MAX_NUMBER`."""
    return type(value) is int and 0 < value <= MAX_NUMBER


def decode_line(text: bytes) -> dict[str, Any]:
    """Decode a line.

    Raises:
        LineError: the text is damaged, of another format, or not from `encode_line`.
    """
    checksum = _CHECKSUM.search(text)
    if checksum is None:
        raise CutLineError("it does not end with its checksum")
    if int(checksum[1], 16) != zlib.crc32(text[: checksum.start()]):
        raise LineError("its checksum is wrong")
    try:
        line = parse_json(text)
    except ValueError:
        raise LineError("it is not JSON, or nests too deeply") from None
    if not isinstance(line, dict) or not is_number(line.get("seq")):
        raise LineError("it has no valid 'seq'")
    if not isinstance(line.get("event"), str):
        raise LineError("it has no valid 'event'")
    if line.get("format") != FORMAT:
        raise LineError(f"its format is {line.get('format')!r}, expected {FORMAT}")
    return line
