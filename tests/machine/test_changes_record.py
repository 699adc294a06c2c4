# SPDX-License-Identifier: GPL-2.0-only
"""A record that is damaged is kept, told, and used as far as it can be read."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from soak.errors import UsageError
from soak.machine.changes import restore_only
from tests.machine.support import Place
from tests.support.soak import deterministic


def left_behind(root: Path) -> Place:
    """A machine on which a soak died that had changed two settings."""
    place = Place.make(root)
    with place.open() as changes:
        changes.set_sysctl("vm.one", "2000")
        changes.set_sysctl("kernel.two.three", "2000")
    return place


def record(place: Place) -> Path:
    return place.state / "changes.json"


def set_aside(place: Place) -> list[Path]:
    return sorted(place.state.glob("changes.json.damaged-*"))


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe\x00", b"[]", b"null", b'{"format": 1}', b'{"format":1,"entries":5}']
)
def test_an_unreadable_record_is_kept_and_reported(tmp_path: Path, content: bytes) -> None:
    place = left_behind(tmp_path)
    record(place).write_bytes(content)
    with place.open() as changes:
        (told,) = changes.recover()
    assert told.event == "change.failed"
    (kept,) = set_aside(place)
    assert str(kept) in told.summary
    assert kept.read_bytes() == content
    # It is told once: the next record is a good one.
    assert restore_only(place.state, place.machine()) == []


@pytest.mark.parametrize(
    "damage",
    [
        {"kind": "unheard-of"},
        {"number": "1"},
        {"facts": {}},
        {"facts": {"before": 1, "wanted": 2}},
        {"extra": 1},
        {"target": None},
    ],
)
def test_valid_entries_of_a_damaged_record_are_undone(tmp_path: Path, damage: dict[str, Any]) -> None:
    place = left_behind(tmp_path)
    content = json.loads(record(place).read_text())
    content["entries"][0] |= damage
    record(place).write_text(json.dumps(content))
    events = [item.event for item in restore_only(place.state, place.machine())]
    assert events == ["change.failed", "change.restored"]
    assert place.setting("kernel.two.three").read_text() == "1000\n"
    assert len(set_aside(place)) == 1


def test_damaged_records_never_replace_each_other(tmp_path: Path) -> None:
    place = left_behind(tmp_path)
    for number in range(3):
        record(place).write_text(f"broken {number}")
        place.open().close()
    assert {path.read_text() for path in set_aside(place)} == {"broken 0", "broken 1", "broken 2"}


def test_a_later_format_is_refused_and_kept(tmp_path: Path) -> None:
    place = left_behind(tmp_path)
    content = json.dumps({"format": 2, "entries": []})
    record(place).write_text(content)
    with pytest.raises(UsageError, match="of the version that wrote it"):
        place.open()
    assert record(place).read_text() == content
    # The lock was given back.
    record(place).unlink()
    place.open().close()


def test_a_link_is_not_read_as_a_record(tmp_path: Path) -> None:
    place = left_behind(tmp_path)
    record(place).rename(tmp_path / "elsewhere")
    record(place).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match="cannot be read"):
        place.open()


def test_a_module_stays_while_its_binding_stays(tmp_path: Path) -> None:
    """The record of a soak that had both, on a machine where the function cannot be given back."""
    place = left_behind(tmp_path)
    function = "0000:00:05.0"
    device = place.machine().sysfs / "bus/pci/devices" / function
    device.mkdir(parents=True)
    content = json.loads(record(place).read_text())
    module, binding = content["entries"]
    module |= {"kind": "module", "target": "vfio-pci", "facts": {"new": []}}
    binding |= {"kind": "binding", "target": function, "facts": {"driver": "nic", "override": None}}
    record(place).write_text(json.dumps(content))
    (told,) = restore_only(place.state, place.machine())
    assert told.event == "change.failed"
    assert "/sys/bus/pci/drivers/nic/bind" in told.summary
    # Without the function there is nothing to give back, and nothing rests on the module.
    device.rmdir()
    settled = restore_only(place.state, place.machine())
    assert [(item.event, item.kind) for item in settled] == [
        ("change.forgotten", "binding"),
        ("change.restored", "module"),
    ]


@given(data=st.data())
@settings(deterministic, max_examples=60)
def test_damage_never_makes_a_traceback(data: st.DataObject) -> None:
    with TemporaryDirectory() as directory:
        place = left_behind(Path(directory))
        content = bytearray(record(place).read_bytes())
        for _ in range(data.draw(st.integers(1, 4))):
            position = data.draw(st.integers(0, len(content) - 1))
            content[position] = data.draw(st.integers(0, 255))
        content = content[: data.draw(st.integers(0, len(content)))]
        record(place).write_bytes(content)
        before = place.snapshot()
        # Another format may be what a byte was changed to: that is refused, and nothing else.
        with contextlib.suppress(UsageError):
            restore_only(place.state, place.machine())
        after = place.snapshot()
        settings_changed = {name for name in before if before[name] != after[name]}
        assert settings_changed <= {"sys/vm/one", "sys/kernel/two/three"}
        assert before.keys() == after.keys()
