# SPDX-License-Identifier: GPL-2.0-only
"""What a kernel owes, as data: for an operation, an interface and a kind of memory.

A row holds for a range of kernels, and says where the rule comes from. A combination that no
row covers makes the verdict unknown; it is never taken for granted.
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
    """One row. `refusal` is the errno that is owed, or None where the operation must be done.

    `waits` says, for an operation that takes blocks away, whether it must not end before the last
    short pin of the file is given back. The interface is then that of the pin.
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


# Since bde708f1a65d (fs/dax: Always remove DAX page-cache entries when breaking layouts) and what
# came with it the pages themselves are waited for, whether a mapping shows them or not.
_PAGES_ARE_COUNTED: Final[Release] = (6, 15)
_KEEPS_INODE = tuple(operation for operation in INVALIDATIONS if operation is not Operation.UNLINK)

# Of operations on files. Those over a long-term interface stand with the interface, in
# soak/workload/pins; soak.workload.expectations has all of them.
FILE_EXPECTATIONS: Final = (
    Expectation(
        INVALIDATIONS,
        RegionKind.FS_DAX,
        Interface.NONE,
        Backing.SHARED,
        None,
        "changing the blocks of a file is done, after a wait for pins where there are any",
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
                "does not wait: dax_layout_busy_page() looks at no page of a file that nobody maps "
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
                "waits for pinned pages that nobody maps, too, unlink in dax_break_layout_final() "
                "(bde708f1a65d)",
                KernelRange(_PAGES_ARE_COUNTED),
                waits=True,
            ),
        )
    ),
)
