"""The ledger: who used what, for 400 days, in bounded memory. An effect of each generation that ends.

Hidden here: that it is kept by the hour for 8 days and by the day after that; that within an hour each row is a small hash of
its own, which Redis stores compactly, and in a day one JSON text; and how many rows there may be. What is beyond that is
counted as `other`.

A row is of one key and one model; and, beside these, one of each name and value in `metadata`. So what is asked of metadata
adds up to what there is with them, and can not be told by model.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from shared.features.effect import Commands, Ended
from shared.features.spend import figures
from shared.features.spend.figures import Counts
from shared.lib import json
from shared.lib.clock import now_ms
from shared.log.records import Header, Outcome
from shared.store.availability import translate_errors
from shared.store.redis import ArqRedis
from shared.store.transaction import commit, transact

HOURS_DAYS, DAYS = 8, 400
"""How long the ledger is kept by the hour, and by the day."""
_LIFE_MS = DAYS * 86_400_000
OTHER = "other"
MOST_ROWS, MOST_NAMES, MOST_VALUES = 100, 8, 20
"""Rows of keys and models in an hour, and in a day, unless a setting says otherwise; names in metadata; and values of each."""
_LONGEST = 64
"""Characters of a value in metadata: what is longer is cut."""
_SEPARATOR = "\x1f"
"""Between a model's name and a figure's in a field of the ledger of older versions."""
_FOLDED_AT_ONCE = 50
_FOLD_PAUSE_MS = 600_000
_READ_AT_ONCE = 500
_REMEMBERED = 500

Dims = tuple[str, ...]
"""What a row is of: `("model", KEY, MODEL)`, or `("metadata", NAME, VALUE)`."""
Width = Literal["hour", "day"]


class Row(NamedTuple):
    """Counts of a row in an hour, `2026-11-22T05`, or a day."""

    at: str
    tenant: str
    dims: Dims
    counts: Counts


class Ledger:
    """One for each process."""

    def __init__(self, redis: ArqRedis, most_rows: int = MOST_ROWS) -> None:
        """`most_rows`: of keys and models, in an hour and in a day."""
        self._redis, self._key, self._most = redis, redis.key, most_rows
        self._known: dict[str, dict[str, Dims]] = {}
        """By an hour's index, its rows as they were last read."""

    # ---- what is added

    async def effect(self, ended: Ended) -> Commands | None:
        """Reads an hour's index once for each row in it that is new to this process."""
        tenant, hour, wanted = entry(ended.header, ended.outcome)
        counts = figures.counted(ended.header, ended.outcome)
        index, hours = self._key.usage_index(tenant, hour), self._key.usage_hours(tenant)
        rows = [(_digest(dims), dims) for dims in await self._bounded(index, wanted)]
        started = int(datetime.fromisoformat(hour).replace(tzinfo=UTC).timestamp() * 1000)

        tenants, ended_ms = self._key.usage_tenants, ended.outcome["ended_at_ms"]

        commands: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        for number, (digest, dims) in enumerate(rows):
            name = self._key.usage_row(tenant, hour, digest)
            for code, count in counts.items():
                commands.append(((b"HINCRBY", name, code, count), {}))
            # What follows was done when the row came into the index; the first is of the model, without which is none.
            commands.append(((b"HSET", index, digest, json.dumps(dims)), {"then": 1 if number else 6}))
            commands.append(((b"PEXPIRE", name, _LIFE_MS), {}))
            if number == 0:
                commands += (
                    ((b"PEXPIRE", index, _LIFE_MS), {}),
                    ((b"ZADD", hours, started, hour), {}),
                    ((b"PEXPIRE", hours, _LIFE_MS), {}),
                    ((b"ZADD", tenants, ended_ms, tenant), {}),
                    ((b"PEXPIRE", tenants, _LIFE_MS), {}),
                )

        def add(pipe: Any) -> None:
            pipe.queued += commands

        return add

    async def _bounded(self, index: str, wanted: list[Dims]) -> list[Dims]:
        """The rows to count in: `other` for those that are too many. Processes that add at the same moment may each find
        room for one more."""
        known = self._known.get(index, {})
        for dims in wanted:
            if _digest(dims) not in known:
                break
        else:
            return wanted
        raw: dict[bytes, bytes] = await self._redis.hgetall(index)  # type: ignore[misc]
        known = {digest.decode(): tuple(json.loads(dims)) for digest, dims in raw.items()}
        if len(self._known) >= _REMEMBERED:
            self._known.clear()
        self._known[index] = known
        rows = bounded(known.values(), wanted, self._most)
        known.update({_digest(dims): dims for dims in rows})
        return rows

    # ---- what is folded

    async def fold(self) -> None:
        """Adds hours that are 8 days old to their days, now and then, whichever process comes to it first."""
        now = now_ms()
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.set(self._key.usage_folding, b"1", nx=True, px=_FOLD_PAUSE_MS)
            (taken,) = await commit(pipe)
            if not taken:
                return
            pipe.zremrangebyscore(self._key.usage_tenants, "-inf", now - _LIFE_MS)
            await commit(pipe)
        await self.fold_before(now - HOURS_DAYS * 86_400_000)

    async def fold_before(self, ms: int) -> None:
        for tenant in await self._tenants():
            hours = await self._redis.zrangebyscore(
                self._key.usage_hours(tenant), "-inf", ms - 3_600_000, start=0, num=_FOLDED_AT_ONCE
            )
            for hour in hours:
                await self._fold(tenant, hour.decode())

    async def _fold(self, tenant: str, hour: str) -> None:
        """One hour, unless something is added to it meanwhile: then the next time."""
        index, day = self._key.usage_index(tenant, hour), self._key.usage_day(tenant, hour[:10])
        digests = sorted(digest.decode() for digest in await self._redis.hkeys(index))  # type: ignore[misc]
        rows = [self._key.usage_row(tenant, hour, digest) for digest in digests]

        def queue(pipe: Any, seen: list[Any]) -> None:
            of_index, of_day, *of_rows = (_pairs(reply) for reply in seen)
            if sorted(digest.decode() for digest in of_index) != digests:
                return
            added = [
                (tuple(json.loads(of_index[digest.encode()])), _counts(row))
                for digest, row in zip(digests, of_rows, strict=True)
            ]
            there = [_from_text(text) for text in of_day.values()]
            pipe.delete(day, index, *rows)
            for digest, text in folded([*there, *added], self._most).items():
                pipe.hset(day, digest, text)
            pipe.pexpire(day, _LIFE_MS)
            pipe.zrem(self._key.usage_hours(tenant), hour)

        names = [index, day, *rows]
        await transact(self._redis, names, [("HGETALL", name) for name in names], queue)
        self._known.pop(index, None)

    # ---- what is read

    async def tenants(self) -> list[str]:
        """All that used anything. Raises Unavailable."""
        with translate_errors():
            return await self._tenants()

    async def _tenants(self) -> list[str]:
        return sorted(tenant.decode() for tenant in await self._redis.zrange(self._key.usage_tenants, 0, -1))

    async def rows(self, tenant: str, first: date, last: date, width: Width = "day") -> list[Row]:
        """From the first day to the last (UTC), oldest first; by the hour only what is not yet in its day. Raises
        Unavailable."""
        with translate_errors():
            found = await self._hours(tenant, first, last)
            if width == "hour":
                return found
            days = [(first + timedelta(days=i)).isoformat() for i in range((last - first).days + 1)]
            async with self._redis.pipeline(transaction=False) as pipe:
                for day in days:
                    pipe.hgetall(self._key.usage(tenant, day))
                    pipe.hgetall(self._key.usage_day(tenant, day))
                replies = await pipe.execute()
        merged: dict[tuple[str, Dims], Counts] = {}
        for day, old, new in zip(days, replies[::2], replies[1::2], strict=True):
            for dims, counts in (*_older(old), *map(_from_text, new.values())):
                merged.setdefault((day, dims), Counter()).update(counts)
        for row in found:
            merged.setdefault((row.at[:10], row.dims), Counter()).update(row.counts)
        return [Row(day, tenant, dims, counts) for (day, dims), counts in sorted(merged.items())]

    async def _hours(self, tenant: str, first: date, last: date) -> list[Row]:
        start, end = (datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1000 for day in (first, last))
        raw = await self._redis.zrangebyscore(self._key.usage_hours(tenant), start, end + 86_399_999)
        hours = [hour.decode() for hour in raw]
        if not hours:
            return []
        async with self._redis.pipeline(transaction=False) as pipe:
            for hour in hours:
                pipe.hgetall(self._key.usage_index(tenant, hour))
            indexes = await pipe.execute()
        wanted = [
            (hour, digest.decode(), tuple(json.loads(dims)))
            for hour, index in zip(hours, indexes, strict=True)
            for digest, dims in index.items()
        ]
        found = []
        for at in range(0, len(wanted), _READ_AT_ONCE):
            part = wanted[at : at + _READ_AT_ONCE]
            async with self._redis.pipeline(transaction=False) as pipe:
                for hour, digest, _ in part:
                    pipe.hgetall(self._key.usage_row(tenant, hour, digest))
                for (hour, _, dims), fields in zip(part, await pipe.execute(), strict=True):
                    found.append(Row(hour, tenant, dims, _counts(fields)))
        return found

    async def read(self, tenant: str, first: date, last: date) -> list[dict[str, Any]]:
        """A row for each day and model, `{date, model, requests, …}`, oldest day first. Raises Unavailable."""
        sums: dict[tuple[str, str], Counts] = {}
        for row in await self.rows(tenant, first, last):
            if row.dims[0] == "model":
                sums.setdefault((row.at, row.dims[2]), Counter()).update(row.counts)
        return [{"date": day, "model": model, **figures.shown(counts)} for (day, model), counts in sorted(sums.items())]


