# SPDX-License-Identifier: GPL-2.0-only
"""Expected kernel behaviour, as data: by operation, kind of region, interface and backing.

Each row applies to a range of kernels and cites its source. A combination without a row makes the
verdict unknown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from soak.model.kernels import EVERY_KERNEL, KernelRange
from soak.model.vocabulary import INVALIDATIONS, SHORT_PINS, Backing, Interface, Operation, RegionKind

if TYPE_CHECKING:
    from soak.model.cell import Cell
    from soak.model.kernels import Release


@dataclass(frozen=True)
class Expectation:
    """One row. `refusal` is the required errno, or None if the operation must succeed.

    `waits` means that an invalidation must not return before the last short pin of the file is
    released; `interface` is then that of the pin.
    """

    operations: tuple[Operation, ...]
    region: RegionKind
    interface: Interface
    backing: Backing
    refusal: int | None
    reason: str
    kernels: KernelRange = EVERY_KERNEL
    waits: bool = False

    def covers(self, cell: Cell, release: Release, backing: Backing | None = None) -> bool:
        return (
            cell.operation in self.operations
            and cell.region is self.region
            and cell.interface is self.interface
            and backing in {None, self.backing}
            and release in self.kernels
        )


# Since bde708f1a65d (fs/dax: Always remove DAX page-cache entries when breaking layouts) and its series,
# an invalidation waits for the page's references, mapped or not.
_PAGES_ARE_COUNTED: Final[Release] = (6, 15)
_KEEPS_INODE = tuple(operation for operation in INVALIDATIONS if operation is not Operation.UNLINK)

# Operations on files. Rows of a long-term interface are in its module in soak/workload/pins, and
# soak.workload.expectations combines all of them.
FILE_EXPECTATIONS: Final = (
    Expectation(
        INVALIDATIONS,
        RegionKind.FS_DAX,
        Interface.NONE,
        Backing.SHARED,
        None,
        "invalidations succeed, possibly after a wait for pins",
    ),
    *(
        row
        for interface in SHORT_PINS
        for row in (
            Expectation(
                (Operation.HOLD,),
                RegionKind.FS_DAX,
                interface,
                Backing.SHARED,
                None,
                "a short pin of a DAX file is granted: only FOLL_LONGTERM is refused (mm/gup.c)",
            ),
            Expectation(
                _KEEPS_INODE,
                RegionKind.FS_DAX,
                interface,
                Backing.SHARED,
                None,
                "waits until no page of the file is pinned: ext4_break_layouts(), "
                "xfs_break_dax_layouts() (430657b6be89, d6dc57e251a4)",
                waits=True,
            ),
            Expectation(
                _KEEPS_INODE,
                RegionKind.FS_DAX,
                interface,
                Backing.UNMAPPED,
                None,
                "does not wait: dax_layout_busy_page() ignores the pages of an unmapped file "
                "(5fac7408d828)",
                KernelRange(end=_PAGES_ARE_COUNTED),
            ),
            Expectation(
                (Operation.UNLINK,),
                RegionKind.FS_DAX,
                interface,
                Backing.UNMAPPED,
                None,
                "does not wait: eviction breaks no layout, and warns (dax_disassociate_entry())",
                KernelRange(end=_PAGES_ARE_COUNTED),
            ),
            Expectation(
                INVALIDATIONS,
                RegionKind.FS_DAX,
                interface,
                Backing.UNMAPPED,
                None,
                "waits for pinned pages even if unmapped; unlink does so in dax_break_layout_final() "
                "(bde708f1a65d)",
                KernelRange(_PAGES_ARE_COUNTED),
                waits=True,
            ),
        )
    ),
)
