"""/v1/audit: who made, changed and revoked which key, and set which limit; for admins."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from api.deps import CurrentCaller, CurrentServices, known_query
from api.paging import After, Limit, page
from shared.features.access.audit import Entry

router = APIRouter(prefix="/v1/audit", tags=["keys"], dependencies=[known_query])


@router.get("")
async def list_audit(
    services: CurrentServices,
    caller: CurrentCaller,
    limit: Limit = 20,
    after: After = None,
    tenant: Annotated[str | None, Query(description="only what this tenant's was; `*`: all, as without it")] = None,
    subject: Annotated[str | None, Query(description="only this key's, by its id")] = None,
    action: Annotated[str | None, Query(description="only this, as `key.revoked`")] = None,
) -> dict[str, Any]:
    """Changes, the newest first."""

    def wanted(entry: Entry) -> bool:
        return (
            tenant in (None, "*", entry["tenant"])
            and subject in (None, entry["subject"])
            and action in (None, entry["action"])
        )

    return page([_shown(*one) for one in await services.audit.page(limit + 1, after, wanted)], limit)


def _shown(entry_id: str, entry: Entry) -> dict[str, Any]:
    return {
        "id": entry_id,
        "object": "audit.entry",
        "at": entry["at_ms"] // 1000,
        "action": entry["action"],
        "subject": entry["subject"],
        "tenant": entry["tenant"],
        "by": {"key_id": entry["key_id"], "tenant": entry["actor_tenant"]},
        "request_id": entry["request_id"],
        "details": entry["details"],
    }
