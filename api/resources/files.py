"""/v1/files: what batches are made of, and what they leave."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from api.deps import REPLAYED, CurrentCaller, CurrentServices, IdempotencyKey, known_query
from api.paging import After, Order, first_matching, page
from api.resources.upload import Upload
from shared.errors import BadRequest
from shared.features.files import PURPOSES, UPLOAD_S, check_life
from shared.lib import json

router = APIRouter(prefix="/v1/files", tags=["files"], dependencies=[known_query])

_MOST_LOOKED_AT = 20_000
"""What one page looks at: it may show 10,000."""
_RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})")
_LIFE = {"expires_after[anchor]", "expires_after[seconds]"}
_FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "purpose"],
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "purpose": {"type": "string", "enum": list(PURPOSES)},
                        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                        "expires_after[seconds]": {"type": "integer", "minimum": 3600, "maximum": 2592000},
                    },
                }
            }
        },
    }
}


@router.post("", response_model=None, openapi_extra=_FORM)
async def upload(
    request: Request, services: CurrentServices, caller: CurrentCaller, key: IdempotencyKey, response: Response
) -> dict[str, Any]:
    """Stores a file. One that breaks off, is too large or wrong leaves nothing."""
    told = request.headers.get("content-length", "")
    length = int(told) if told.isdigit() else None
    form, digest = Upload(request, services.settings.max_file_bytes), hashlib.sha256()
    try:
        async with asyncio.timeout(UPLOAD_S), services.files.create(caller.tenant, length=length) as new:
            async for piece in form:
                if key is not None:
                    digest.update(piece)
                await new.write(piece)
            new.finish(**_facts(form))
            if key is not None and (before := await services.files.made_before(key, new, digest.hexdigest())):
                raise _MadeBefore(before)
    except _MadeBefore as made:
        response.headers.update(REPLAYED)
        return made.facts
    except TimeoutError:
        raise BadRequest("The form did not arrive in time.", code="request_timeout", status=408) from None
    return new.facts


class _MadeBefore(Exception):
    """Leaves nothing of the second file: the first is the one."""

    def __init__(self, facts: dict[str, Any]) -> None:
        super().__init__()
        self.facts = facts


def _facts(form: Upload) -> dict[str, Any]:
    """What the form says about the file. Raises BadRequest."""
    fields = form.fields
    if unknown := sorted(fields.keys() - {"purpose", *_LIFE}):
        raise BadRequest(f"Unknown field {unknown[0][:64]!r} in the form.", param=unknown[0][:64])
    purpose = fields.get("purpose")
    if purpose not in PURPOSES:
        raise BadRequest(f"purpose must be one of {', '.join(PURPOSES)}.", param="purpose")
    life_s = None
    if fields.keys() & _LIFE:
        life_s = check_life(fields.get("expires_after[seconds]"), fields.get("expires_after[anchor]"), "expires_after")
    return {"filename": form.filename, "purpose": purpose, "life_s": life_s}


@router.get("", response_model=None)
async def list_files(
    services: CurrentServices,
    caller: CurrentCaller,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    after: After = None,
    order: Order = "desc",
    purpose: str | None = None,
) -> Response:
    """The caller's files, newest first. A page that is not full and has more goes on after its `last_id`."""
    files, how = services.files, {"newest_first": order == "desc"}
    listed = files.listed_of(services.tenants, after, **how) if caller.is_everyone else None
    found, last = await first_matching(
        listed or files.listed(caller.tenant, after, **how),
        lambda facts: purpose in (None, facts["purpose"]),
        limit,
        most=_MOST_LOOKED_AT,
    )
    return Response(json.dumps(page(found, limit, last["id"] if last else None)), media_type="application/json")


@router.get("/{file_id}")
async def retrieve(services: CurrentServices, caller: CurrentCaller, file_id: str) -> dict[str, Any]:
    """The file object."""
    return await services.files.find(file_id, caller.tenant)


@router.delete("/{file_id}")
async def delete(services: CurrentServices, caller: CurrentCaller, file_id: str) -> dict[str, Any]:
    """Forgets a file and what was in it."""
    await services.files.delete(file_id, caller.tenant)
    return {"id": file_id, "object": "file", "deleted": True}


@router.get("/{file_id}/content", response_model=None)
async def content(request: Request, services: CurrentServices, caller: CurrentCaller, file_id: str) -> Response:
    """The bytes of a file; with `Range`, a part of them."""
    files = services.files
    facts = await files.find(file_id, caller.tenant)
    size = facts["bytes"]
    headers = {
        "content-type": "application/octet-stream",
        "accept-ranges": "bytes",
        "content-disposition": f"attachment; filename*=UTF-8''{quote(facts['filename'], safe='')}",
        "x-content-type-options": "nosniff",
    }
    wanted = byte_range(request.headers.get("range"), size)
    if wanted is None:
        return await stream(files.read(facts), 200, {**headers, "content-length": str(size)})
    start, end = wanted
    if start >= end:
        refusal = BadRequest(f"The range lies outside of the file's {size} bytes.", code="invalid_range", status=416)
        return Response(
            json.dumps({"error": refusal.to_object()}),
            416,
            {"content-range": f"bytes */{size}"},
            media_type="application/json",
        )
    headers |= {"content-range": f"bytes {start}-{end - 1}/{size}", "content-length": str(end - start)}
    return await stream(files.read(facts, start, end), 206, headers)


async def stream(pieces: AsyncIterator[bytes], status: int, headers: dict[str, str]) -> Response:
    """Begins to read before the status is sent, so that a storage that is away can still be told."""
    first = await anext(pieces, b"")

    async def body() -> AsyncIterator[bytes]:
        yield first
        async for piece in pieces:
            yield piece

    return StreamingResponse(body(), status, headers)


def byte_range(header: str | None, size: int) -> tuple[int, int] | None:
    """The range that is asked for as `start, end`, with end exclusive; empty if it cannot be met.

    None for the whole: no range, or one that may be ignored, because it is malformed or several (RFC 9110, 14.2).
    """
    match = _RANGE.fullmatch((header or "").replace(" ", "").lower())
    if not match or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        return max(0, size - int(last)), size
    if last and int(last) < int(first):
        return None
    return int(first), min(size, int(last) + 1) if last else size
