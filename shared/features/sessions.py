"""Sessions: a conversation that the broker remembers, a turn for each finished generation.

Hidden here: that a session is a log, too. Its turns are entries of one Redis stream at ids `N-0`, N being the number the
turn was given when its request was accepted; a generation's turn is appended in the transaction that settles it, so it is
there once, whole and in order, however often it is settled. One generation of a session runs at a time: the open
ones stand in a sorted set by their numbers, and only the first of them is rung for.

    {…}:turns   stream    N-0  {"generation_id", "at_ms", "messages": […], "tokens", "first"?, "added"?, "names"?}
    {…}:open    zset      generation id → N
    {…}:head    hash        created_at_ms, updated_at_ms, turn (the last number given), turns, bytes, tokens,
                          metadata?
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

from shared.chat.messages import (
    CHARACTERS_PER_TOKEN,
    Messages,
    after_last_answer,
    characters,
    new_messages,
    present,
    turn_message,
    visible_text,
)
from shared.config.settings import Settings
from shared.errors import BadRequest, NotFound, SessionBusy, SessionTooLarge
from shared.features.blobs import Blobs, session_holder
from shared.features.effect import Commands, Ended
from shared.features.responses.namespaces import names_in
from shared.lib import json
from shared.lib.clock import now_ms
from shared.log.blobs import BLOBS, Stored
from shared.log.decoding import Fields, by_name
from shared.log.entry import Status
from shared.log.records import Header, SessionTerms
from shared.store.merged import merged
from shared.store.redis import ArqRedis
from shared.store.transaction import Command, beside, commit

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}")
_PAGE = 100
_TURNS = frozenset({Status.COMPLETED, Status.INCOMPLETE})
NOT_FOUND = "There is no session with this id. It may have expired, or belong to another tenant."


def check_id(session_id: str) -> str:
    """The id, if it is one. Raises BadRequest: no foreign text gets into a key."""
    if not _ID.fullmatch(session_id):
        raise BadRequest(
            "A session_id is 1 to 128 letters, digits, `_`, `.`, `:` or `-`, and begins with a letter or digit.",
            param="session_id",
        )
    return session_id


def estimate_tokens(messages: Sequence[dict[str, Any]]) -> int:
    """A quarter of the characters: what a session's limits go by, whatever model it is asked with."""
    return sum(map(characters, messages)) // CHARACTERS_PER_TOKEN


def _terms(header: Header) -> SessionTerms:
    """Of a generation that belongs to a session."""
    terms = header.get("session")
    assert terms is not None
    return terms


class _Turn(NamedTuple):
    """What a generation adds to its session."""

    tokens: int
    stored: Stored


