"""/v1/events: what happens to generations, as it happens, for pages that show it.

Hidden here: what a follower is sent first, and when it needs a snapshot again; that its cursor moves although nothing of what
it follows happens; and who may follow what.
"""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from api.deps import CurrentCaller, CurrentServices, known_query
from api.errors import to_response
from api.live import cursor
from api.live.client import SEAT, Client
from api.live.drain import Stay
from api.live.event_stream import EVENT_STREAM_HEADERS
from api.live.feed import Followed, framed, now_frame
from api.live.response import LATER
from api.services import Services
from shared.errors import BadCursor, BadRequest, Forbidden, NotFound, StreamspoolError
from shared.generations.caller import Caller
from shared.lib import json, sse
from shared.lib.telemetry import VIEWERS_DROPPED, get_logger
from shared.log import feed
from shared.store.availability import unavailable
from shared.store.redis import RedisError

logger = get_logger(__name__)

router = APIRouter(prefix="/v1", tags=["operations"], dependencies=[known_query])

_TYPES = (*feed.TYPES, "viewers", "workers")
_RETRY_S = 0.25


@router.get("/events", response_model=None)
async def follow(
    request: Request,
    services: CurrentServices,
    caller: CurrentCaller,
    types: Annotated[str | None, Query(description=f"some of {', '.join(_TYPES)}, with commas between them")] = None,
    last_event_id: Annotated[str | None, Query(description="for an EventSource, which cannot set headers")] = None,
) -> Response:
    """What happens to the caller's generations, as Server-Sent Events without an end: first a snapshot of what runs, then each
    event. Resumes after `Last-Event-ID`."""
    if services.broker.log.feed is None:
        raise NotFound("This server keeps no events: STREAMSPOOL_EVENTS_KEPT is 0.", code="events_off")
    operates = caller.role == "admin" or request.app.authenticator.keyless
    wanted = _types(types, operates=operates)
    return Follower(services, caller, wanted, _place(cursor.given(request)), operates=operates)


def _types(text: str | None, *, operates: bool) -> frozenset[str] | None:
    """Raises BadRequest, Forbidden."""
    if text is None:
        return None
    wanted = frozenset(name.strip() for name in text.split(","))
    if not wanted <= set(_TYPES):
        raise BadRequest(f"`types` are some of {', '.join(_TYPES)}, with commas between them.", param="types")
    if "workers" in wanted and not operates:
        raise Forbidden("Events about workers are for keys whose role is `admin`.", param="types")
    return wanted


def _place(text: str | None) -> feed.Place | None:
    try:
        return None if text is None else feed.parse(text)
    except ValueError:
        raise BadCursor("A cursor is the `id:` of the last event received.", param="last_event_id") from None


