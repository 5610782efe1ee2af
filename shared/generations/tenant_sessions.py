"""Sessions, and conversations, as their tenant sees them: what is sealed counts, though it may not be settled yet.

Hidden here: that a session is settled before it is read. For example, a client that has just seen the end of an answer finds
it among the session's messages, whichever process sealed it.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from shared.errors import FileStorageFailed, NotFound
from shared.features.conversations import Change, Conversations, Given, Turn
from shared.features.sessions import Sessions, check_id
from shared.generations.broker import Broker
from shared.generations.caller import Caller
from shared.generations.settlement import Settlement
from shared.lib.telemetry import get_logger
from shared.log.blobs import Cut
from shared.store.availability import translate_errors

logger = get_logger(__name__)


class TenantSessions:
    """Find, read, list, delete. Every method may raise Unavailable, and NotFound for what is another tenant's."""

    def __init__(self, sessions: Sessions, settlement: Settlement, broker: Broker) -> None:
        self._sessions, self._settlement, self._broker = sessions, settlement, broker

    async def find(self, session_id: str, caller: Caller) -> dict[str, Any]:
        """The session object. Raises NotFound."""
        with translate_errors():
            await self._settlement.settle_session(caller.tenant, check_id(session_id))
            return await self._sessions.describe(caller.tenant, session_id)

    async def messages(self, session_id: str, caller: Caller) -> list[dict[str, Any]]:
        """All messages of its finished turns, in order. Raises NotFound."""
        with translate_errors():
            await self._settlement.settle_session(caller.tenant, check_id(session_id))
            return await self._sessions.messages(caller.tenant, session_id)

    async def newest(self, caller: Caller, after: str | None, count: int) -> list[dict[str, Any]]:
        """The tenant's sessions, last used first. Raises NotFound if `after` is not one of them."""
        with translate_errors():
            return await self._sessions.newest(caller.tenant, after, count)

    async def newest_of(self, tenants: Iterable[str], after: str | None, count: int) -> list[dict[str, Any]]:
        """Those of these tenants, each with its `tenant`; `after` is `TENANT:ID`. Raises NotFound."""
        with translate_errors():
            return await self._sessions.newest_of(tenants, after, count)

    async def delete(self, session_id: str, caller: Caller) -> None:
        """Cancels what runs in it, then forgets it; its generations stay what they are."""
        with translate_errors():
            found = await self._sessions.describe(caller.tenant, session_id)
            for generation_id in reversed(found["open"]):  # the last first, so that none begins meanwhile
                with suppress(NotFound):
                    await self._broker.cancel(generation_id, caller)
            with suppress(FileStorageFailed):  # what is settled later would write its turn into what is gone
                await self._settlement.settle_session(caller.tenant, session_id)
            await self._sessions.delete(caller.tenant, session_id)
        logger.info("session deleted", tenant=caller.tenant)


class TenantConversations:
    """Create, find, change, and the turns. Every method may raise Unavailable, and NotFound for what is another tenant's."""

    def __init__(self, conversations: Conversations, settlement: Settlement) -> None:
        self._conversations, self._settlement = conversations, settlement

    async def create(
        self,
        caller: Caller,
        metadata: dict[str, str],
        given: Given,
        cut: Cut,
        *,
        idempotency_key: str | None = None,
    ) -> tuple[dict[str, Any], bool]:
        """A new conversation with these messages, as an object; with an idempotency key, the one that it stands for already.
        And whether it was there. What is large of the messages was taken out by `cut`. Raises KeyReused,
        StorageQuotaExceeded."""
        conversations, tenant, there = self._conversations, caller.tenant, False
        with translate_errors():
            name, claimed = await conversations.claim(
                tenant, idempotency_key, "conversation", [metadata, given.messages], cut
            )
            conversation_id = f"conv_{name}"
            if claimed:  # whoever claimed it may have died before it was made, or before it had its items
                with suppress(NotFound):
                    there = bool(await conversations.describe(tenant, conversation_id))
            if not there:
                await conversations.create(tenant, conversation_id, metadata)
            if given.messages:
                await conversations.append(tenant, conversation_id, given, name, cut, once=idempotency_key is not None)
            return await conversations.describe(tenant, conversation_id), there

    async def find(self, conversation_id: str, caller: Caller) -> dict[str, Any]:
        """The conversation object; of a session, too."""
        with translate_errors():
            return await self._conversations.describe(caller.tenant, conversation_id)

    async def replace_metadata(self, conversation_id: str, caller: Caller, metadata: dict[str, str]) -> dict[str, Any]:
        """Gives it other metadata, and returns it."""
        with translate_errors():
            await self._conversations.replace_metadata(caller.tenant, conversation_id, metadata)
            return await self._conversations.describe(caller.tenant, conversation_id)

    async def turns(self, conversation_id: str, caller: Caller) -> list[Turn]:
        """All finished turns."""
        with translate_errors():
            await self._settlement.settle_session(caller.tenant, check_id(conversation_id))
            return await self._conversations.turns(caller.tenant, conversation_id)

    async def append(
        self, conversation_id: str, caller: Caller, given: Given, cut: Cut, *, idempotency_key: str | None = None
    ) -> tuple[Turn, bool]:
        """Adds a turn; with an idempotency key, once. Returns it, and whether it was there. What is large of the messages was
        taken out by `cut`. Raises SessionBusy, KeyReused, StorageQuotaExceeded."""
        conversations, tenant = self._conversations, caller.tenant
        with translate_errors():
            await self._settlement.settle_session(tenant, check_id(conversation_id))
            asked = [conversation_id, given.messages]
            name, _ = await conversations.claim(tenant, idempotency_key, "conversation items", asked, cut)
            once = idempotency_key is not None
            return await conversations.append(tenant, conversation_id, given, name, cut, once=once)

    async def change(self, conversation_id: str, caller: Caller, number: int, change: Change) -> None:
        """Gives a turn the messages that `change` makes of its own."""
        with translate_errors():
            await self._conversations.change(caller.tenant, conversation_id, number, change)