class Sessions:
    """All sessions of one Redis. Methods raise RedisError or OSError when the server is away."""

    def __init__(self, redis: ArqRedis, settings: Settings, blobs: Blobs) -> None:
        self._redis, self._settings, self._blobs = redis, settings, blobs
        self._key = redis.key
        self.life_ms = self._life_ms = int(settings.session_retention_s * 1000)
        """How long one is kept that nothing is added to."""

    # ---- a generation's way through its session

    async def reserve(self, pipe: Any, header: Header) -> int:
        """Gives a generation its number, as part of the transaction that creates its log. Returns about how many tokens stand
        before its messages, by what the session holds now.

        `pipe` comes back in MULTI, with the session's commands queued and `header["session"]["turn"]` set. Raises
        SessionBusy where another one is open and the policy is `reject`; SessionTooLarge where the history is over the
        limit and nothing may be left out.
        """
        session, tenant = _terms(header), header["owner"]
        names = self._key.session(tenant, session["id"])
        await pipe.watch(names.open, names.head, self._key.log(header["id"]))
        if await pipe.exists(self._key.log(header["id"])):  # made before: whatever was to be done here was done
            pipe.multi()
            return 0
        waiting = await self._waiting(pipe, names.open)
        # With a key, another request may have made this very one since we looked: what is watched sends us round again.
        if waiting and session["policy"] == "reject" and header["id"] not in waiting:
            raise SessionBusy(
                f"The session is busy with {waiting[0]}. Wait for it, cancel it, or set session_policy to `enqueue` or "
                "`interrupt`."
            )
        head = await pipe.hmget(names.head, "turn", "tokens", "bytes", "turns")
        number, tokens, size, turns = (int(value or 0) for value in head)
        if turns and not number:  # older versions wrote the turn of a deleted one, and left half a session
            number = max(int(entry_id.partition(b"-")[0]) for entry_id, _ in await pipe.xrevrange(names.turns, count=1))
        self._check_size(session, tokens, size)
        session["turn"] = number + 1
        now = now_ms()
        pipe.multi()
        pipe.hset(names.head, mapping={"turn": number + 1, "updated_at_ms": now})
        pipe.hsetnx(names.head, "created_at_ms", now)
        pipe.zadd(names.open, {header["id"]: number + 1})
        pipe.zadd(self._listed(tenant, session["id"]), {session["id"]: now})
        self.prolong(pipe, tenant, session["id"])
        return 0 if session.get("client_history") else min(tokens, session["max_tokens"])

    def _check_size(self, session: SessionTerms, tokens: int, size: int) -> None:
        if session.get("trim") == "oldest" or session.get("client_history"):
            return
        limits = ((tokens, session["max_tokens"], "tokens"), (size, self._settings.session_max_bytes, "bytes"))
        for amount, limit, unit in limits:
            if amount > limit:
                raise SessionTooLarge(
                    f"The session holds {amount} {unit}, more than {limit}. Begin a new one, or set session_trim to "
                    "`oldest` to leave the oldest turns out."
                )

    async def _waiting(self, pipe: Any, name: str) -> list[str]:
        """Open generations of a session, first first. One without a log (lost with its server) is no turn."""
        members = [member.decode() for member in await pipe.zrange(name, 0, -1)]
        there = [await pipe.exists(self._key.log(member)) for member in members]
        ghosts = [member for member, log in zip(members, there, strict=True) if not log]
        if ghosts:
            await self._redis.zrem(name, *ghosts)
        return [member for member in members if member not in ghosts]

    async def is_next(self, header: Header) -> bool:
        """Whether no generation of its session is before this one, which may belong to none."""
        session = header.get("session")
        if session is None:
            return True
        waiting = await self.open(header["owner"], session["id"])
        return header["id"] not in waiting or waiting[0] == header["id"]  # not in it: its session was deleted

    async def open(self, tenant: str, session_id: str) -> list[str]:
        """The session's open generations, in the order in which they run."""
        return await self._waiting(self._redis, self._key.session(tenant, session_id).open)

    def place(self, header: Header) -> tuple[str, Command, str] | None:
        """The key, the read and the answer by which a session still has an open turn for this generation, which may belong to
        none. One that was deleted since has not, be there another of its name by now: then `effect` is not to be done."""
        session = header.get("session")
        if session is None:
            return None
        name = self._key.session(header["owner"], session["id"]).open
        return name, ("ZSCORE", name, header["id"]), str(session["turn"])

    async def before(self, header: Header) -> list[str]:
        """Open generations of its session that this one has to wait for."""
        waiting = await self.open(header["owner"], _terms(header)["id"])
        return waiting[: waiting.index(header["id"])] if header["id"] in waiting else []

    async def split_history(self, header: Header, messages: Messages) -> tuple[Messages, Messages]:
        """What the session puts before a request's messages, and what of these is new.

        The same however often it is asked, as long as the generation is open. With trim `oldest`, the history is as many
        of the newest turns as are within the limits.
        """
        session = header.get("session")
        if session is None or session.get("client_history"):
            return [], messages
        found = await self.turns(header["owner"], session["id"], before=session["turn"])
        if session.get("trim") == "oldest":
            found = self._newest_within(found, session["max_tokens"])
        history = [message for turn in found for message in present(turn["messages"])]
        return history, new_messages(history, messages)

    def _newest_within(self, found: list[dict[str, Any]], max_tokens: int) -> list[dict[str, Any]]:
        tokens = size = 0
        for place in range(len(found) - 1, -1, -1):
            tokens += found[place]["tokens"]
            size += found[place]["bytes"]
            if tokens > max_tokens or size > self._settings.session_max_bytes:
                return found[place + 1 :]
        return found

    async def turns(self, tenant: str, session_id: str, *, before: int | None = None) -> list[dict[str, Any]]:
        """Turns in order, each with its `number`, its size in `bytes`, and marks for blobs (`shared.log.blobs`)."""
        found: list[dict[str, Any]] = []
        name, start = self._key.session(tenant, session_id).turns, "-"
        end = "+" if before is None else f"({before}-0"
        while page := await self._redis.xrange(name, start, end, count=_PAGE):
            for entry_id, fields in page:
                found.append(await self._read(tenant, entry_id, fields))
            start = f"({page[-1][0].decode()}"
        return found

    async def turn(self, tenant: str, session_id: str, number: int) -> tuple[dict[str, Any], Mapping[bytes, bytes]]:
        """One of them, and its fields as they stand there. Raises NotFound."""
        name = self._key.session(tenant, session_id).turns
        for entry_id, fields in await self._redis.xrange(name, f"{number}-0", f"{number}-0"):
            return await self._read(tenant, entry_id, fields), by_name(fields)
        raise NotFound(NOT_FOUND)

    async def _read(self, tenant: str, entry_id: bytes, fields: Fields) -> dict[str, Any]:
        named = by_name(fields)
        text = await self._blobs.marked(tenant, Stored(named[b"t"], named.get(BLOBS)))
        return {**json.loads(text), "number": int(entry_id.partition(b"-")[0]), "bytes": len(named[b"t"])}

    async def effect(self, ended: Ended) -> Commands | None:
        """A generation's way out of its session: its turn, if it has one, and its place for the next."""
        if not ended.header.get("session"):
            return None
        return partial(self._leave, header=ended.header, turn=await self._stored_turn(ended))

    async def _stored_turn(self, ended: Ended) -> _Turn | None:
        """What is to be written of a turn. What of it is large is held by its session from here on."""
        messages = await self._turn(ended)
        if messages is None:
            return None
        header, tokens = ended.header, estimate_tokens(messages)
        turn = {"generation_id": header["id"], "at_ms": now_ms(), "tokens": tokens, "messages": messages}
        transcript = await ended.transcript()
        if transcript and visible_text(transcript.fold.messages[0], think_tags=transcript.think_tags).reasoning:
            turn["first"] = 1
        if transcript and (names := names_in(messages, transcript.names)):
            turn["names"] = {flat: list(own) for flat, own in names.items()}
        data = json.dumps(turn)
        holder = session_holder(header["owner"], _terms(header)["id"])
        return _Turn(tokens, await self._blobs.store(holder, header["owner"], data, accepted=True))

    async def _turn(self, ended: Ended) -> Messages | None:
        """What a finished generation adds to its session: the request's new messages and the answer's."""
        session, outcome = _terms(ended.header), ended.outcome
        is_answer = outcome["status"] in _TURNS and outcome["error"] is None  # not, if it was ended for its size
        if not is_answer and not session.get("keep_partial"):
            return None
        transcript = await ended.transcript()
        answers = transcript.fold.result()["choices"] if transcript else None
        if transcript is None or not answers:
            return None
        asked = after_last_answer(transcript.asked) if session.get("client_history") else transcript.asked
        answer = turn_message(
            answers[0]["message"], store_reasoning=session["store_reasoning"], think_tags=transcript.think_tags
        )
        return [*asked, answer]

    def _leave(self, pipe: Any, header: Header, turn: _Turn | None) -> None:
        session, tenant = _terms(header), header["owner"]
        names = self._key.session(tenant, session["id"])
        if turn is not None:
            data, blobs = turn.stored
            fields: dict[Any, Any] = {"t": data} if blobs is None else {"t": data, BLOBS: blobs}
            pipe.xadd(names.turns, fields, id=f"{session['turn']}-0")
            for field, amount in (("turns", 1), ("tokens", turn.tokens), ("bytes", len(data))):
                pipe.hincrby(names.head, field, amount)
            pipe.hset(names.head, "updated_at_ms", str(now_ms()))
        pipe.zrem(names.open, header["id"])
        self.prolong(pipe, tenant, session["id"])

    def prolong(self, pipe: Any, tenant: str, session_id: str) -> None:
        """Adds commands that keep it from now on for as long as sessions are kept."""
        names, listed = self._key.session(tenant, session_id), self._listed(tenant, session_id)
        for name in (names.head, names.turns, names.open, listed):
            pipe.pexpire(name, self._life_ms)
        pipe.zremrangebyscore(listed, "-inf", now_ms() - self._life_ms)

    def _listed(self, tenant: str, session_id: str) -> str:
        """The list that it stands in."""
        return self._key.sessions(tenant, self._key.cells.of_session(tenant, session_id))

    def _lists(self, tenant: str) -> list[str]:
        return [self._key.sessions(tenant, cell) for cell in self._key.cells.all]

    # ---- what one may look at

    async def describe(self, tenant: str, session_id: str) -> dict[str, Any]:
        """The session object. Raises NotFound."""
        names = self._key.session(tenant, check_id(session_id))
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.hgetall(names.head)
            pipe.zrange(names.open, 0, -1)
            pipe.pttl(names.head)
            raw, waiting, left_ms = await pipe.execute()
        if not raw:
            raise NotFound(NOT_FOUND)
        head = {name.decode(): int(value) for name, value in raw.items() if name != b"metadata"}
        return {
            "id": session_id,
            "object": "session",
            "created_at": head.get("created_at_ms", head["updated_at_ms"]) // 1000,  # half a session: see `reserve`
            "updated_at": head["updated_at_ms"] // 1000,
            "expires_at": (now_ms() + left_ms) // 1000,
            "turns": head.get("turns", 0),
            "tokens": head.get("tokens", 0),
            "bytes": head.get("bytes", 0),
            "open": [member.decode() for member in waiting],
        }

    async def messages(self, tenant: str, session_id: str) -> list[dict[str, Any]]:
        """All messages of all turns, in order, each with its turn's number of messages and generation, and with marks for
        blobs. Raises NotFound."""
        await self.describe(tenant, session_id)
        return [
            {
                "id": f"{turn['generation_id']}-{place}",
                "object": "session.message",
                "created_at": turn["at_ms"] // 1000,
                "generation_id": turn["generation_id"],
                **message,
            }
            for turn in await self.turns(tenant, session_id)
            for place, message in enumerate(present(turn["messages"]))
        ]

    async def newest(self, tenant: str, after: str | None, count: int) -> list[dict[str, Any]]:
        """Sessions, last used first, from just after the id `after`. Raises NotFound if that one is unknown."""
        if self._key.cells.count > 1:
            return await self._newest({tenant: self._lists(tenant)}, after and check_id(after), count, tenant)
        start, listed = 0, self._key.sessions(tenant, 0)
        if after is not None:
            rank = await self._redis.zrevrank(listed, check_id(after))
            if rank is None:
                raise NotFound("`after` must be the id of a session in this list.")
            start = rank + 1
        found: list[dict[str, Any]] = []
        while len(found) < count:
            ids = await self._redis.zrevrange(listed, start, start + count - 1)
            if not ids:
                break
            for raw in ids:
                try:
                    found.append(await self.describe(tenant, raw.decode()))
                except NotFound:
                    continue
            start += len(ids)
        return found[:count]

    async def newest_of(self, tenants: Iterable[str], after: str | None, count: int) -> list[dict[str, Any]]:
        """Sessions of these tenants, last used first, each with its `tenant`. Two tenants may each have one of the same name,
        so `after` is `TENANT:SESSION`. Raises NotFound if that one is unknown."""
        owner, _, last = after.partition(":") if after is not None else (None, "", None)
        indexes = {tenant: self._lists(tenant) for tenant in tenants}
        return await self._newest(indexes, last, count, owner)

    async def _newest(
        self, indexes: Mapping[str, Sequence[str]], last: str | None, count: int, owner: str | None
    ) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        try:
            async for place in merged(self._redis, indexes, last, of=owner):
                with suppress(NotFound):
                    found.append({**await self.describe(place.owner, place.member), "tenant": place.owner})
                if len(found) == count:
                    break
        except LookupError:
            raise NotFound("`after` must be the TENANT:ID of a session in this list.", param="after") from None
        return found

    async def delete(self, tenant: str, session_id: str) -> None:
        """Forgets it. What still runs is the caller's to cancel first."""
        names = self._key.session(tenant, session_id)
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.delete(names.head, names.turns, names.open)
            pipe.zrem(self._listed(tenant, session_id), session_id)
            pipe.control.zadd(self._key.blob_holders, {session_holder(tenant, session_id): 0}, xx=True)
            await commit(pipe)
            await beside(pipe)
