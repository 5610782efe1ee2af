"""Conversations: sessions as OpenAI's Conversations API has them, made by hand, with turns that nobody generated.

Hidden here: what a session has besides, which is its metadata (a field of its head), turns that were added, and what was
deleted of a turn: there is a mark in its place, so that what is beside it stays where it was, and nothing of the text.

    a message that is gone          {"role": "deleted"}
    the text of one with calls      {"role": "assistant", "content": null, "deleted": true, "tool_calls": […]}
    a call                          {"type": "deleted"} among `tool_calls`
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from shared.chat.messages import Messages, present
from shared.errors import NotFound, SessionBusy
from shared.features.blobs import Blobs, session_holder
from shared.features.idempotency import Idempotency, key_digest
from shared.features.responses.namespaces import Own
from shared.features.sessions import NOT_FOUND, Sessions, check_id, estimate_tokens
from shared.lib import json
from shared.lib.clock import now_ms
from shared.log.blobs import BLOBS, Cut, Stored
from shared.store.redis import ArqRedis
from shared.store.transaction import transact

_METADATA = "metadata"
"""The field of a session's head."""
_ID = b"i"
"""A field of turns that were added: their ids, where a repetition is looked for."""

Change = Callable[[Messages], Messages]


class Given(NamedTuple):
    """What is to be added: messages, and the names of tools as `Turn` has them."""

    messages: Messages
    names: Mapping[str, Own] = MappingProxyType({})


class Turn(NamedTuple):
    """A turn of a conversation, with marks for what was deleted, and for blobs."""

    number: int
    generation_id: str
    """Of the answer in it; of a turn that was added, an id of its own in the same form."""
    messages: Messages
    generated: bool
    first: int
    """The place of its answer's first item among the items of the response: reasoning stands before it and is not kept."""
    names: Mapping[str, Own]
    """What tools of namespaces that are called in it are called by the client, by their names in the chat."""


