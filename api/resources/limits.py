"""/v1/limits: what a key and its tenant may use and spend, and what they use now; admins set it."""

from __future__ import annotations

import re
from typing import Any, cast

from fastapi import APIRouter

from api.deps import Body, CurrentCaller, CurrentServices, known_query, parsed
from api.services import Services
from shared.config.limits import LIMITS, told
from shared.config.tenants import EVERY_TENANT, TENANT
from shared.errors import BadRequest
from shared.features.access.keys import LimitsRequest
from shared.features.spend.budgets import State
from shared.lib import money
from shared.log.records import Header
from shared.store.availability import translate_errors

router = APIRouter(prefix="/v1/limits", tags=["keys"], dependencies=[known_query])

_BODY = {
    "requestBody": {"required": True, "content": {"application/json": {"schema": LimitsRequest.model_json_schema()}}}
}


@router.get("")
async def retrieve(services: CurrentServices, caller: CurrentCaller) -> dict[str, Any]:
    """The limits and budgets that the caller is under, its tenant's and its key's, and what is used of them."""
    whose = {"owner": caller.tenant, "key_id": caller.key_id, "budgets": dict(caller.budgets)}
    with translate_errors():
        used = await services.limiter.usage(caller)
        states = await services.budgets.states(cast(Header, whose))
    return {
        "object": "limits",
        "tenant": caller.tenant,
        "limits": told(services.limiter.of_tenant(caller.tenant)),
        "used": used.get(f"tenant:{caller.tenant}", {}),
        "budgets": [_budget(one) for one in states if one.budget.key_id is None],
        "key": {
            "id": caller.key_id,
            "limits": told(caller.limits),
            "used": used.get(f"key:{caller.key_id}", {}),
            "budgets": [_budget(one) for one in states if one.budget.key_id is not None],
        },
    }


def _budget(state: State) -> dict[str, Any]:
    return {
        "period": state.budget.period,
        "now": state.now,
        "hard": state.budget.is_hard,
        "limit_usd": money.to_dollars(state.budget.limit),
        "spent_usd": money.to_dollars(state.spent),
    }


@router.post("/{tenant}", openapi_extra=_BODY)
async def change(services: CurrentServices, caller: CurrentCaller, tenant: str, body: Body) -> dict[str, Any]:
    """Sets a tenant's limits, over those of the settings; `*` is every tenant that has none of its own. What is null is as in
    the settings; what is not named stays."""
    _check_tenant(tenant)
    asked = LimitsRequest.check(parsed(body))

    def changed(before: dict[str, int]) -> dict[str, int]:
        kept = {name: number for name, number in before.items() if name not in asked.model_fields_set}
        after = kept | asked.given()
        return {name: after[name] for name in LIMITS if name in after}

    await services.keys.set_limits(tenant, changed, caller.actor)
    return await _learned(services, tenant)


@router.delete("/{tenant}")
async def reset(services: CurrentServices, caller: CurrentCaller, tenant: str) -> dict[str, Any]:
    """Takes back what was set: the settings hold."""
    _check_tenant(tenant)
    await services.keys.set_limits(tenant, lambda _: {}, caller.actor)
    return await _learned(services, tenant)


async def _learned(services: Services, tenant: str) -> dict[str, Any]:
    await services.ring.learn()
    holds = services.limiter.of_tenant(tenant)
    return {
        "object": "limits",
        "tenant": tenant,
        "set": dict(services.ring.limits().get(tenant, {})),
        "limits": told(holds),
    }


def _check_tenant(tenant: str) -> None:
    if tenant != EVERY_TENANT and not re.fullmatch(TENANT, tenant):
        raise BadRequest("A tenant has 1 to 64 letters, digits, `_`, `.` or `-`; `*` is all of them.", param="tenant")
