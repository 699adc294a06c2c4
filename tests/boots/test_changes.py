# SPDX-License-Identifier: GPL-2.0-only
"""What a soak changes on a real kernel is put back: drivers, settings, modules, directories."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING, Any

import pytest

from tests.boots.harness.kernels import QUICK_KERNEL
from tests.boots.harness.script import guest_program, seen_in_guest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.boots.harness.shared_setups import SharedSetUps

pytestmark = pytest.mark.lab(seconds=100)
SCRIPT = guest_program("changes")
# Debian's has vfio-pci as a module; where it is built in, the rest is seen once more, with more deaths.
KERNELS = ("debian:6.1", pytest.param(QUICK_KERNEL, marks=pytest.mark.long))


@pytest.fixture(params=KERNELS)
def seen(request: pytest.FixtureRequest, shared: SharedSetUps) -> Mapping[str, Any]:
    """Boot once for each kernel, and have everything tried that this file is about."""
    kernel = request.param
    script = guest_program("changes", ROUNDS=20) if kernel == QUICK_KERNEL else SCRIPT
    return shared.get(
        request,
        f"changes-{kernel.replace('/', '_')}",
        lambda place, _: seen_in_guest(place, script, kernel=kernel),
    )


def test_every_change_is_made_and_undone(seen: Mapping[str, Any]) -> None:
    before, changed = seen["before"], seen["ordinary"]["changed"]
    assert sorted(map(str, before["drivers"].values())) == ["None", "virtio-pci"]
    assert set(changed["drivers"].values()) == {"vfio-pci"}
    assert changed["kptr_restrict"] == "1\n"
    assert "scratch" in changed["files"]
    assert seen["ordinary"]["restored"] == before
    assert all(line.startswith("change.restored") for line in seen["ordinary"]["told"])


def test_a_kill_at_any_moment_is_undone(seen: Mapping[str, Any]) -> None:
    rounds = seen["killed"]
    assert [entry for entry in rounds if entry["restored"] != seen["before"]] == []
    # Nearly all of these were killed with something changed, and with different things.
    kinds = [{line.split()[1] for line in entry["told"]} for entry in rounds]
    assert sum(bool(found) for found in kinds) > len(rounds) // 2
    assert {"binding:", "sysctl:", "directory:"} <= set().union(*kinds)
    assert not any("change.failed" in line for entry in rounds for line in entry["told"])


def test_root_gets_the_highest_limits(seen: Mapping[str, Any]) -> None:
    assert seen["limits"]["RLIMIT_MEMLOCK"] == resource.RLIM_INFINITY
    assert seen["limits"]["RLIMIT_NOFILE"] == seen["most_files"]


def test_a_busy_function_is_restored_later(seen: Mapping[str, Any]) -> None:
    hung = [line for line in seen["in_use"]["hung"] if line.startswith("change.failed")]
    assert len(hung) == 1
    assert "did not answer within" in hung[0]
    assert "driver/unbind" in hung[0]
    # The module that it is bound to was not given up either.
    is_module = "vfio_pci" in seen["ordinary"]["changed"]["modules"]
    assert seen["in_use"]["held"] == (["module", "binding"] if is_module else ["binding"])
    assert seen["in_use"]["restored"] == seen["before"]


def test_addresses_are_shown_only_while_needed(seen: Mapping[str, Any]) -> None:
    found = seen["addresses"]
    assert found["hidden"]
    assert found["shown"]
    assert found["after"] == "2"
    # The kernel's own values are enough for a soak of the usual size, and not for a huge one.
    assert found["needs"] == []
    assert set(found["tuned"]) == {"fs.aio-max-nr", "vm.max_map_count"}
    assert all(line.startswith("change.restored sysctl") for line in found["told"])


def test_changes_of_other_programs_are_left_alone(seen: Mapping[str, Any]) -> None:
    found = seen["taken_by_somebody"]
    assert found["held"] == 0
    assert sum("left alone" in line for line in found["told"]) == 1
    assert sum("is left at" in line for line in found["told"]) == 1
    assert "vfio-pci" in found["found"]["drivers"].values()
    assert "somebody-else\n" in found["found"]["overrides"].values()
    assert found["found"]["kptr_restrict"] == "2\n"
