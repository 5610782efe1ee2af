"""The few things that routes are given."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import Depends
from starlette.requests import ClientDisconnect, Request

from api.services import Services
from shared.errors import BadRequest, TooLarge
from shared.generations.caller import Caller
from shared.lib import json

_BODY_S = 30.0
"""How long a body may take to arrive: one that never ends would hold a connection for ever."""


async def _services(request: Request) -> Services:  # async, as the next: FastAPI would hand plain functions to a thread
    services: Services = request.app.state.services
    return services


async def _caller(request: Request) -> Caller:
    caller: Caller = request.app.state.authenticator.caller(request)
    return caller


async def _body(request: Request, services: Annotated[Services, Depends(_services)], _: CurrentCaller) -> bytes:
    """The raw body, counted while it comes in, after the key was checked. Raises TooLarge, BadRequest."""
    limit = services.settings.max_body_bytes
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise BadRequest("Send the body without Content-Encoding.", param="content-encoding")
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type and not (content_type == "application/json" or content_type.endswith("+json")):
        # A web page of another origin may send the others without asking first (CORS "simple requests").
        raise BadRequest("Send the body as `Content-Type: application/json`.", param="content-type", status=415)
    length = request.headers.get("content-length", "")
    body = bytearray()
    if not (length.isdigit() and int(length) > limit):
        try:
            async with asyncio.timeout(_BODY_S):
                async for piece in request.stream():
                    body += piece
                    if len(body) > limit:
                        break
                else:
                    return bytes(body)
        except ClientDisconnect:
            raise BadRequest("The client left before its request was complete.") from None
        except TimeoutError:
            raise BadRequest("The request body did not arrive in time.", code="request_timeout", status=408) from None
    raise TooLarge(f"The request body is over the limit of {limit} bytes (STREAMSPOOL_MAX_BODY_BYTES).")


def parsed(body: bytes) -> Any:
    """The body as JSON. Raises BadRequest."""
    try:
        return json.loads_strict(body)
    except ValueError as error:
        raise BadRequest(f"The request body is not valid JSON: {error}.", code="invalid_json") from None


CurrentServices = Annotated[Services, Depends(_services)]
CurrentCaller = Annotated[Caller, Depends(_caller)]
Body = Annotated[bytes, Depends(_body)]
