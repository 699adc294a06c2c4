# SPDX-License-Identifier: GPL-2.0-only
"""Cells: the unit in which operations are counted and judged."""

from __future__ import annotations

from dataclasses import dataclass

from soak.model.vocabulary import Interface, Operation, RegionKind


@dataclass(frozen=True)
class Cell:
    """An operation on a kind of region through an interface."""

    operation: Operation
    region: RegionKind
    interface: Interface

    @property
    def label(self) -> str:
        return f"{self.operation} {self.region} {self.interface}"

    @classmethod
    def parse(cls, label: str) -> Cell:
        operation, region, interface = label.split(" ")
        return cls(Operation(operation), RegionKind(region), Interface(interface))
