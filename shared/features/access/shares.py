"""Shares: links that show one answer to people without a key, and let them end it if they may.

Hidden here: that the token of a share is one as any other (`shared.features.tokens`), so that what opens a stream is looked
up in one way; that what is told of an answer's shares stands beside it, without their tokens; and that each change has its
entry in the audit log, in the same transaction. A share opens nothing any more once its token is gone: revoked, or over.
"""

from __future__ import annotations

import re
import secrets
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

from pydantic import BaseModel, ConfigDict, Field, field_validator

from shared.chat.checking import check
from shared.errors import BadRequest, NotFound
from shared.features.access.audit import Actor, Audit
from shared.features.tokens import Mode, Part, Share, digest_of, new_token, record
from shared.lib import json
from shared.lib.clock import now_ms
from shared.log.records import Header
from shared.store.availability import deadline, translate_errors
from shared.store.redis import ArqRedis
from shared.store.transaction import transact

FORM = "sh_"
"""What every share's token begins with."""
DEFAULT_S, LONGEST_S = 86400, 30 * 86400
MOST = 100
"""Shares of one answer."""
_PARTS: tuple[Part, ...] = ("answer", "prompt", "reasoning")
_ID = re.compile(r"share_[0-9a-f]{24}")
_UNKNOWN = "There is no share with this id, or not any more."


class ShareRecord(TypedDict):
    """A share as it is listed."""

    share: Share
    key_id: str | None
    """The key that made it: it ends with that."""
    sha256: str
    """Of its token."""


class ShareRequest(BaseModel):
    """Body of POST /v1/streams/{id}/shares. `expires_in` are seconds."""

    model_config = ConfigDict(extra="forbid", strict=True)

    mode: Mode = "view"
    expires_in: Annotated[int, Field(ge=1, le=LONGEST_S)] = DEFAULT_S
    include: Annotated[list[Literal["answer", "prompt", "reasoning"]], Field(min_length=1, max_length=3)] = ["answer"]

    @field_validator("include")
    @classmethod
    def _has_the_answer(cls, value: list[Part]) -> list[Part]:
        if "answer" not in value:
            raise ValueError("an answer is shared at least: include `answer`")
        return [part for part in _PARTS if part in value]

    @classmethod
    def check(cls, body: object) -> ShareRequest:
        """Raises BadRequest naming the first wrong field."""
        return check(cls, body)


class NewShare(NamedTuple):
    """`token` is told once, and kept nowhere."""

    record: ShareRecord
    token: str


class Shares:
    """Make, list, revoke. Raises Unavailable."""

    def __init__(self, redis: ArqRedis, audit: Audit) -> None:
        self._redis, self._key, self._audit = redis, redis.key, audit

    async def create(self, header: Header, asked: ShareRequest, by: Actor) -> NewShare:
        """Raises BadRequest where there are too many."""
        now, token, generation_id = now_ms() // 1000, new_token(FORM), header["id"]
        share = Share(
            id=f"share_{secrets.token_hex(12)}",
            mode=asked.mode,
            include=list(asked.include),
            created_at=now,
            expires_at=now + asked.expires_in,
            log_made_ms=header["created_at_ms"],
        )
        made = ShareRecord(share=share, key_id=by.key_id, sha256=digest_of(token))
        name, told = (
            self._key.shares(generation_id),
            {"id": generation_id, "mode": asked.mode, "include": share["include"]},
        )

        def queue(pipe: Any, seen: list[Any]) -> None:
            there = _records(seen[0])
            ended = [one["share"]["id"] for one in there if not _holds(one, header, now)]
            ends = [one["share"]["expires_at"] for one in there if one["share"]["id"] not in ended]
            if len(ends) >= MOST:
                raise BadRequest(f"There are {MOST} shares of this answer. Revoke one first.", code="too_many_shares")
            if ended:
                pipe.hdel(name, *ended)
            pipe.hset(name, share["id"], json.dumps(made))
            pipe.expireat(name, max([share["expires_at"], *ends]))
            opens = record(header["owner"], generation_id, by.key_id, share)
            pipe.control.set(self._key.token(made["sha256"]), opens, ex=asked.expires_in)
            self._audit.note(pipe.control, by, "share.created", share["id"], header["owner"], told)

        await self._commit(name, queue)  # where the control is apart, it opens nothing before it is listed
        return NewShare(made, token)

    async def listed(self, header: Header) -> list[ShareRecord]:
        """Those of an answer that still open it, the newest first."""
        with translate_errors():
            raw = await self._redis.hgetall(self._key.shares(header["id"]))  # type: ignore[misc]
        now = now_ms() // 1000
        found = [one for one in _records(raw) if _holds(one, header, now)]
        return sorted(found, key=lambda one: (one["share"]["created_at"], one["share"]["id"]), reverse=True)

    async def revoke(self, header: Header, share_id: str, by: Actor) -> None:
        """It opens nothing any more. Raises NotFound."""
        if not _ID.fullmatch(share_id):
            raise NotFound(_UNKNOWN)
        name = self._key.shares(header["id"])

        def queue(pipe: Any, seen: list[Any]) -> None:
            known = {one["share"]["id"]: one for one in _records(seen[0])}.get(share_id)
            if known is None or not _holds(known, header, now_ms() // 1000):
                raise NotFound(_UNKNOWN)
            pipe.control.delete(self._key.token(known["sha256"]))
            pipe.hdel(name, share_id)
            self._audit.note(pipe.control, by, "share.revoked", share_id, header["owner"], {"id": header["id"]})

        await self._commit(name, queue, control_first=True)  # what is not listed any more must open nothing

    async def _commit(self, name: str, queue: Any, *, control_first: bool = False) -> None:
        async with deadline():
            with translate_errors():
                await transact(self._redis, [name], [("HGETALL", name)], queue, control_first=control_first)


def is_share_id(text: str) -> bool:
    """Whether it looks like one."""
    return _ID.fullmatch(text) is not None


def _holds(one: ShareRecord, header: Header, now: int) -> bool:
    return one["share"]["expires_at"] > now and one["share"]["log_made_ms"] == header["created_at_ms"]


def _records(raw: Any) -> list[ShareRecord]:
    """Of the hash, as redis-py's client or a transaction's look gives it."""
    values = list(raw.values()) if isinstance(raw, dict) else list(raw or ())[1::2]
    return [json.loads(value) for value in values]
