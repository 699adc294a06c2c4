# SPDX-License-Identifier: GPL-2.0-only
"""One line of the journal, as it is in the file: JSON with the number of its format and a checksum.

The checksum is the last field, the CRC-32 of all bytes before it (zlib's, as 8 hexadecimal digits): it
finds any one flipped bit, and any damage of up to 32 bits in a row.
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
    """The text is no line of a journal; the message says why."""


class CutLineError(LineError):
    """The text does not end as a line does: a crash or a full disk may have cut it short."""


def encode_line(line: dict[str, Any]) -> bytes:
    """Return the text of a line that has its `seq`. What is no JSON value is written as text."""
    body = json.dumps({"format": FORMAT, **line}, separators=(",", ":"), default=str)[:-1].encode()
    return b'%s,"crc32":"%08x"}\n' % (body, zlib.crc32(body))


def is_number(value: object) -> bool:
    """Whether a value can be the number of a line: numbers that are larger no journal comes to."""
    return type(value) is int and 0 < value <= MAX_NUMBER


def decode_line(text: bytes) -> dict[str, Any]:
    """Return the line that a text is.

    Raises:
        LineError: it is damaged, is of another format, or was not written by `encode_line`.
    """
    checksum = _CHECKSUM.search(text)
    if checksum is None:
        raise CutLineError("it does not end with its checksum")
    if int(checksum[1], 16) != zlib.crc32(text[: checksum.start()]):
        raise LineError("its checksum is wrong")
    try:
        line = parse_json(text)
    except ValueError:
        raise LineError("it is no JSON, or nests too deeply") from None
    if not isinstance(line, dict) or not is_number(line.get("seq")):
        raise LineError("it has no number")
    if not isinstance(line.get("event"), str):
        raise LineError("it has no event")
    if line.get("format") != FORMAT:
        raise LineError(f"it is of format {line.get('format')!r}, and this program reads {FORMAT}")
    return line