class Follower(Response):
    """One client's events, until it leaves, its key is revoked, or this server stops: then it comes again."""

    def __init__(
        self,
        services: Services,
        caller: Caller,
        types: frozenset[str] | None,
        after: feed.Place | None,
        *,
        operates: bool,
    ) -> None:
        """`operates`: it may know who works here."""
        self.status_code, self.background = 200, None
        self._services, self._feed = services, services.feed
        tenant = None if caller.is_everyone else caller.tenant
        self._wanted, self._after = Followed(tenant, types), after
        self._sees_workers = operates and (types is None or "workers" in types)
        self._sees_viewers = types is None or "viewers" in types
        self._stay = Stay(services.drain, services.settings.drain_s, native=True)
        self._place = self._told = feed.START
        """Up to where it has seen everything, and which of these places it knows itself."""
        self._gaps, self._spoke_at = self._feed.gaps, 0.0
        self._workers_seen = self._watching_seen = -1

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As of a log's viewer, the framework's frames go first."""
        if LATER in scope:
            scope[LATER] = self._serve
        else:
            await self._serve(scope, receive, send)

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = Client(scope, receive, send, self._services.settings.send_timeout_s)
        try:
            async with scope.get(SEAT) or nullcontext():
                with self._feed.followed():
                    await self._respond(client)
        except TimeoutError:
            VIEWERS_DROPPED.inc()
            await client.cut(flush=False)
        except (StreamspoolError, RedisError, OSError) as error:
            if client.started:
                raise
            visible = error if isinstance(error, StreamspoolError) else unavailable(error)
            await to_response(visible)(scope, receive, send)
        finally:
            await client.close()

    async def _respond(self, client: Client) -> None:
        await self._feed.begun()
        body = await self._first()
        await client.start(200, EVENT_STREAM_HEADERS)
        if client.head_only:
            return
        client.streaming(sse.KEEPALIVE)
        await self._send(client, body)
        while not client.gone:
            body = await self._next()
            if body:
                await self._send(client, body)
            elif not await self._wait(client):
                break
        if not client.gone:
            await client.send(b"", more=False)

    async def _first(self) -> bytes:
        """What comes after the cursor, as far as it is at hand; a snapshot without one, or where something is missing."""
        self._gaps = self._feed.gaps
        if self._after is None:
            return await self._snapshot("start")
        page = await self._feed.reader.page(self._after)
        if page is None:
            return await self._snapshot("gap")
        self._place = self._told = self._after
        return self._page(page) + self._now()

    async def _next(self) -> bytes:
        """What is new, `b""` if nothing is."""
        try:
            if self._gaps != (gaps := self._feed.gaps):
                body = await self._snapshot("gap")
                self._gaps = gaps
                return body
            if (frames := self._feed.since(self._place, self._wanted)) is not None:
                self._place = max(self._place, self._feed.place)
                if frames:
                    self._told = self._place
                return frames + self._now()
            page = await self._feed.reader.page(self._place)
            return await self._snapshot("gap") if page is None else self._page(page)
        except (RedisError, OSError):
            await asyncio.sleep(_RETRY_S)
            return b""

    def _page(self, page: list[feed.Told]) -> bytes:
        shown = [framed(told) for told in page if self._wanted.shows(told.type, told.owner)]
        if page:
            self._place = page[-1].place
        if shown:
            self._told = self._place
        return b"".join(shown)

    async def _snapshot(self, reason: str) -> bytes:
        place, data = await self._feed.snapshot(self._wanted.tenant)
        self._place = self._told = place
        now = self._feed.now
        self._workers_seen, self._watching_seen = now.workers_changed, now.watching_changed
        told = {
            **data,
            "reason": reason,
            "viewers": {"streams": self._feed.watched(self._wanted.tenant)},
            "workers": now.workers if self._sees_workers else None,
        }
        return sse.frame(json.dumps(told), id=b"%d-%d" % place, event=b"snapshot")

    def _now(self) -> bytes:
        """What is true just now, where that has changed."""
        now, frames = self._feed.now, []
        if self._sees_viewers and now.watching_changed != self._watching_seen:
            self._watching_seen = now.watching_changed
            frames.append(now_frame("viewers", streams=self._feed.watched(self._wanted.tenant)))
        if self._sees_workers and now.workers_changed != self._workers_seen:
            self._workers_seen = now.workers_changed
            frames.append(now_frame("workers", data=now.workers))
        return b"".join(frames)

    async def _send(self, client: Client, body: bytes) -> None:
        self._spoke_at = asyncio.get_running_loop().time()
        await client.send(body)

    async def _wait(self, client: Client) -> bool:
        """Until there may be something new, or a keep-alive was sent; False when it is time to leave."""
        if (stay_s := self._stay.left_s()) <= 0:
            return False
        silent_s = asyncio.get_running_loop().time() - self._spoke_at
        if (patience_s := self._services.settings.keepalive_s - silent_s) > 0:
            waiter = self._feed.waiter()
            await client.wait(waiter, min(patience_s, stay_s))
            self._feed.forget(waiter)
        elif self._told != self._place:  # of others: the cursor moves on, or it would be cut off some day
            self._told = self._place
            moved = {"type": "cursor"}
            await self._send(client, sse.frame(json.dumps(moved), id=b"%d-%d" % self._place, event=b"cursor"))
        else:
            await self._send(client, sse.KEEPALIVE)
        return True
