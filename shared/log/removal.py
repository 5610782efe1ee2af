"""The end of a log's life: sealed although memory is full, made as small as it is, deleted by its owner, or kept for longer
because something goes on from it.

Hidden here: that a deleted log leaves a mark for a while, so that no worker writes it again, and that one which something goes
on from is hidden instead, and goes with the last that needs it. Every method raises RedisError or OSError when the server is
away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from shared.lib import json
from shared.log import feed as events
from shared.log.archive.form import Name, pointer_in
from shared.log.decoding import HIDDEN, decode
from shared.log.entry import HEADER, SEAL, Position
from shared.log.feed import Feed
from shared.log.listing import LogListing
from shared.log.records import Header, Outcome
from shared.store.commands import Words
from shared.store.jobs import queue
from shared.store.redis import ResponseError
from shared.store.transaction import Command, commit, transact

_DELETED_MS = 60_000
"""Longer than anybody writes to, or waits for, a log that is gone."""

_SEAL_SCRIPT = """#!lua flags=allow-oom
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)
if #last == 0 then return false end
if ARGV[4] ~= '' and last[1][1] ~= ARGV[4] then
  return redis.error_reply('ERR not the last entry any more, or equal or smaller')
end
local id = redis.call('XADD', KEYS[1], ARGV[2], 'o', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PEXPIRE', KEYS[4], ARGV[3])
redis.call('ZREM', KEYS[2], ARGV[5])
redis.call('SADD', KEYS[3], ARGV[5])
local at = 6
while ARGV[at] do
  local words = tonumber(ARGV[at])
  redis.call(unpack(ARGV, at + 1, at + words))
  at = at + words + 1
end
return id
"""
"""From word 6 on, what is told with it, each command as the number of its words and these. Needs Redis 7 or Valkey. An older
server refuses it, and the end waits for room."""


class LogRemoval(LogListing):
    """Ends logs where memory is full; keeps them, and deletes them."""

    feed: Feed | None = None
    """Where what is done here is told. Whoever puts the features together sets it; None: it is told nowhere."""

    def compact_with(self, pipe: Any, generation_id: str) -> None:
        """Adds to what is done when a log has ended: the memory that its server has at hand for further entries is given back.
        The newest node of a stream has 4 kB, however little of that is used (STREAM_LISTPACK_MAX_PRE_ALLOCATE in
        src/t_stream.c); a copy has what it needs. Readers find the same under the same name. Of a log that is gone, nothing."""
        key, kept = self._key.log(generation_id), self._key.kept(generation_id)
        queue(pipe, (b"COPY", key, kept), (b"COPY", kept, key, b"REPLACE"), (b"DEL", kept))

    async def _seal_when_full(
        self, generation_id: str, outcome: Outcome, last: Position | None, kept_ms: int, told: Sequence[Words]
    ) -> Any:
        """The same in a script that may write over the memory limit: the end of a stream must not wait for room. With
        `last`, only while that is the last entry."""
        key, cell = self._key, self._key.cells.of(generation_id)
        names = [key.log(generation_id), key.open(cell), key.unsettled(cell), key.metadata(generation_id)]
        arguments: list[Any] = [json.dumps(outcome), str(SEAL), str(kept_ms), str(last or ""), generation_id]
        if self.feed is not None and not key.cells.apart:
            names.append(self.feed.name)
            for words in told:
                arguments += (len(words), *words)
        try:
            return await self._redis.eval(_SEAL_SCRIPT, len(names), *names, *arguments)  # type: ignore[misc]
        except ResponseError as error:
            return error

    async def keep(self, generation_ids: Sequence[str], kept_ms: int) -> Header | None:
        """Keeps these for so long at least, deleted or not: something goes on from them. Returns the header of the last one,
        None where one of them is not there. The mark comes first: who deletes one of them sees it, or this sees it gone."""
        last = self._key.log(generation_ids[-1])
        names = [
            name
            for one in generation_ids
            for name in (self._key.log(one), self._key.settled(one), self._key.metadata(one))
        ]
        async with self._redis.pipeline(transaction=False) as pipe:
            for generation_id in generation_ids:
                pipe.set(self._key.continued(generation_id), b"1", px=kept_ms)
            for name in names:
                pipe.pttl(name)
            pipe.xrange(last, str(HEADER), str(HEADER))
            *told, raw = await pipe.execute()
            left = told[len(generation_ids) :]
            if -2 in left[::3] or not raw:
                return None
            short = [name for name, left_ms in zip(names, left, strict=True) if 0 <= left_ms < kept_ms]
            for name in short:
                pipe.pexpire(name, kept_ms)
            kept = dict(zip(short, await commit(pipe), strict=True))
            if not all(kept.get(log, True) for log in names[::3]):  # it has expired since
                return None
        return cast(Header, json.loads(decode(raw)[0].data))

    async def delete(self, generation_id: str, tenant: str) -> None:
        """Removes the log; writers find it Gone. Sealing first is the caller's business. What something goes on from (`keep`)
        is hidden from everyone, and goes with the last that needs it."""
        key, cell = self._key.log(generation_id), self._key.cells.of(generation_id)

        def queue(pipe: Any, seen: list[Any]) -> None:
            continued, left_s, end = seen
            if continued and left_s >= 0:
                pipe.set(self._key.metadata(generation_id), HIDDEN, px=(left_s + 1) * 1000)
                self._queue_unlist(pipe, generation_id, tenant)
            else:
                self._queue_delete(pipe, generation_id, tenant)
                if (pointer := pointer_in(end)) is not None:  # the reaper is to find it gone
                    pipe.zadd(self._key.archived(cell), {str(Name(tenant, generation_id, pointer.copy)): 0})
            if self.feed is not None:
                self.feed.add(pipe.control, events.deleted(generation_id, tenant))

        # Watched: in this moment it may become an object, which must not be left over, and something may go on from it.
        continued_by = self._key.continued(generation_id)
        looks: list[Command] = [("EXISTS", continued_by), ("TTL", key)]
        looks.append(("XREVRANGE", key, "+", "-", "COUNT", 1))
        await transact(self._redis, [key, continued_by], looks, queue)

    async def delete_all(self, generation_ids: Sequence[str], tenant: str) -> None:
        """The same for many of one tenant, without those that are to be kept longer because they were stored."""
        if not generation_ids:
            return
        async with self._redis.pipeline(transaction=False) as pipe:
            for generation_id in generation_ids:
                pipe.zscore(self._key.stored(tenant, self._key.cells.of(generation_id)), generation_id)
            kept = await pipe.execute()
            for generation_id, stored in zip(generation_ids, kept, strict=True):
                if stored is None:
                    self._queue_delete(pipe, generation_id, tenant)
            await commit(pipe)

    def _queue_delete(self, pipe: Any, generation_id: str, tenant: str) -> None:
        pipe.delete(self._key.log(generation_id), self._key.metadata(generation_id), self._key.settled(generation_id))
        self._queue_unlist(pipe, generation_id, tenant)
        pipe.control.zadd(self._key.blob_holders, {generation_id: 0}, xx=True)  # what it held is to be let go of

    def _queue_unlist(self, pipe: Any, generation_id: str, tenant: str) -> None:
        pipe.set(self._key.deleted(generation_id), b"1", px=_DELETED_MS)
        cell = self._key.cells.of(generation_id)
        for index in (self._key.open(cell), self._key.index(tenant, cell), self._key.stored(tenant, cell)):
            pipe.zrem(index, generation_id)
