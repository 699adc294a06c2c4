# SPDX-License-Identifier: GPL-2.0-only
"""Parsers of single configuration values. Each raises ValueError with what it expected."""

from __future__ import annotations

import math
import re
from typing import Any, TypeGuard

from soak.config.listen import read_listen
from soak.model.vocabulary import LONG_TERM_PINS, Interface, RegionKind

_DURATION_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h|d|w)")
_PLAIN_SECONDS = re.compile(r"[0-9]+(\.[0-9]+)?")
# _DURATION.sub() and findall() need quadratic time.
_MAX_DURATION_LENGTH = 1000
_SIZE_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_SIZE = re.compile(r"([0-9]{1,20})([KMGT]?)(?:i?B)?")
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")
_MAX_WORKERS = 64
_ALIGNMENTS = (1 << 12, 1 << 21, 1 << 30)
_MAX_RATE = 1_000_000
_MAX_DURATION_SECONDS = 366 * 86400.0
_MAX_SEED = 2**63 - 1
_MAX_SIZE = 2**63 - 1
_MAX_ENTRIES = 128
# PATH_MAX and NAME_MAX (linux/limits.h), the first with its NUL.
_MAX_PATH_BYTES = 4095
_MAX_NAME_BYTES = 255
_FUNCTION = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


def parse_duration(value: object) -> float:
    """Return seconds from `90`, `"90s"`, `"2m"` or `"1h30m"`.

    Raises:
        ValueError: the value has another form, is not positive, or is more than a year.
    """
    seconds = 0.0
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        # float() raises OverflowError for a huge integer.
        seconds = float(value) if value <= _MAX_DURATION_SECONDS else math.inf
    elif isinstance(value, str):
        text = value.strip()
        if len(text) > _MAX_DURATION_LENGTH:
            seconds = math.inf
        elif _PLAIN_SECONDS.fullmatch(text):
            seconds = float(text)
        elif text and _DURATION.sub("", text) == "":
            seconds = sum(float(n) * _DURATION_UNITS[unit] for n, unit in _DURATION.findall(text))
    if not 0 < seconds <= _MAX_DURATION_SECONDS:
        raise ValueError('a duration such as "90s", "2m" or "1h30m", of at most a year')
    return seconds


def parse_size(value: object) -> int:
    """Return bytes from a number or from `"512M"`.

    Raises:
        ValueError: the value has another form, is not positive, or exceeds the largest file size.
    """
    size = 0
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        size = int(match[1]) * _SIZE_UNITS[match[2]]
    if not 0 < size <= _MAX_SIZE:
        raise ValueError('a size in bytes or such as "512M" or "4G"')
    return size


def parse_alignment(value: object) -> int:
    """Return bytes from `"4K"`, `"2M"` or `"1G"`: the page sizes of x86-64.

    Raises:
        ValueError: the value is none of them.
    """
    try:
        size = parse_size(value)
    except ValueError:
        size = 0
    if size not in _ALIGNMENTS:
        raise ValueError('"4K", "2M" or "1G"')
    return size


def parse_seed(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_SEED:
        raise ValueError(f"a whole number from 0 to {_MAX_SEED}")
    return value


def parse_address(value: object) -> str:
    read_listen(value)
    return str(value)


def parse_path(value: object) -> str:
    if not isinstance(value, str) or not _is_path(value):
        raise ValueError(f"a path without NUL, with names of at most {_MAX_NAME_BYTES} bytes")
    return value


def _is_path(value: object) -> bool:
    """Return whether a value is a valid path; it need not exist."""
    if not isinstance(value, str) or not value or "\0" in value:
        return False
    data = value.encode(errors="surrogatepass")
    return len(data) <= _MAX_PATH_BYTES and max(map(len, data.split(b"/"))) <= _MAX_NAME_BYTES


def parse_name(value: object) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise ValueError("a name of up to 32 lower-case letters, digits and the characters '.', '_', '-'")
    return value


def parse_interfaces(value: object) -> tuple[Interface, ...]:
    if not _is_list(value) or not all(
        isinstance(item, str) and item in set(LONG_TERM_PINS) for item in value
    ):
        raise ValueError(f"a list of long-term interfaces, each one of {', '.join(LONG_TERM_PINS)}")
    return tuple(map(Interface, value))


def parse_kind(value: object) -> RegionKind:
    if not isinstance(value, str) or value not in set(RegionKind):
        raise ValueError(f"one of {', '.join(RegionKind)}")
    return RegionKind(value)


def parse_share(value: object) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value < 1:
        raise ValueError("a number from 0 to less than 1")
    return float(value)


def parse_rate(value: object) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= _MAX_RATE:
        raise ValueError(f"a number from 0 to {_MAX_RATE}")
    return float(value)


def parse_memory(value: object) -> int:
    try:
        return 0 if value == 0 and not isinstance(value, bool) else parse_size(value)
    except ValueError as error:
        raise ValueError(f"{error}, or 0") from None


def parse_truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")  # noqa: TRY004 - all parsers raise ValueError
    return value


def parse_workers(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MAX_WORKERS:
        raise ValueError(f"a whole number from 0 to {_MAX_WORKERS}")
    return value


def parse_functions(value: object) -> tuple[str, ...]:
    if not _is_list(value) or not all(
        isinstance(item, str) and _FUNCTION.fullmatch(item) for item in value
    ):
        raise ValueError(f'a list of PCI functions such as ["0000:00:05.0"], of at most {_MAX_ENTRIES}')
    return tuple(value)


def _is_list(value: object) -> TypeGuard[list[Any]]:
    return isinstance(value, list) and len(value) <= _MAX_ENTRIES


def parse_paths(value: object) -> tuple[str, ...]:
    if not _is_list(value) or not all(map(_is_path, value)):
        raise ValueError(f'a list of device files such as ["/dev/ram0"], of at most {_MAX_ENTRIES}')
    return tuple(value)


def parse_interval(value: object) -> float:
    if value is False or (value == 0 and not isinstance(value, bool)) or value == "0":
        return 0.0
    try:
        return parse_duration(value)
    except ValueError as error:
        raise ValueError(f"{error}, or 0 for never") from None
