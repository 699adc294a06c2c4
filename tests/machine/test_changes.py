# SPDX-License-Identifier: GPL-2.0-only
"""Changes to a machine are made, told and put back; what somebody else changed is left alone."""

from __future__ import annotations

import json
import os
import signal
import stat
from typing import TYPE_CHECKING

import pytest

from soak.errors import UsageError
from soak.machine.changes import Demand, MachineChanges, Span, restore_only
from soak.machine.changes.kinds import KINDS
from soak.machine.changes.sysctls import NEEDS
from soak.machine.changes.trees import MARK_FILE
from tests.machine.support import LATER_BOOT, Place

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place.make(tmp_path)


def test_a_change_is_recorded_and_undone(place: Place) -> None:
    before = place.snapshot()
    with place.open() as changes:
        assert changes.recover() == []
        changes.set_sysctl("vm.one", "2000")
        directory = changes.make_directory(place.ground / "scratch")
        (directory / "file").write_text("x")
        assert place.setting("vm.one").read_text() == "2000\n"
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        recorded = json.loads((place.state / "changes.json").read_text())["entries"]
        assert [entry["kind"] for entry in recorded] == ["sysctl", "directory"]
        settled = changes.restore()
        assert changes.held == ()
    assert [(item.event, item.kind) for item in settled] == [
        ("change.restored", "directory"),
        ("change.restored", "sysctl"),
    ]
    assert settled[0].fields["of_run"] == "run-1"
    assert place.snapshot() == before


def test_a_setting_changed_twice_gets_its_first_value(place: Place) -> None:
    with place.open() as changes:
        changes.set_sysctl("vm.one", "2000")
        changes.set_sysctl("vm.one", "3000")
        changes.restore()
    assert place.setting("vm.one").read_text() == "1000\n"


def test_one_change_can_be_undone_alone(place: Place) -> None:
    with place.open() as changes:
        first = changes.set_sysctl("vm.one", "2000")
        changes.set_sysctl("kernel.two.three", "2000")
        assert changes.undo(first).event == "change.restored"
        assert [entry.target for entry in changes.held] == ["kernel.two.three"]
        with pytest.raises(KeyError):
            changes.undo(first)


def test_a_value_of_another_program_stays(place: Place) -> None:
    with place.open() as changes:
        changes.set_sysctl("vm.one", "2000")
        place.setting("vm.one").write_text("4000\n")
        (settled,) = changes.restore()
    assert settled.event == "change.forgotten"
    assert "another program" in settled.summary
    assert place.setting("vm.one").read_text() == "4000\n"


def test_a_failed_undo_stays_recorded_others_go_on(place: Place) -> None:
    with place.open() as changes:
        changes.set_sysctl("kernel.two.three", "2000")
        changes.set_sysctl("vm.one", "2000")
        changes.set_sysctl("vm.one", "3000")
        path = place.setting("vm.one")
        path.unlink()
        path.mkdir()
        settled = changes.restore()
        assert [item.event for item in settled] == ["change.failed", "change.restored"]
        assert "sysctl -w vm.one='2000'" in settled[0].summary
        # The older change of the same setting waits for the newer.
        assert [entry.target for entry in changes.held] == ["vm.one", "vm.one"]
    path.rmdir()
    path.write_text("3000\n")
    assert {item.event for item in restore_only(place.state, place.machine())} == {"change.restored"}
    assert path.read_text() == "1000\n"


@pytest.mark.parametrize("name", ["vm.none", "vm", "", "../vm.one", "vm/one"])
def test_a_missing_setting_is_refused(place: Place, name: str) -> None:
    with place.open() as changes:
        with pytest.raises(UsageError, match="has no kernel setting"):
            changes.set_sysctl(name, "1")
        assert changes.held == ()


@pytest.mark.parametrize("function", ["0000:ff:1f.7", "", "../../etc", "0000:00:00.8"])
def test_a_missing_function_is_refused(place: Place, function: str) -> None:
    with place.open() as changes:
        with pytest.raises(UsageError, match="has no PCI function"):
            changes.bind(function)
        assert changes.held == ()


def test_an_unlisted_module_is_refused(place: Place) -> None:
    with place.open() as changes, pytest.raises(UsageError, match="does not load module"):
        changes.load_module("pcspkr")


def test_after_a_reboot_settings_are_forgotten(place: Place) -> None:
    with place.open() as changes:
        changes.set_sysctl("vm.one", "2000")
        changes.make_directory(place.ground / "scratch")
    with place.open(boot=LATER_BOOT) as changes:
        directory, setting = changes.recover()
    assert (directory.event, setting.event) == ("change.restored", "change.forgotten")
    assert not (place.ground / "scratch").exists()
    assert place.setting("vm.one").read_text() == "2000\n"


def test_only_files_outlive_a_boot() -> None:
    assert {name for name, kind in KINDS.items() if kind.outlives_boot} == {"directory"}


def test_nothing_is_restored_without_an_earlier_soak(tmp_path: Path) -> None:
    assert restore_only(tmp_path / "state") == []
    assert list(tmp_path.iterdir()) == []


# Directories


def test_an_existing_directory_is_refused(place: Place) -> None:
    (place.ground / "scratch").mkdir()
    with place.open() as changes:
        with pytest.raises(UsageError, match="was not made by this soak"):
            changes.make_directory(place.ground / "scratch")
        assert changes.held == ()


def test_a_dangling_link_is_refused(place: Place) -> None:
    (place.ground / "scratch").symlink_to(place.root / "nowhere")
    with place.open() as changes, pytest.raises(UsageError, match="exists and was not made"):
        changes.make_directory(place.ground / "scratch")