def entry(header: Header, outcome: Outcome) -> tuple[str, str, list[Dims]]:
    """Whose a generation is, in which hour it ended, and of which rows it is."""
    served = outcome.get("served")
    model = (served.get("model") if served else None) or header["model"]
    hour = datetime.fromtimestamp(outcome["ended_at_ms"] / 1000, UTC).strftime("%Y-%m-%dT%H")
    rows: list[Dims] = [("model", header.get("key_id") or "", model)]
    rows += [
        ("metadata", name, str(value)[:_LONGEST]) for name, value in sorted((header.get("metadata") or {}).items())
    ]
    return header["owner"], hour, rows


def bounded(there: Iterable[Dims], wanted: Sequence[Dims], most_rows: int = MOST_ROWS) -> list[Dims]:
    """The rows to count in, given those that are there. A name in metadata that is one too many is not counted at all, a value
    is counted as `other`."""
    known = set(there)
    models = sum(dims[0] == "model" for dims in known)
    values = Counter(dims[1] for dims in known if dims[0] == "metadata")
    found: list[Dims] = []
    for dims in wanted:
        if dims not in known:
            if dims[0] == "model":
                dims = dims if models < most_rows else ("model", OTHER, OTHER)
            elif dims[1] not in values and len(values) >= MOST_NAMES:
                continue
            elif values[dims[1]] >= MOST_VALUES:
                dims = ("metadata", dims[1], OTHER)
            values.update([dims[1]] if dims[0] == "metadata" else [])
        found.append(dims)
    return found


