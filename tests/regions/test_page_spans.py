# SPDX-License-Identifier: GPL-2.0-only
"""Pages that regions have in common."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from soak.regions.pages import PageSpan
from tests.support.soak import deterministic


@given(*[st.integers(0, 20)] * 2, *[st.integers(1, 20)] * 2)
@deterministic
def test_spans_meet_if_they_share_a_page(first: int, second: int, one: int, other: int) -> None:
    spans = PageSpan(first, one, 1), PageSpan(second, other, 1)
    common = set(range(first, first + one)) & set(range(second, second + other))
    assert spans[0].meets(spans[1]) == spans[1].meets(spans[0]) == bool(common)
