"""Keys that are data: made, changed, rotated and revoked while the server runs, and known to every API process within a second.

Hidden here: that of a key only the SHA-256 is kept, which leads back to no key, since a key is 256 random bits; that each
change goes with a new version, which `key_ring.py` looks for; and how long what is revoked or expired is still listed. When a
key was used last stands in a hash of its own: it is written once a minute, and is no change.

Keys from the environment are the operator's, and not touched here. What a caller may do with a role: `api/access/rules.py`.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, TypedDict

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from shared.chat.checking import check
from shared.config.limits import OF_TENANTS
from shared.config.prices import BudgetName
from shared.config.tenants import TENANT
from shared.errors import BadRequest, NotFound
from shared.features.access.audit import Actor, Audit
from shared.lib import json
from shared.lib.clock import now_ms
from shared.store.availability import deadline, translate_errors
from shared.store.confirm import Confirmer
from shared.store.redis import ArqRedis
from shared.store.transaction import transact

Role = Literal["admin", "tenant", "viewer", "token", "share", "control"]
"""`tenant` asks and reads what is the tenant's; `viewer` only reads it; `admin` does so for every tenant, and looks after keys
and limits. The others are none of a key: `token` reads one stream, `share` as much of it as is shared, and `control` may end
it, too."""

FORM = "sk-ss-"
"""What every key that is made here begins with, so that one that leaked is found, by people and by scanners."""
MOST = 10_000
"""Keys there may be, with those that are still listed."""
KEPT_S = 400 * 86400
"""How long one that was revoked or has expired is listed: as long as the ledger."""
LONGEST_OVERLAP_S = 30 * 86400
MOST_SECRETS = 10
"""Of one key, that hold at once."""
_ID = re.compile(r"key_[0-9a-f]{24}")
_UNKNOWN = "There is no key with this id."


class Secret(TypedDict):
    """What is kept of what a client sends."""

    sha256: str
    hint: str
    """Its last four characters."""
    expires_at: NotRequired[int | None]
    """When it has been replaced by then; Unix seconds."""


class KeyRecord(TypedDict):
    """A key as it is stored. Times are Unix seconds."""

    id: str
    name: str
    tenant: str
    role: Role
    created_at: int
    expires_at: int | None
    revoked_at: int | None
    secrets: list[Secret]
    """The newest first; the others hold until their own end."""
    models: list[str] | None
    """Which may be asked for, as patterns; None: all."""
    limits: dict[str, int]
    budgets: dict[str, float]


class Snapshot(NamedTuple):
    """All there is, at one time."""

    version: bytes
    records: list[KeyRecord]
    limits: dict[str, dict[str, int]]
    """Of tenants."""


_Count = Annotated[int, Field(ge=1, le=2**53)]
_Money = Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
_Pattern = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class LimitsRequest(BaseModel):
    """The fields of `Limits`; null, or none: as much as is asked for."""

    model_config = ConfigDict(extra="forbid", strict=True)

    requests_per_min: _Count | None = None
    tokens_per_min: _Count | None = None
    running: _Count | None = None
    waiting: _Count | None = None
    viewers: _Count | None = None
    stored_bytes: _Count | None = None
    file_bytes: _Count | None = None
    open_batches: _Count | None = None
    webhooks: _Count | None = None
    body_bytes: _Count | None = None

    @classmethod
    def check(cls, body: object) -> LimitsRequest:
        """Raises BadRequest naming the first wrong field."""
        return check(cls, body)

    def given(self) -> dict[str, int]:
        """Those that say something."""
        return self.model_dump(exclude_none=True)


class _Terms(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    name: Annotated[str, StringConstraints(max_length=100)] = ""
    expires_at: Annotated[int, Field(ge=1, le=2**40)] | None = None
    models: Annotated[list[_Pattern], Field(min_length=1, max_length=100)] | None = None
    limits: LimitsRequest = LimitsRequest()
    budgets: Annotated[dict[BudgetName, _Money], Field(max_length=20)] = {}

    @field_validator("limits")
    @classmethod
    def _are_a_keys(cls, value: LimitsRequest) -> LimitsRequest:
        if of_tenants := value.given().keys() & set(OF_TENANTS):
            raise ValueError(f"{min(of_tenants)} is a tenant's, and set at /v1/limits")
        return value

    @field_validator("name")
    @classmethod
    def _is_one_line(cls, value: str) -> str:
        if not value.isprintable():
            raise ValueError("Input should be one line of text, without control characters")
        return value

    @field_validator("expires_at")
    @classmethod
    def _is_to_come(cls, value: int | None) -> int | None:
        if value is not None and value * 1000 <= now_ms():
            raise ValueError("Input should be a time to come, in Unix seconds")
        return value

    def terms(self) -> dict[str, Any]:
        """The fields of a record that the request tells."""
        fields = {name: getattr(self, name) for name in ("name", "expires_at", "models", "budgets")}
        told = {**fields, "limits": self.limits.given()}
        return {name: value for name, value in told.items() if name in self.model_fields_set}


class KeyChange(_Terms):
    """Body of POST /v1/keys/{id}: what stands there replaces what was."""

    @classmethod
    def check(cls, body: object) -> KeyChange:
        """Raises BadRequest naming the first wrong field."""
        return check(cls, body)


class KeyRequest(_Terms):
    """Body of POST /v1/keys."""

    tenant: Annotated[str, StringConstraints(pattern=f"^{TENANT}$")]
    role: Literal["admin", "tenant", "viewer"] = "tenant"

    @classmethod
    def check(cls, body: object) -> KeyRequest:
        """Raises BadRequest naming the first wrong field."""
        return check(cls, body)


def digest_of(key: str) -> bytes:
    """By what a key is known. No slow hash: nothing can be guessed of what is random."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


