# SPDX-License-Identifier: GPL-2.0-only
"""Releases and the ranges of them for which facts hold."""

from __future__ import annotations

import pytest

from soak.model.kernels import EVERY_KERNEL, KernelRange, Release, parse_release
from soak.model.known_issues import KNOWN_ISSUES
from soak.workload.expectations import EXPECTATIONS


@pytest.mark.parametrize(
    ("text", "release"),
    [("6.1.0-56-amd64", (6, 1)), ("6.12.38", (6, 12)), ("7.2-rc1", (7, 2)), ("10.0", (10, 0))],
)
def test_a_release_is_its_first_two_numbers(text: str, release: Release) -> None:
    assert parse_release(text) == release


@pytest.mark.parametrize("text", ["", "linux", "6", "v6.1"])
def test_what_is_no_release_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="does not start with two numbers"):
        parse_release(text)


@pytest.mark.parametrize(
    ("kernels", "text", "inside", "outside"),
    [
        (EVERY_KERNEL, "every kernel", [(0, 0), (2, 6), (100, 0)], []),
        (KernelRange((6, 1)), "since 6.1", [(6, 1), (6, 10), (7, 0)], [(6, 0), (5, 19)]),
        (KernelRange(end=(6, 15)), "before 6.15", [(4, 16), (6, 9), (6, 14)], [(6, 15), (7, 0)]),
        (KernelRange((6, 1), (6, 2)), "since 6.1 before 6.2", [(6, 1)], [(6, 0), (6, 2), (6, 12)]),
    ],
    ids=str,
)
def test_a_range_is_half_open_and_prints(
    kernels: KernelRange, text: str, inside: list[Release], outside: list[Release]
) -> None:
    assert str(kernels) == text
    assert [release for release in (*inside, *outside) if release in kernels] == inside


DECLARED = {*(row.kernels for row in EXPECTATIONS), *(issue.kernels for issue in KNOWN_ISSUES)}


@pytest.mark.parametrize("kernels", sorted(DECLARED, key=str), ids=str)
def test_every_declared_range_holds_some_kernel(kernels: KernelRange) -> None:
    assert kernels.first < kernels.end
