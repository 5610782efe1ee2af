"""What may refuse a generation before it exists, in the transaction that creates its log: budget, session, limits.

Hidden here: the order in which they look and take, and that a request made again with its Idempotency-Key is neither
refused nor counted a second time. A refusal leaves nothing behind but that key, which names the same generation if the
request is let in later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from shared.chat.request import ChatRequest
from shared.features.access.expected import Expects
from shared.features.access.limits import Limiter
from shared.features.sessions import Sessions
from shared.features.spend.budgets import Budgets
from shared.generations.caller import Caller
from shared.log.records import Header
from shared.log.streamlog import Execute, Reserve
from shared.store.conditional import Condition, under
from shared.store.keys import Keys

_AT_ONCE = 16
"""Creates that the server looks at at one time: as many as a process has connections for, but one."""


class Gate:
    """One for each process."""

    def __init__(self, key: Keys, sessions: Sessions, budgets: Budgets, limiter: Limiter) -> None:
        self._key, self._sessions, self._budgets, self._limiter = key, sessions, budgets, limiter
        self._at_once = asyncio.Semaphore(_AT_ONCE)

    def reserve(self, request: ChatRequest, caller: Caller, expects: Expects, note: Callable[[Any], object]) -> Reserve:
        """What `StreamLog.create` is to call. It raises RateLimited, SessionBusy, SessionTooLarge, and BadRequest for a model
        whose price is not known. `expects` is asked where something is limited by tokens, `note` adds its commands with those
        of the others."""

        async def reserve(pipe: Any, header: Header) -> Execute | None:
            if header["idempotency"] is None:  # with a key, it may be there
                self._limiter.refuse_known(caller, request.model)
            before = await self._sessions.reserve(pipe, header) if header["session"] else 0
            note(pipe)
            is_limited, has_budget = bool(self._limiter.scopes(caller)), bool(self._budgets.of(header))
            if not (is_limited or has_budget):
                return None
            conditions, tokens = list[Condition](), expects(request).after(before)
            if has_budget:
                await self._budgets.expect(header, tokens)
                conditions.append(self._budgets.condition(header))
            if is_limited:
                conditions.append(self._limiter.count(caller, request.model, tokens.total, header))
            execute = under(conditions, unless=self._key.log(header["id"]))
            return self._in_turn(execute, request, caller, header) if execute and not pipe.watching else execute

        return reserve

    def _in_turn(self, execute: Execute, request: ChatRequest, caller: Caller, header: Header) -> Execute:
        """Not before there is room at the server: what waits here meanwhile is refused as soon as this process knows. What
        watches has its connection already, and must not keep it waiting."""

        async def in_turn(pipe: Any) -> list[Any]:
            async with self._at_once:
                if header["idempotency"] is None:
                    self._limiter.refuse_known(caller, request.model)
                return await execute(pipe)

        return in_turn

    def hold(self, then: Reserve | None) -> Reserve:
        """The same for a line of a batch, which is refused by nothing but what `then` raises; what it may cost is held."""

        async def reserve(pipe: Any, header: Header) -> Execute | None:
            execute = await then(pipe, header) if then else None
            budgets = self._budgets.condition(header, only_hold=True)
            return execute or under([budgets], unless=self._key.log(header["id"]))

        return reserve
