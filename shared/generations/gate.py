"""What may refuse a generation before it exists, in the transaction that creates its log: budget, admission, session, limits.

Hidden here: the order in which they look and take, and that a request made again with its Idempotency-Key is neither
refused nor counted a second time. A refusal leaves nothing behind but that key, which names the same generation if the
request is let in later.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from shared.chat.request import ChatRequest
from shared.errors import RateLimited
from shared.features.access.limits import Limiter
from shared.features.sessions import Sessions
from shared.features.spend.budgets import Budgets
from shared.generations.caller import Caller
from shared.log.records import Header
from shared.log.streamlog import Execute, Reserve
from shared.store.keys import Keys

Charge = Callable[[Any], None]
"""Adds commands to a pipeline that is in MULTI, by which what was let in is counted."""

Admit = Callable[[Caller, ChatRequest, Any], Awaitable[Charge | None]]
"""Looks, with a pipeline that is not in MULTI yet, whether a request is let in. Raises RateLimited. See `api/admission.py`."""


class Gate:
    """Without `admit`, all are let in whose budget allows it."""

    def __init__(self, key: Keys, sessions: Sessions, budgets: Budgets, admit: Admit | None, limiter: Limiter) -> None:
        self._key, self._sessions, self._budgets = key, sessions, budgets
        self._admit, self._limiter = admit, limiter

    def reserve(self, request: ChatRequest, caller: Caller, note: Charge) -> Reserve:
        """What `StreamLog.create` is to call. It raises RateLimited, SessionBusy, SessionTooLarge. `note` adds its commands
        with those of the others."""

        async def reserve(pipe: Any, header: Header) -> Execute | None:
            charge = await self._admitted(request, caller, pipe, header)
            counted = self._limiter.applies(caller) and not await self._made_before(pipe, header)
            if header["session"]:
                await self._sessions.reserve(pipe, header)
            elif pipe.watching:
                pipe.multi()
            if charge is not None:
                charge(pipe)
            note(pipe)
            return self._limiter.count(caller, request, header) if counted else None

        return reserve

    async def _admitted(self, request: ChatRequest, caller: Caller, pipe: Any, header: Header) -> Charge | None:
        try:
            await self._budgets.admit(header, pipe)
            charge = None if self._admit is None else await self._admit(caller, request, pipe)
        except RateLimited:
            if not await self._made_before(pipe, header):
                raise
            return None
        return None if charge is None or await self._made_before(pipe, header) else charge

    async def _made_before(self, pipe: Any, header: Header) -> bool:
        if header["idempotency"] is None:
            return False
        log = self._key.log(header["id"])
        await pipe.watch(log)
        return bool(await pipe.exists(log))
