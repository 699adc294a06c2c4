# SPDX-License-Identifier: GPL-2.0-only
"""Any text as a configuration: it is planned, or refused in one sentence, and never takes all memory."""

from __future__ import annotations

from dataclasses import fields
from itertools import islice
from typing import TYPE_CHECKING, Final

import pytest

from soak.config.sections import SECTIONS, RegionSection, load_config
from soak.errors import UsageError
from soak.ledger.layout import MAX_SIZE
from soak.workload.plan import make_plan
from tests.support.fuzz import damaged_bytes, fuzz, many_inputs
from tests.support.soak import KNOWN_ISSUE

if TYPE_CHECKING:
    import random
    from pathlib import Path

_LONGEST_SENTENCE: Final = 500
# Each key with values that it may have.
FITTING: Final[dict[str, tuple[str, ...]]] = {
    "duration": ('"1h30m"', "90", '"2m"'),
    "seed": ("7", "0", str(2**63 - 1)),
    "name": ('"dax"', '"files"', '"control"', '"r-1"'),
    "kind": ('"device-dax"', '"fs-dax"', '"anonymous"'),
    "path": ('"/dev/dax0.0"', '"/mnt/dax"', '"lab"'),
    "size": ('"512M"', '"64M"', "67108864", '"4K"', '"2M"', '"8388607T"', '"1T"', '"128G"'),
    "alignment": ('"4K"', '"2M"', '"1G"'),
    "recyclable": ("true", "false"),
    "devices": ('["0000:00:05.0", "0000:00:06.0"]', "[]"),
    "scenario": ('"mixed"', '"no-such-mix"'),
    "mappers": ("0", "2", "64"),
    "interfaces": ("[]", '["vfio-type1"]'),
    "invalidators": ("0", "1", "64"),
    "holders": ("0", "1", "64"),
    "trials": ("0", "2", "64"),
    "rate": ("0", "12.5"),
    "slow-devices": ('["/dev/ram0"]', "[]"),
    "fast-devices": ('["/dev/ram1"]', "[]"),
    "late": ('"500ms"', "0.5"),
    "threshold": ("2.0", '"10s"'),
    "sweep": ('"10s"',),
    "recycle": ("0.2", "0"),
    "every": ('"10m"', "0", "false"),
    "listen": ('"127.0.0.1:9823"',),
    "memory": ('"512M"', "0"),
    "wedged-workers": ("4",),
}
KEYS: Final = {
    section: [field.name.replace("_", "-") for field in fields(kind)]
    for section, kind in {**SECTIONS, "region": RegionSection}.items()
}
ODD_VALUES: Final = (
    "true",
    "-1",
    "0",
    "nan",
    "inf",
    "1e400",
    "9" * 20,
    "9" * 5000,
    "1.5",
    "-0.0",
    f"0x{'f' * 30}",
    f"0x{'f' * 20_000}",
    f"0b{'1' * 20_000}",
    "1_000_000_000_000_000_000_000",
    '""',
    '" "',
    '"a b"',
    '"\\u0000"',
    '"/dev/\\u0000x"',
    '"\\u001b[2J"',
    '"\x1b"',
    "'\x00'",
    f'"{"n" * 256}"',
    f'"/{"n" * 256}"',
    f'"{"/n" * 4000}"',
    f'"{"w" * 100_000}"',
    '"1000000000000000000000000000000"',
    '"9223372036854775808"',
    f'"{"9" * 400_000}x"',
    '"99999999T"',
    '"16777216T"',
    '"-5M"',
    '"1.5G"',
    '"٣M"',
    '"1h1h1h"',
    f'"{"1h" * 40_000}"',
    '"\u202eoff"',
    '"\U0001f4a9"',
    '"e\u0301"',
    '"ﬀ"',
    "'''\n\n'''",
    '"""\n"""',
    '"\\',
    "'",
    "1979-05-27T07:32:00Z",
    "07:32:00",
    "1979-99-99",
    "[1, 'a', [2]]",
    "{a = 1}",
    "{a.b.c = 1}",
    *("[" * n + "]" * n for n in (1, 15, 17, 200, 5000, 100_000)),
    *("{a = " * n + "1" + "}" * n for n in (1, 14, 17, 300, 20_000)),
    *("[" * n for n in (20, 100_000)),
    "[" + '"/dev/ram0", ' * 30_000 + "]",
    "{" + ".".join(["a"] * 3000) + " = 1}",
    "",
)
ODD_LINES: Final = (
    *(".".join(["a"] * n) + " = 1" for n in (2, 16, 17, 1000, 200_000)),
    *("[" + ".".join(["a"] * n) + "]" for n in (2, 16, 17, 1000, 200_000)),
    *("[[" + ".".join(["a"] * n) + "]]" for n in (2, 17, 5000)),
    '"\\u001b[2J" = 1',
    '"" = 1',
    '"a\\nb" = 1',
    f"{'k' * 3000} = 1",
    f'"{"é" * 300}" = 1',
    *("[run", "= 1", "run = 1", "[run]\n[run]", "a = 1\na = 2", "[[run]]", "\x00", "\x07", "\ufeff"),
    "[region]",
    "region = 1",
    "region = []",
    "[region.a]",
    "known-issues = 1",
    "[known-issues]",
    f"known-issues.{KNOWN_ISSUE} = false",
    "known-issues.none = true",
    "known-issues.x = 1",
    '[[region]]\nname = "r"\nkind = "anonymous"\n' * 3000,
    "".join(f'[[region]]\nname = "r{n}"\nkind = "anonymous"\nsize = "2M"\n' for n in range(64)),
    "".join(f"k{n} = 1\n" for n in range(20_000)),
    "#" + "[" * 100_000,
    "#" + "." * 1_100_000,
)