def folded(rows: Iterable[tuple[Dims, Counts]], most_rows: int = MOST_ROWS) -> dict[str, bytes]:
    """A day's rows as they are stored, by digest: within the bounds, those with most requests first."""
    sums: dict[Dims, Counts] = {}
    for dims, counts in rows:
        sums.setdefault(dims, Counter()).update(counts)
    kept: dict[Dims, Counts] = {}
    for dims in sorted(sums, key=lambda one: -sums[one]["n"]):
        for place in bounded(kept, [dims], most_rows):
            kept.setdefault(place, Counter()).update(sums[dims])
    return {_digest(dims): json.dumps([dims, counts]) for dims, counts in kept.items()}


def _from_text(text: bytes) -> tuple[Dims, Counts]:
    dims, counts = json.loads(text)
    return tuple(dims), Counter(counts)


def _older(fields: Mapping[bytes, bytes]) -> list[tuple[Dims, Counts]]:
    """A day as older versions kept it: a field for each model and figure."""
    models: dict[str, dict[str, int]] = {}
    for raw, number in fields.items():
        model, _, name = raw.decode().rpartition(_SEPARATOR)
        models.setdefault(model, {})[name] = int(number)
    return [(("model", "", model), figures.older(found)) for model, found in models.items()]


def _pairs(reply: Any) -> dict[bytes, bytes]:
    """HGETALL's reply as it comes, a flat list, or a map."""
    return reply if isinstance(reply, dict) else dict(zip(reply[::2], reply[1::2], strict=True))


def _counts(fields: Mapping[bytes, bytes]) -> Counts:
    return Counter({name.decode(): int(number) for name, number in fields.items()})


@lru_cache(maxsize=1000)
def _digest(dims: Dims) -> str:
    return hashlib.sha256(json.dumps(dims)).hexdigest()[:12]