def test_a_parent_writable_by_others_is_refused(place: Place) -> None:
    place.ground.chmod(0o777)
    with place.open() as changes:
        with pytest.raises(UsageError, match="other users may write"):
            changes.make_directory(place.ground / "scratch")
        place.ground.chmod(0o1777)
        assert changes.make_directory(place.ground / "scratch").is_dir()
        changes.restore()


def test_links_in_a_directory_are_not_followed(place: Place) -> None:
    before = place.snapshot()
    with place.open() as changes:
        directory = changes.make_directory(place.ground / "scratch")
        (directory / "up").symlink_to(place.ground)
        (directory / "file").symlink_to(place.ground / "not ours")
        os.mkfifo(directory / "pipe")
        changes.restore()
    assert place.snapshot() == before


@pytest.mark.parametrize("impostor", ["link", "directory", "file", "copied mark"])
def test_a_replaced_directory_is_left_alone(place: Place, impostor: str) -> None:
    victim = place.root / "victim"
    victim.mkdir()
    (victim / "precious").write_text("x")
    with place.open() as changes:
        directory = changes.make_directory(place.ground / "scratch")
        directory.rename(place.root / "stolen")
        if impostor == "link":
            directory.symlink_to(victim)
        elif impostor == "directory":
            victim.rename(directory)
        elif impostor == "file":
            directory.write_text("x")
        else:
            (victim / MARK_FILE).symlink_to(place.root / "stolen" / MARK_FILE)
            victim.rename(directory)
        (settled,) = changes.restore()
        assert changes.held == ()
    assert settled.event == "change.forgotten"
    assert "left alone" in settled.summary
    assert directory.is_symlink() or directory.exists()
    kept = victim if victim.exists() else directory
    assert kept.is_file() or (kept / "precious").read_text() == "x"


def test_a_directory_removed_meanwhile_counts_as_restored(place: Place) -> None:
    with place.open() as changes:
        directory = changes.make_directory(place.ground / "scratch")
        (directory / MARK_FILE).unlink()
        directory.rmdir()
        (settled,) = changes.restore()
    assert settled.event == "change.restored"


def test_a_path_is_recorded_without_links(place: Place) -> None:
    (place.root / "link").symlink_to(place.ground)
    with place.open() as changes:
        made = changes.make_directory(place.root / "link" / "scratch")
        assert made == place.ground / "scratch"
        (place.root / "link").unlink()
        changes.restore()
    assert not made.exists()


# Two at once


def test_a_second_soak_is_refused_by_name(place: Place) -> None:
    ready, done = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with place.open("run-of-the-first"):
                os.write(ready[1], b".")
                os.read(done[0], 1)
        finally:
            os._exit(0)
    os.read(ready[0], 1)
    with pytest.raises(UsageError, match=f"run run-of-the-first, process {pid}"):
        place.open("second")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    place.open("second").close()
    for descriptor in (*ready, *done):
        os.close(descriptor)


def test_one_process_opens_changes_once(place: Place) -> None:
    with place.open(), pytest.raises(UsageError, match="Another soak has this machine"):
        place.open()
    place.open().close()


def test_a_surviving_child_does_not_hold_the_lock(place: Place) -> None:
    ready, done = os.pipe(), os.pipe()
    with place.open() as changes:
        child = os.fork()
        if child == 0:
            try:
                with pytest.raises(RuntimeError):
                    changes.restore()
                os.write(ready[1], b".")
                os.read(done[0], 1)
            finally:
                os._exit(0)
        # Nothing but the child can write now: if it fails, the read ends.
        os.close(ready[1])
        assert os.read(ready[0], 1) == b"."
    place.open().close()
    os.write(done[1], b".")
    os.waitpid(child, 0)
    for descriptor in (ready[0], *done):
        os.close(descriptor)


def test_a_state_directory_writable_by_others_is_refused(place: Place) -> None:
    place.state.mkdir()
    place.state.chmod(0o777)
    with pytest.raises(UsageError, match="Other users can write to"):
        place.open()


# Settings that a soak needs


@pytest.fixture
def kernel(place: Place) -> Place:
    values = {"kernel.kptr_restrict": 2, "fs.aio-max-nr": 100, "fs.aio-nr": 90, "vm.max_map_count": 65530}
    for name, value in values.items():
        place.setting(name).parent.mkdir(exist_ok=True)
        place.setting(name).write_text(f"{value}\n")
    return place


def tuned(changes: MachineChanges) -> dict[str, str]:
    return {entry.target: entry.facts["wanted"] for entry in changes.held}


def test_only_insufficient_settings_are_changed(kernel: Place) -> None:
    with kernel.open() as changes:
        changes.tune(Demand(aio_contexts=10, mappings=64_000))
        assert tuned(changes) == {}
        changes.tune(Demand(aio_contexts=11, mappings=65_000))
        assert tuned(changes) == {"fs.aio-max-nr": "101", "vm.max_map_count": "66024"}


def test_addresses_are_readable_inside_the_block(kernel: Place) -> None:
    told: list[str] = []
    path = kernel.setting("kernel.kptr_restrict")
    with kernel.open() as changes:
        with changes.readable_addresses(lambda settled: told.append(settled.event)):
            assert path.read_text() == "1\n"
        assert path.read_text() == "2\n"
    assert told == ["change.restored"]


def test_a_setting_missing_in_this_kernel_is_skipped(place: Place) -> None:
    with place.open() as changes:
        assert changes.tune(Demand(1, 1)) == []
        assert changes.tune(Demand(1, 1), Span.READING_ADDRESSES) == []


@pytest.mark.parametrize("need", NEEDS, ids=lambda need: need.name)
def test_every_need_has_a_reason_and_one_bound(need: object) -> None:
    row = vars(need)
    assert len(row["reason"].split()) > 5
    assert (row["at_most"] is None) != (row["at_least"] is None)
