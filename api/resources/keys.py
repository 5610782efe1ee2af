"""/v1/keys: who may ask, for admins."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from api.deps import Body, CurrentCaller, CurrentServices, known_query, parsed
from api.paging import After, Limit, following, page
from api.services import Services
from shared.errors import BadRequest, NotFound
from shared.features.access.keys import LONGEST_OVERLAP_S, KeyChange, KeyRecord, KeyRequest, status_of
from shared.generations.caller import Caller

router = APIRouter(prefix="/v1/keys", tags=["keys"], dependencies=[known_query])

_NEW_BODY = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": KeyRequest.model_json_schema()}}}
}
_CHANGE_BODY = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": KeyChange.model_json_schema()}}}
}
_OVERLAP = {"type": "integer", "minimum": 0, "maximum": LONGEST_OVERLAP_S, "default": 0}
_ROTATE_BODY = {
    "requestBody": {
        "content": {"application/json": {"schema": {"type": "object", "properties": {"overlap_s": _OVERLAP}}}}
    }
}


@router.post("", openapi_extra=_NEW_BODY)
async def create(services: CurrentServices, caller: CurrentCaller, body: Body) -> dict[str, Any]:
    """Makes a key. It stands in `key`, this once."""
    record, key = await services.keys.create(KeyRequest.check(parsed(body)), caller.actor)
    await services.ring.learn()
    return {**_shown(record, None), "key": key}


@router.get("")
async def list_keys(
    services: CurrentServices,
    caller: CurrentCaller,
    limit: Limit = 20,
    after: After = None,
    tenant: Annotated[str | None, Query(description="only this tenant's; `*`: all, as without it")] = None,
) -> dict[str, Any]:
    """All keys, the newest first, then those of the server's environment. Of none the secret is known."""
    used = await services.keys.used()
    found = [_shown(record, used.get(record["id"])) for record in await services.keys.listed()]
    found += [_configured(one, used) for one in services.configured]
    wanted = [one for one in found if tenant in (None, "*", one["tenant"])]
    unknown = NotFound("`after` must be the id of a key in this list.", param="after")
    return page(following(wanted, after, unknown)[: limit + 1], limit)


@router.get("/{key_id}")
async def retrieve(services: CurrentServices, caller: CurrentCaller, key_id: str) -> dict[str, Any]:
    """One key, without its secret."""
    used = await services.keys.used()
    for one in services.configured:
        if one.key_id == key_id:
            return _configured(one, used)
    return _shown(await services.keys.find(key_id), used.get(key_id))


@router.post("/{key_id}", openapi_extra=_CHANGE_BODY)
async def change(services: CurrentServices, caller: CurrentCaller, key_id: str, body: Body) -> dict[str, Any]:
    """Replaces the fields that are sent: name, expiry, models, limits, budgets."""
    _refuse_configured(services, key_id)
    record = await services.keys.change(key_id, KeyChange.check(parsed(body)), caller.actor)
    return await _learned(services, record)


@router.post("/{key_id}/rotate", openapi_extra=_ROTATE_BODY)
async def rotate(services: CurrentServices, caller: CurrentCaller, key_id: str, body: Body) -> dict[str, Any]:
    """Gives it a new secret, which stands in `key`, this once; the one before holds for `overlap_s` more."""
    _refuse_configured(services, key_id)
    record, key = await services.keys.rotate(key_id, _overlap_s(parsed(body) if body else {}), caller.actor)
    return {**await _learned(services, record), "key": key}


@router.delete("/{key_id}")
async def revoke(services: CurrentServices, caller: CurrentCaller, key_id: str) -> dict[str, Any]:
    """Revokes it: it opens nothing any more, and who watches with it is cut off. What it asked for goes on."""
    _refuse_configured(services, key_id)
    await _learned(services, await services.keys.revoke(key_id, caller.actor))
    return {"id": key_id, "object": "key.deleted", "deleted": True}


async def _learned(services: Services, record: KeyRecord) -> dict[str, Any]:
    """The process that made the change knows it at once, the others within a second."""
    await services.ring.learn()
    return _shown(record, (await services.keys.used()).get(record["id"]))


def _shown(record: KeyRecord, used_at: int | None) -> dict[str, Any]:
    newest, older = record["secrets"][:1], record["secrets"][1:]
    return {
        "id": record["id"],
        "object": "key",
        "name": record["name"],
        "tenant": record["tenant"],
        "role": record["role"],
        "status": status_of(record),
        "source": "api",
        "hint": newest[0]["hint"] if newest else None,
        "created_at": record["created_at"],
        "expires_at": record["expires_at"],
        "revoked_at": record["revoked_at"],
        "last_used_at": used_at,
        "overlap_until": max((one.get("expires_at") or 0 for one in older), default=None),
        "models": record["models"],
        "limits": record["limits"],
        "budgets": record["budgets"],
    }


def _configured(caller: Caller, used: dict[str, int]) -> dict[str, Any]:
    """A key of the environment, as one of the others."""
    assert caller.key_id is not None
    record = KeyRecord(
        id=caller.key_id,
        name="",
        tenant=caller.tenant,
        role=caller.role,
        created_at=0,
        expires_at=None,
        revoked_at=None,
        secrets=[],
        models=None,
        limits={},
        budgets={},
    )
    return {**_shown(record, used.get(caller.key_id)), "source": "environment", "created_at": None}


def _refuse_configured(services: Services, key_id: str) -> None:
    if any(one.key_id == key_id for one in services.configured):
        raise BadRequest("This key is the environment's: change STREAMSPOOL_API_KEYS or STREAMSPOOL_ADMIN_KEYS.")


def _overlap_s(asked: Any) -> int:
    """Raises BadRequest."""
    if not isinstance(asked, dict) or asked.keys() - {"overlap_s"}:
        raise BadRequest("A rotation takes no field but `overlap_s`.", param="overlap_s")
    overlap_s = asked.get("overlap_s", 0)
    if not isinstance(overlap_s, int) or isinstance(overlap_s, bool) or not 0 <= overlap_s <= LONGEST_OVERLAP_S:
        raise BadRequest(f"overlap_s must be a whole number from 0 to {LONGEST_OVERLAP_S}.", param="overlap_s")
    return overlap_s