def text_of(draw: random.Random) -> bytes:
    """Write a configuration of real keys, in which something may be odd."""
    odd = draw.choice((0.0, 0.02, 0.1))
    lines: list[str] = []
    for section in draw.sample(sorted(SECTIONS), draw.randrange(len(SECTIONS) + 1)):
        lines += [f"[{section}]", *_keys(draw, section, odd)]
    for _ in range(draw.randrange(4)):
        lines += ["[[region]]", *_keys(draw, "region", odd)]
    if draw.random() < 3 * odd:
        lines.insert(draw.randrange(len(lines) + 1), draw.choice(ODD_LINES))
    content = "\n".join(lines).encode(errors="surrogatepass")
    return damaged_bytes(draw, content) if draw.random() < 2 * odd else content


def _keys(draw: random.Random, section: str, odd: float) -> list[str]:
    needed = {"name", "kind", "path"}
    keys = [key for key in KEYS[section] if key in needed or draw.random() < 0.4]
    return [f"{key} = {draw.choice(ODD_VALUES if draw.random() < odd else FITTING[key])}" for key in keys]


def check(path: Path) -> None:
    """Load a configuration, and plan by it all that is planned before a machine is touched."""
    try:
        plan = make_plan(load_config(path))
    except UsageError as error:
        check_sentence(str(error), path)
        return
    layout = plan.layout({"run_id": "run-1", "filesystem": "ext4"}, lab=True)
    assert layout.size <= MAX_SIZE
    for _, choice in islice(plan.first_choices(2), 20):
        assert choice.length >= 0


def check_sentence(sentence: str, path: Path) -> None:
    assert sentence.isprintable()
    assert sentence.endswith(".")
    assert len(sentence) < _LONGEST_SENTENCE + len(str(path))


@pytest.mark.parametrize("line", ODD_LINES, ids=range(len(ODD_LINES)))
def test_each_odd_line_is_refused_or_planned(tmp_path: Path, line: str) -> None:
    path = tmp_path / "soak.toml"
    path.write_text(line)
    check(path)


@pytest.mark.parametrize("key", FITTING)
def test_each_odd_value_is_refused_or_planned(tmp_path: Path, key: str) -> None:
    path = tmp_path / "soak.toml"
    section = next(section for section, keys in KEYS.items() if key in keys)
    for value in ODD_VALUES:
        head = f"[{section}]" if section != "region" else "[[region]]"
        given = {"name": '"r"', "kind": '"fs-dax"', "path": '"/x"'} if section == "region" else {}
        text = "\n".join(f"{name} = {text}" for name, text in {**given, key: value}.items())
        path.write_text(f"{head}\n{text}\n")
        check(path)


@many_inputs
def test_any_text_is_accepted_or_refused(tmp_path: Path, count: int) -> None:
    path = tmp_path / "soak.toml"

    def try_input(draw: random.Random) -> None:
        path.write_bytes(text_of(draw))
        check(path)

    fuzz("config", count, try_input)
