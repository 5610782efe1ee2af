"""/console/session and /s/session: how a browser signs in with a key, and opens a share; it is given a cookie for either.

Hidden here: that what was wrong is not told, neither of a key nor of a link, and how often an address may be wrong.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse

from api.auth import SESSION_COOKIE, check_may_keep_cookies, check_same_origin, set_cookie, share_cookie
from api.deps import CurrentCaller, CurrentServices, Root, SmallBody, parsed
from api.services import Services
from shared.errors import BadRequest, NotFound, Unauthenticated
from shared.features.tokens import Share
from shared.generations.caller import Caller
from shared.lib.clock import now_ms

router = APIRouter(tags=["console"])

_HEADERS = {"cache-control": "no-store", "referrer-policy": "no-referrer"}


def _body_of(field: str, what: str) -> dict[str, Any]:
    properties = {field: {"type": "string", "description": what}}
    schema = {"type": "object", "properties": properties, "required": [field], "additionalProperties": False}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


@router.post("/console/session", openapi_extra=_body_of("key", "one of this server's"))
async def sign_in(request: Request, services: CurrentServices, body: SmallBody) -> JSONResponse:
    """Takes a key once. The browser is whoever that is from now on, by a cookie, as long as the key holds."""
    authenticator = request.app.authenticator
    if authenticator.keyless:
        authenticator.admit_stranger(request)
        return JSONResponse(_shown(services, (await authenticator.identify(request)).caller, keyless=True))
    check_may_keep_cookies(request)
    key = _text(parsed(body) if body else {}, "key")
    address = request.client.host if request.client else ""
    await services.browsers.check_failures(address)
    signed_in = authenticator.sign_in(key)
    if signed_in is None:
        await services.browsers.note_failure(address)
        raise Unauthenticated("This is no key of this server, or not any more.")
    response = JSONResponse(_shown(services, authenticator.caller_behind(signed_in), keyless=False), headers=_HEADERS)
    set_cookie(response, SESSION_COOKIE, await services.browsers.open(signed_in))
    return response


@router.get("/console/session")
async def who(request: Request, services: CurrentServices, caller: CurrentCaller) -> JSONResponse:
    """Who is signed in, or whose key this is; 401 for nobody."""
    return JSONResponse(_shown(services, caller, keyless=request.app.authenticator.keyless), headers=_HEADERS)


@router.delete("/console/session")
async def sign_out(request: Request, services: CurrentServices) -> JSONResponse:
    """Ends this browser's session, and within a second what is watched with it. Without one it is harmless."""
    response = JSONResponse({"object": "console.session.deleted", "deleted": True}, headers=_HEADERS)
    if (cookie := request.cookies.get(SESSION_COOKIE)) is not None:
        check_same_origin(request)
        await services.browsers.end(cookie)
        set_cookie(response, SESSION_COOKIE, "", 0)
    return response


@router.post("/s/session", openapi_extra=_body_of("token", "of a share, as its link has it"))
async def open_share(request: Request, services: CurrentServices, root: Root, body: SmallBody) -> JSONResponse:
    """Takes the token of a share, which opens its answer in this browser from now on, by a cookie."""
    request.app.authenticator.admit_stranger(request)
    check_may_keep_cookies(request)
    token = _text(parsed(body) if body else {}, "token")
    address = request.client.host if request.client else ""
    await services.browsers.check_failures(address)
    opens = await services.tokens.opened(token)
    if opens is None or opens.share is None or services.ring.has_ended(opens.key_id):
        await services.browsers.note_failure(address)
        raise NotFound("This link opens nothing, or not any more. Ask for another one.", code="share_ended")
    share = opens.share
    response = JSONResponse(_opened(share, opens.generation_id, root), headers=_HEADERS)
    set_cookie(response, share_cookie(share["id"]), token, max(1, share["expires_at"] - now_ms() // 1000))
    return response


def _opened(share: Share, generation_id: str, root: str) -> dict[str, Any]:
    path, query = f"{root}/v1/streams/{generation_id}", f"?share={share['id']}"
    return {
        "id": share["id"],
        "object": "share.session",
        "stream_id": generation_id,
        "mode": share["mode"],
        "include": share["include"],
        "expires_at": share["expires_at"],
        "links": {
            "stream": f"{path}{query}",
            "request": f"{path}/request{query}" if "prompt" in share["include"] else None,
            "cancel": f"{path}/cancel{query}" if share["mode"] == "control" else None,
        },
    }


def _shown(services: Services, caller: Caller, *, keyless: bool) -> dict[str, Any]:
    key = None
    if caller.key_id is not None:
        key = {"id": caller.key_id, "name": services.ring.name_of(caller.key_id)}
    return {
        "object": "console.session",
        "keyless": keyless,
        "tenant": caller.tenant,
        "role": caller.role,
        "key": key,
        "idle_s": services.browsers.idle_s,
    }


def _text(asked: Any, field: str) -> str:
    """Raises BadRequest."""
    if not isinstance(asked, dict) or asked.keys() != {field} or not isinstance(asked[field], str):
        raise BadRequest(f'Send {{"{field}": "…"}}, and nothing else.', param=field)
    return str(asked[field])
