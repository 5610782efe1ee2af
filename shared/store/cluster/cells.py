"""Cells: what lies in one slot of a cluster, so that one transaction can have all of it.

Hidden here: that a cluster spreads keys over 16,384 slots by the CRC16 of what stands in their first braces (valkey.io/topics/
cluster-spec, "Key distribution model"), and does a transaction only where all its keys are in one. A cell is such a slot: it
has logs, all that is written with them, and the sessions that they are turns of. What belongs to no single log (keys, limits,
the queue, the ledger) is the control's, which has a slot of its own where there are cells. On one node there is one cell, which
the control shares, and names have no braces for it: every transaction is one, as it was before there were cells.

The last two hexadecimal digits of an id say in which cell it is. The number of cells of an installation never changes.
"""

from __future__ import annotations

import zlib
from functools import cache

from shared.store.cluster.slots import SLOTS, slot_of

MOST = 256
CONTROL = "{control}"
"""What names of the control's keys have in their stem where it has a slot of its own."""
_NEAR = 8
"""A cell's slot is no further than so many from its place. With 64 cells a place is every 256th slot."""
_DIGITS = {f"{number:02x}": number for number in range(MOST)}


@cache
def tags(count: int) -> tuple[str, ...]:
    """What stands in the braces of each cell's names: their slots are spaced evenly, so that nodes with equally many slots have
    equally many cells. These are names of keys, and may never be others."""
    return tuple(_tag(cell, (2 * cell + 1) * SLOTS // (2 * count)) for cell in range(count))


def _tag(cell: int, place: int) -> str:
    number = 0
    while abs(slot_of((tag := f"{cell:02x}-{number}").encode()) - place) > _NEAR:
        number += 1
    return tag


class Cells:
    """How many there are, and which of them something is in."""

    def __init__(self, count: int = 1, *, apart: bool = False) -> None:
        """`count` is a power of two, 256 at most. `apart`: the control is, though there is one cell."""
        if count not in (1, 2, 4, 8, 16, 32, 64, 128, MOST):
            raise ValueError(f"{count} cells: it must be a power of two, {MOST} at most")
        self.count, self.apart = count, apart or count > 1
        self.all = range(count)

    def of(self, generation_id: str) -> int:
        """The cell of a generation. What is no id of ours is in the first."""
        return _DIGITS.get(generation_id[-2:], 0) % self.count

    def of_session(self, tenant: str, session_id: str) -> int:
        """The cell of a session or conversation, whose turns are born there."""
        return 0 if self.count == 1 else zlib.crc32(f"{tenant}:{session_id}".encode()) % self.count

    def born(self, generation_id: str, cell: int) -> str:
        """A new id like that one, in this cell."""
        if self.count == 1:
            return generation_id
        digits = _DIGITS[generation_id[-2:]]
        return f"{generation_id[:-2]}{digits - digits % self.count + cell:02x}"

    def parted(self, generation_ids: list[str]) -> dict[int, list[str]]:
        """Ids by their cells."""
        found: dict[int, list[str]] = {}
        for one in generation_ids:
            found.setdefault(self.of(one), []).append(one)
        return found