class Conversations:
    """All conversations of one Redis. Methods raise RedisError or OSError when the server is away; NotFound."""

    def __init__(self, redis: ArqRedis, sessions: Sessions, blobs: Blobs) -> None:
        self._redis, self._sessions, self._blobs = redis, sessions, blobs
        self._key = redis.key

    async def claim(self, tenant: str, key: str | None, what: str, request: object, cut: Cut) -> tuple[str, bool]:
        """An id in hex for what is to be made of `request`, which has marks of `cut`, and whether its idempotency key stood for
        it before: then it may be there. `what` tells keys of different things apart. Raises KeyReused."""
        new_id = uuid.uuid4().hex
        if key is None:
            return new_id, False
        digest, life_ms = key_digest(key, what), self._sessions.life_ms
        asked = await self._blobs.digest(cut, json.dumps_sorted(request))
        first = await Idempotency(self._redis).claim(tenant, digest, new_id, asked, life_ms)
        return first, first != new_id

    async def create(self, tenant: str, conversation_id: str, metadata: dict[str, str]) -> None:
        """A new one, without items."""
        now = now_ms()
        names = self._key.session(tenant, conversation_id)
        async with self._redis.pipeline(transaction=True) as pipe:
            head = {"created_at_ms": now, "updated_at_ms": now, _METADATA: json.dumps(metadata)}
            pipe.hset(names.head, mapping=head)
            listed = self._key.sessions(tenant, self._key.cells.of_session(tenant, conversation_id))
            pipe.zadd(listed, {conversation_id: now})
            self._sessions.prolong(pipe, tenant, conversation_id)
            await pipe.execute()

    async def describe(self, tenant: str, conversation_id: str) -> dict[str, Any]:
        """OpenAI's conversation object."""
        head = self._key.session(tenant, check_id(conversation_id)).head
        created, metadata = await self._redis.hmget(head, ["created_at_ms", _METADATA])  # type: ignore[misc]
        if created is None:
            raise NotFound(NOT_FOUND)
        return {
            "id": conversation_id,
            "object": "conversation",
            "created_at": int(created) // 1000,
            "metadata": json.loads(metadata) if metadata else {},
        }

    async def replace_metadata(self, tenant: str, conversation_id: str, metadata: dict[str, str]) -> None:
        names = self._key.session(tenant, check_id(conversation_id))

        def queue(pipe: Any, seen: list[Any]) -> None:
            if not seen[0]:
                raise NotFound(NOT_FOUND)
            pipe.hset(names.head, mapping={_METADATA: json.dumps(metadata), "updated_at_ms": now_ms()})
            self._sessions.prolong(pipe, tenant, conversation_id)

        await transact(self._redis, [names.head], [("EXISTS", names.head)], queue)

    async def turns(self, tenant: str, conversation_id: str) -> list[Turn]:
        """All turns, in their order."""
        await self.describe(tenant, conversation_id)
        return [
            Turn(
                turn["number"],
                turn["generation_id"],
                turn["messages"],
                generated=not turn.get("added"),
                first=turn.get("first", 0),
                names={flat: Own(*own) for flat, own in turn.get("names", {}).items()},
            )
            for turn in await self._sessions.turns(tenant, conversation_id)
        ]

    async def append(
        self, tenant: str, conversation_id: str, given: Given, turn_id: str, cut: Cut, *, once: bool = False
    ) -> tuple[Turn, bool]:
        """Adds a turn of this id, in hex; `once`: unless there is one. Returns it, and whether there was. The messages may have
        marks of `cut`. Raises SessionBusy while a response of the conversation runs: its turn comes first."""
        names = self._key.session(tenant, check_id(conversation_id))
        messages = given.messages
        base, tokens = f"chatcmpl-{turn_id}", estimate_tokens(messages)
        turn = {"generation_id": base, "added": True, "at_ms": now_ms(), "tokens": tokens, "messages": messages}
        if given.names:
            turn["names"] = {flat: list(own) for flat, own in given.names.items()}
        holder = session_holder(tenant, conversation_id)
        stored = await self._blobs.store(holder, tenant, json.dumps(turn), of=cut)
        if cut.holes:  # what is shown of it has marks of what is stored
            messages = json.loads(await self._blobs.marked(tenant, stored))["messages"]
        waiting = await self._sessions.open(tenant, conversation_id)
        number, there = 0, False

        def queue(pipe: Any, seen: list[Any]) -> None:
            nonlocal number, there
            exists, last, open_ones, *turns = seen
            if not exists:
                raise NotFound(NOT_FOUND)
            for entry_id, fields in turns[0]:
                if _is_of(fields, base.encode()):
                    number, there = int(entry_id.partition(b"-")[0]), once
                    return
            if waiting or open_ones:
                raise SessionBusy("A response of this conversation runs. Wait for its end, or cancel it.")
            number = max([int(last or 0), *(int(entry_id.partition(b"-")[0]) for entry_id, _ in turns[0])]) + 1
            pipe.hset(names.head, mapping={"turn": number, "updated_at_ms": now_ms()})
            pipe.xadd(names.turns, {**_fields(stored), _ID: base.encode()}, id=f"{number}-0")
            for field, amount in (("turns", 1), ("tokens", tokens), ("bytes", len(stored.data))):
                pipe.hincrby(names.head, field, amount)
            self._sessions.prolong(pipe, tenant, conversation_id)

        looks: list[Any] = [("EXISTS", names.head), ("HGET", names.head, "turn"), ("ZCARD", names.open)]
        # Without a key, too: where only the reply was lost, this is done once more.
        last: list[Any] = ["XREVRANGE", names.turns, "+", "-", "COUNT", 1]
        looks.append(("XRANGE", names.turns, "-", "+") if once else tuple(last))
        await transact(self._redis, [names.head, names.open], looks, queue)
        return Turn(number, base, messages, generated=False, first=0, names=given.names), there

    async def change(self, tenant: str, conversation_id: str, number: int, change: Change) -> None:
        """Gives a turn the messages that `change` makes of those that it has, once more where another change came before: a
        stream is written anew for that, as large as a session may be."""
        while not await self._change(tenant, conversation_id, number, change):
            pass

    async def _change(self, tenant: str, conversation_id: str, number: int, change: Change) -> bool:
        """False, and nothing is done, where the turn was changed meanwhile."""
        names = self._key.session(tenant, check_id(conversation_id))
        turn, found = await self._sessions.turn(tenant, conversation_id, number)
        messages = change(turn["messages"])
        tokens = estimate_tokens(present(messages))
        plain = {name: value for name, value in turn.items() if name not in ("bytes", "number")}
        data = json.dumps({**plain, "tokens": tokens, "messages": messages})
        stored = await self._blobs.store(session_holder(tenant, conversation_id), tenant, data)
        as_it_was = True

        def queue(pipe: Any, seen: list[Any]) -> None:
            nonlocal as_it_was
            turns = [(entry_id, dict(zip(fields[::2], fields[1::2], strict=True))) for entry_id, fields in seen[0]]
            # All of its fields: the text of a large one is in a blob, and only the blob's name tells two apart.
            as_it_was = any(entry_id == b"%d-0" % number and pairs == found for entry_id, pairs in turns)
            if not as_it_was:
                return
            pipe.delete(names.turns)
            for entry_id, pairs in turns:
                if entry_id == b"%d-0" % number:  # not with the blobs of the old one, if the new one has none
                    pairs.pop(BLOBS, None)
                    pairs.update(_fields(stored))
                pipe.xadd(names.turns, pairs, id=entry_id)
            pipe.hincrby(names.head, "tokens", tokens - turn["tokens"])
            pipe.hincrby(names.head, "bytes", len(stored.data) - turn["bytes"])
            pipe.hset(names.head, "updated_at_ms", str(now_ms()))
            self._sessions.prolong(pipe, tenant, conversation_id)

        await transact(self._redis, [names.turns], [("XRANGE", names.turns, "-", "+")], queue)
        return as_it_was


def _fields(stored: Stored) -> dict[bytes, bytes]:
    return {b"t": stored.data} if stored.blobs is None else {b"t": stored.data, BLOBS: stored.blobs}


def _is_of(fields: Sequence[bytes], turn_id: bytes) -> bool:
    """Whether a turn has this id; older ones say it in their text alone, which may be in a blob."""
    pairs = dict(zip(fields[::2], fields[1::2], strict=True))
    return pairs[_ID] == turn_id if _ID in pairs else turn_id in pairs.get(b"t", b"")


def without(messages: Messages, place: int, call: int | None) -> Messages:
    """The messages with a mark in the place of one, or of its text if there are calls beside it; or of a call of its."""
    message = messages[place]
    if call is not None:
        calls = list(message["tool_calls"])
        calls[call] = {"type": "deleted"}
        rest = {**message, "tool_calls": calls}
    elif message.get("tool_calls"):
        rest = {"role": message["role"], "content": None, "deleted": True, "tool_calls": message["tool_calls"]}
    else:
        rest = {"role": "deleted"}
    return [*messages[:place], rest, *messages[place + 1 :]]
