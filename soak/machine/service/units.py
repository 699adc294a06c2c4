# SPDX-License-Identifier: GPL-2.0-only
"""The files of `dax-soak install`: their templates, substitutions and paths."""

from __future__ import annotations

import string
from dataclasses import MISSING, dataclass, fields, is_dataclass
from importlib.resources import files
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final

import tomli_w

from soak import __version__
from soak.config.sections import Config, RegionSection
from soak.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from dataclasses import Field
    from pathlib import Path

UNITS: Final = ("dax-soak.service", "dax-soak-exporter.service")
UNIT_DIRECTORY: Final = PurePosixPath("/etc/systemd/system")
SYSUSERS: Final = PurePosixPath("/etc/sysusers.d/dax-soak.conf")
TMPFILES: Final = PurePosixPath("/etc/tmpfiles.d/dax-soak.conf")
DEFAULT_CONFIG: Final = PurePosixPath("/etc/dax-soak/soak.toml")
# The first line of a file that `install` may replace and remove.
MARKER: Final = "# Written by 'dax-soak install'"
_TEMPLATES: Final = {
    **{UNIT_DIRECTORY / name: name for name in UNITS},
    SYSUSERS: "sysusers.conf",
    TMPFILES: "tmpfiles.conf",
}
# systemd.service(5) names only "special characters" and the dollar.
_NOT_IN_PROGRAMS: Final = "\"'\\$"
PLACES: Final = tuple(_TEMPLATES)
_DEVICE_DAX = '[[region]]\nname = "dax"\nkind = "device-dax"\npath = "/dev/dax0.0"\n'
_FS_DAX = '[[region]]\nname = "files"\nkind = "fs-dax"\npath = "/mnt/dax/soak"\nsize = "1G"\n'
_ANONYMOUS = '[[region]]\nname = "control"\nkind = "anonymous"\nsize = "16M"\n'


@dataclass(frozen=True)
class Service:
    """Values for the templates. `listen` is HOST:PORT of the exporter."""

    interpreter: Path
    config: PurePosixPath
    listen: str

    def files(self) -> dict[PurePosixPath, str]:
        """Return the text of each file by its path.

        Raises:
            UsageError: a path cannot be written in a unit.
        """
        program = str(self.interpreter)
        if any(mark in program for mark in _NOT_IN_PROGRAMS):
            raise UsageError(
                f"systemd cannot start {program}: its path has a quote, backslash or dollar. Install "
                f"dax-soak in another directory."
            )
        words = {
            "marker": f"{MARKER} of version {__version__}: changes are lost, use 'systemctl edit'.",
            "command": command_line([program, "-P", "-m", "soak.cli"]),
            "config": command_line([str(self.config)]),
            "listen": command_line([self.listen]),
        }
        return {
            place: string.Template(_template(name)).substitute(words)
            for place, name in _TEMPLATES.items()
        }


def command_line(words: Sequence[str]) -> str:
    """Quote words for ExecStart= of a unit (systemd.service(5), "Command lines").

    Raises:
        UsageError: a word has characters that cannot be quoted.
    """
    return " ".join(_quoted(word) for word in words)


def example_config() -> str:
    """Return a soak.toml that explains every key and sets none."""
    lines = [
        "# What 'dax-soak run' soaks on this machine. The values shown are the defaults.",
        "# Only the hardware named here is touched.",
    ]
    for section in fields(Config):
        defaults = getattr(Config(), section.name)
        if is_dataclass(defaults):
            spelled = section.name.replace("_", "-")
            lines += ["", f"[{spelled}]", *_explained(fields(defaults))]
    lines += ["", "[known-issues]", "# NAME = false disables one: 'dax-soak known-issues'.", ""]
    lines += ["# What to soak: one table for each region."]
    lines += [f"#   {item.name}: {item.metadata['meaning']}" for item in fields(RegionSection)]
    for region in (_DEVICE_DAX, _FS_DAX, _ANONYMOUS):
        lines += ["", *(f"#{line}" for line in region.splitlines())]
    return "\n".join(lines) + "\n"


def _explained(keys: Sequence[Field[Any]]) -> Iterator[str]:
    for key in keys:
        yield f"# {key.metadata['meaning']}"
        if key.default is MISSING:
            continue
        default = list(key.default) if isinstance(key.default, tuple) else key.default
        yield "#" + tomli_w.dumps({key.name.replace("_", "-"): default}).strip()


def _template(name: str) -> str:
    return (files("soak.machine.service") / "templates" / name).read_text(encoding="utf-8")


def _quoted(word: str) -> str:
    if not word.isprintable():
        raise UsageError(
            f"{word!r} has unprintable characters, which a systemd unit cannot hold: use another path."
        )
    for found, written in (("\\", "\\\\"), ('"', '\\"'), ("%", "%%"), ("$", "$$")):
        word = word.replace(found, written)
    return f'"{word}"' if any(mark in word for mark in " '\"\\;") else word
