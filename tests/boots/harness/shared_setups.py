# SPDX-License-Identifier: GPL-2.0-only
"""Set-ups that many tests share, such as a boot: made once, and reported once where they fail."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, TypeVar

import pytest

from tests.boots.harness.progress_lines import keep

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_T = TypeVar("_T")


class SharedSetUps:
    """Owns the set-ups of a test process, by name.

    A test that is run again has its set-up made again: what it failed on may lie there. The tests that
    share a set-up which has failed are not run, and say so in one line together.
    """

    def __init__(self, factory: pytest.TempPathFactory) -> None:
        self._factory = factory
        self._made: dict[str, tuple[object, Path, ExitStack]] = {}
        self._failed: dict[str, str] = {}

    def get(self, request: pytest.FixtureRequest, name: str, make: Callable[[Path, ExitStack], _T]) -> _T:
        """Return a set-up. `make` gets a directory for it, and leaves on the stack what ends it."""
        test = request.node.name
        if getattr(request.node, "execution_count", 1) > 1 and self._failed.get(name, test) == test:
            self._failed.pop(name, None)
            self._end(name)
        if name in self._failed:
            pytest.skip(f"not run: set-up {name!r} failed, see {self._failed[name]}")
        if name not in self._made:
            self._make(name, test, make)
        made, place, _ = self._made[name]
        keep(place)
        return made  # type: ignore[return-value] # a name stands for one kind of set-up

    def _make(self, name: str, test: str, make: Callable[[Path, ExitStack], object]) -> None:
        place = self._factory.mktemp(name)
        keep(place)
        self._failed[name] = test
        with ExitStack() as stack:
            self._made[name] = make(place, stack), place, stack.pop_all()
        del self._failed[name]

    def close(self) -> None:
        for name in list(self._made):
            self._end(name)

    def _end(self, name: str) -> None:
        if name in self._made:
            self._made.pop(name)[2].close()