class KeyStore:
    """Make, change, look up. Every method may raise Unavailable."""

    def __init__(self, redis: ArqRedis, confirmer: Confirmer | None = None) -> None:
        self._redis, self._key, self._confirmer = redis, redis.key, confirmer
        self._audit = Audit(redis)

    async def create(self, request: KeyRequest, by: Actor) -> tuple[KeyRecord, str]:
        """The record and the key, which is told this once. Raises BadRequest when there are too many."""
        await self._make_room()
        key = _new_key()
        record: KeyRecord = {
            "id": f"key_{secrets.token_hex(12)}",
            "name": "",
            "tenant": request.tenant,
            "role": request.role,
            "created_at": now_ms() // 1000,
            "expires_at": None,
            "revoked_at": None,
            "secrets": [_secret(key)],
            "models": None,
            "limits": {},
            "budgets": {},
        }
        record.update(request.terms())  # type: ignore[typeddict-item]
        told = {"role": request.role, **request.terms()}
        return await self._write(record["id"], lambda _: record, by, "key.created", told), key

    async def change(self, key_id: str, change: KeyChange, by: Actor) -> KeyRecord:
        """Raises NotFound; BadRequest for one that was revoked."""
        terms = change.terms()

        def changed(record: KeyRecord | None) -> KeyRecord:
            return {**_usable(record), **terms}  # type: ignore[typeddict-item]

        return await self._write(key_id, changed, by, "key.changed", terms)

    async def rotate(self, key_id: str, overlap_s: int, by: Actor) -> tuple[KeyRecord, str]:
        """The record and its new key; the one before holds for `overlap_s` from now on, 0: not any more. Raises NotFound;
        BadRequest for one that was revoked."""
        key, now = _new_key(), now_ms() // 1000

        def turned(record: KeyRecord | None) -> KeyRecord:
            known = _usable(record)
            until = now + overlap_s
            kept: list[Secret] = [
                {**one, "expires_at": min(one.get("expires_at") or until, until)}
                for one in known["secrets"]
                if overlap_s and (one.get("expires_at") or until) > now
            ]
            if len(kept) >= MOST_SECRETS:
                raise BadRequest(
                    f"{MOST_SECRETS} secrets of this key hold at once. Wait until one has ended, or rotate without an overlap.",
                    code="too_many_keys",
                    param="overlap_s",
                )
            return {**known, "secrets": [_secret(key), *kept]}

        return await self._write(key_id, turned, by, "key.rotated", {"overlap_s": overlap_s}), key

    async def revoke(self, key_id: str, by: Actor) -> KeyRecord:
        """It opens nothing any more, and stays listed. Once more is harmless. Raises NotFound."""

        def ended(record: KeyRecord | None) -> KeyRecord:
            known = _found(record)
            return {**known, "secrets": [], "revoked_at": known["revoked_at"] or now_ms() // 1000}

        return await self._write(key_id, ended, by, "key.revoked", {})

    async def find(self, key_id: str) -> KeyRecord:
        """Raises NotFound."""
        with translate_errors():
            raw = await self._redis.hget(self._key.keys, key_id) if _ID.fullmatch(key_id) else None  # type: ignore[misc]
        return _found(json.loads(raw) if raw else None)

    async def listed(self) -> list[KeyRecord]:
        """All there are, the newest first."""
        with translate_errors():
            found = await self._redis.hvals(self._key.keys)  # type: ignore[misc]
        records: list[KeyRecord] = [json.loads(raw) for raw in found]
        return sorted(records, key=lambda record: (record["created_at"], record["id"]), reverse=True)

    async def set_limits(self, tenant: str, change: Callable[[dict[str, int]], Mapping[str, int]], by: Actor) -> None:
        """Those that hold for a tenant from now on, `*`: for all, over what the settings say: what `change` makes of those that
        were set. It may be called again, if another process wrote. Empty: none."""

        def queue(pipe: Any, seen: list[Any]) -> None:
            limits = dict(change(json.loads(seen[0]) if seen[0] else {}))
            if limits:
                pipe.hset(self._key.limits, tenant, json.dumps(limits))
            else:
                pipe.hdel(self._key.limits, tenant)
            pipe.set(self._key.keys_version, secrets.token_hex(8))
            self._audit.note(pipe, by, "limits.changed", tenant, tenant, limits)

        await self._commit(self._key.limits, tenant, queue)

    async def limits(self) -> dict[str, dict[str, int]]:
        """By tenant."""
        with translate_errors():
            found = await self._redis.hgetall(self._key.limits)  # type: ignore[misc]
        return _limits(found)

    async def changed(self, since: bytes | None) -> Snapshot | None:
        """What there is; None if its version is `since`. Raises RedisError, OSError."""
        if (await self._redis.get(self._key.keys_version) or b"") == since:
            return None
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.get(self._key.keys_version)
            pipe.hvals(self._key.keys)
            pipe.hgetall(self._key.limits)
            version, found, limits = await pipe.execute()
        return Snapshot(version or b"", [json.loads(raw) for raw in found], _limits(limits))

    async def note_used(self, used: dict[str, int]) -> None:
        """When keys were used, in Unix seconds. Raises RedisError, OSError."""
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.hset(self._key.keys_used, mapping=used)
            pipe.expire(self._key.keys_used, KEPT_S)
            await pipe.execute()

    async def used(self) -> dict[str, int]:
        """When each was used last, to the minute."""
        with translate_errors():
            found = await self._redis.hgetall(self._key.keys_used)  # type: ignore[misc]
        return {key_id.decode(): int(at) for key_id, at in found.items()}

    async def _make_room(self) -> None:
        """Forgets what ended long ago. Raises BadRequest where that is not enough."""
        records, before = await self.listed(), now_ms() // 1000 - KEPT_S
        ended = [record["id"] for record in records if (_ended_at(record) or before + 1) <= before]
        if len(records) - len(ended) >= MOST:
            raise BadRequest(f"There are {MOST} keys, and no more can be made.", code="too_many_keys")
        if ended:
            with translate_errors():
                await self._redis.hdel(self._key.keys, *ended)  # type: ignore[misc]

    async def _write(
        self,
        key_id: str,
        make: Callable[[KeyRecord | None], KeyRecord],
        by: Actor,
        action: str,
        told: Mapping[str, Any],
    ) -> KeyRecord:
        """What `make` makes of the record, under a new version, with its entry in the audit log. Returns once the server's
        death cannot take it any more, where that is promised."""
        written: list[KeyRecord] = []

        def queue(pipe: Any, seen: list[Any]) -> None:
            record = make(json.loads(seen[0]) if seen[0] else None)
            written[:] = [record]
            pipe.hset(self._key.keys, key_id, json.dumps(record))
            pipe.set(self._key.keys_version, secrets.token_hex(8))
            self._audit.note(pipe, by, action, key_id, record["tenant"], told)

        await self._commit(self._key.keys, key_id, queue)
        return written[0]

    async def _commit(self, name: str, field: str, queue: Callable[[Any, list[Any]], None]) -> None:
        async with deadline():
            with translate_errors():
                await transact(self._redis, [name], [("HGET", name, field)], queue)
                if self._confirmer:
                    await self._confirmer.promise(background=True)


def status_of(record: KeyRecord) -> Literal["active", "expired", "revoked"]:
    """Whether it opens anything."""
    if record["revoked_at"]:
        return "revoked"
    return "expired" if record["expires_at"] and record["expires_at"] * 1000 <= now_ms() else "active"


def _ended_at(record: KeyRecord) -> int | None:
    return record["revoked_at"] or record["expires_at"]


def _limits(found: Mapping[bytes, bytes]) -> dict[str, dict[str, int]]:
    return {tenant.decode(): json.loads(raw) for tenant, raw in found.items()}


def _new_key() -> str:
    return f"{FORM}{secrets.token_urlsafe(32)}"


def _secret(key: str) -> Secret:
    return {"sha256": digest_of(key).hex(), "hint": key[-4:]}


def _found(record: KeyRecord | None) -> KeyRecord:
    if record is None:
        raise NotFound(_UNKNOWN)
    return record


def _usable(record: KeyRecord | None) -> KeyRecord:
    known = _found(record)
    if known["revoked_at"]:
        raise BadRequest("This key was revoked. Make another one.", code="key_revoked")
    return known
