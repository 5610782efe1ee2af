"""Pipelines where a transaction's keys may be in two places: those of a cell, and the control's.

Hidden here: which of them a command is queued in. On one node there is one place, and one pipeline: nothing is split. Where the
control is apart, `control` is a second transaction, which whoever has the first one does before or after it, and says why that
survives the end of a process in between (docs/decisions/0019).
"""

from __future__ import annotations

from typing import Any

from redis.asyncio import ConnectionPool

from shared.store.cluster.slots import slot_of
from shared.store.connections import Pipeline


class CellPipeline(Pipeline):
    """`apart`: what is the control's cannot be in this transaction."""

    def __init__(
        self, pool: ConnectionPool, callbacks: Any, transaction: bool, hint: str | None, *, apart: bool
    ) -> None:
        super().__init__(pool, callbacks, transaction, hint)
        self._apart = apart and transaction
        self._control: CellPipeline | None = None

    @property
    def control(self) -> Any:
        """Where commands are queued whose keys are the control's: this one, if they may be in its transaction."""
        if not self._apart:
            return self
        if self._control is None:
            self._control = self._beside()
        return self._control

    def place_of(self, name: bytes) -> int:
        """Where a key is: one script may have those of one place."""
        return slot_of(name)

    def _beside(self) -> CellPipeline:
        return CellPipeline(self.connection_pool, self.response_callbacks, True, None, apart=False)
