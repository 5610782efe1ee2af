"""What the responses that show a log have in common.

Hidden here: watching the log for as long as the client stays, an error before the first byte with its true status, a
client that does not read, and that the framework is left before a viewer's long stay begins.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from functools import lru_cache
from typing import Protocol
from urllib.parse import quote

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from api import spans
from api.errors import failure, problem_error, to_response
from api.live.client import SEAT, Client
from api.live.drain import Drain
from api.live.hub import Hub
from api.live.livelog import LiveLog
from shared.config.settings import Settings
from shared.errors import Damaged, GenerationFailed, Gone, StreamspoolError
from shared.generations.broker import Broker
from shared.lib import json, money
from shared.lib.telemetry import VIEWERS_DROPPED, get_logger
from shared.log.records import Header, Outcome
from shared.store.availability import unavailable
from shared.store.redis import RedisError, log_redis_error

logger = get_logger(__name__)

_HTTP: Scope = {"type": "http"}
"""All that an error's response looks at."""

LATER = "streamspool.later"
"""ASGI scope: an ASGI application to be called once the framework has returned."""


class Process(Protocol):
    """What a response needs of its process; `api.services.Services` has it."""

    @property
    def hub(self) -> Hub: ...
    @property
    def broker(self) -> Broker: ...
    @property
    def settings(self) -> Settings: ...
    @property
    def drain(self) -> Drain: ...


class LogResponse(Response):
    """`respond`, with the live log of the generation, is what the two kinds differ in (event_stream.py, answer.py)."""

    def __init__(self, process: Process, header: Header, *, fresh: bool, headers: Mapping[str, str]) -> None:
        self.status_code = 200
        self.background = None
        self.process, self._fresh = process, fresh
        near = header.get("near_budget") if fresh else None
        self.extra = {**headers, "x-budget-warning": "; ".join(near)} if near else headers
        self.id: str = header["id"]
        self.header = header

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Under app.py it is sent when the framework is done: a viewer stays, and the framework's frames would with it."""
        if LATER in scope:
            scope[LATER] = self._serve
        else:
            await self._serve(scope, receive, send)

    def _serve(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Where nobody traces it has no frame: one more for each viewer is memory."""
        shown = self._show(scope, receive, send)
        watching = None if self._fresh else spans.watching(self.header)
        return shown if watching is None else _within(watching, shown)

    async def _show(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One function, because most viewers wait in here for most of the time: a frame more is memory of each."""
        needed = self.header.get("on_disconnect") == "cancel"
        sent, seat = spans.counting(), scope.get(SEAT) or _NO_SEAT
        client = Client(scope, receive, send, self.process.settings.send_timeout_s, needed=needed, sent=sent)
        del scope, receive
        try:
            async with seat:
                if not await self.show_ready(client):
                    live = await self._join(needed=needed)
                    try:
                        if (rest := await self.respond(client, live)) is not None:
                            await rest
                        spans.watched(live.epoch, live.end)
                    finally:
                        await self.process.hub.leave(live)
        except TimeoutError:
            VIEWERS_DROPPED.inc()
            logger.info("viewer dropped", generation_id=self.id)
            await client.cut(flush=False)
        except (StreamspoolError, Gone, Damaged, RedisError, OSError) as error:
            if client.started:
                raise
            visible = _visible(error)
            if self._fresh and visible.retryable is None and not self.joined:
                visible.retryable = False  # the generation is there and goes on: a repeat would be a second one
            await to_response(visible, self.extra)(_HTTP, _nothing, send)
        finally:
            if sent is not None:
                sent.tell()
            await client.close()

    async def show_ready(self, client: Client) -> bool:
        """Shows what is there in the form in which it is shown. Whether it was: else the log is followed."""
        return False

    async def _join(self, *, needed: bool) -> LiveLog:
        live = await self.process.hub.join(
            self.id,
            made=self.header["created_at_ms"],
            server=self.header.get("server"),
            tenant=self.header["owner"],
            fresh=self._fresh,
            needed=needed,
            paced=self.header.get("max_tokens_per_s") is not None,
        )
        self.id = live.id  # the same, and one for all viewers
        return live

    @property
    def joined(self) -> bool:
        """Whether a repeat of the request would be given the same generation."""
        return self.header.get("idempotency") is not None

    def failure(self, live: LiveLog) -> GenerationFailed | None:
        """Why there is no answer, once the log has its outcome; None if there is one."""
        assert live.outcome is not None
        spoke = bool(live.end) or live.epoch > 1  # what an earlier attempt said is not known here
        return failure(json.loads(live.outcome.data), spoke=spoke, joined=self.joined)

    async def respond(self, client: Client, live: LiveLog) -> Awaitable[None] | None:
        """Sends the response, or begins to: then it returns what is left of it, so that its own frame does not stay. What it
        raises before it has started becomes an error response."""
        raise NotImplementedError

    async def until(
        self, client: Client, live: LiveLog, ready: Callable[[], object], timeout_s: float | None = None
    ) -> None:
        """Waits, without sending anything, until the live log is ready or never will be."""
        loop = asyncio.get_running_loop()
        deadline = None if timeout_s is None else loop.time() + timeout_s
        while not (ready() or live.problem or client.gone or self.process.drain.everyone):
            left = 60.0 if deadline is None else deadline - loop.time()
            if left <= 0:
                return
            await client.wait(live.waiter(), left)


class _NoSeat:
    """Where nobody counts viewers. It has no state, and its methods are functions: a bound one for each viewer is memory."""

    @staticmethod
    async def __aenter__() -> None: ...

    @staticmethod
    async def __aexit__(*_: object) -> None: ...


_NO_SEAT = _NoSeat()


async def _nothing() -> Message:
    """There is nothing to be received for a response that looks at nothing."""
    return {"type": "http.disconnect"}


async def _within(span: AbstractContextManager[object], shown: Awaitable[None]) -> None:
    with span:
        await shown


def _visible(error: Exception) -> StreamspoolError:
    if isinstance(error, StreamspoolError):
        return error
    if isinstance(error, Gone | Damaged):
        return problem_error(error)
    log_redis_error("view", error)
    return unavailable(error)


@lru_cache(maxsize=256)  # what names one model says the same of each of its answers
def served_headers(note: bytes | None) -> Mapping[str, str]:
    """`x-served-by: PROVIDER/MODEL`, and `x-fallback-from: PROVIDER/MODEL=STATUS, …` where others were asked in vain."""
    if note is None:
        return {}
    served = json.loads(note)
    headers = {"x-served-by": _token(served["model"])}
    if refused := served.get("refused"):
        headers["x-fallback-from"] = ", ".join(f"{_token(one['model'])}={one['status']}" for one in refused)
    return headers


def cost_headers(outcome: Outcome | None) -> dict[str, str]:
    """`x-cost-usd: 0.0000142`; nothing where the cost is not known."""
    cost = outcome.get("cost") if outcome else None
    return {} if cost is None or cost["picodollars"] is None else {"x-cost-usd": money.shown(cost["picodollars"])}


def _token(text: str) -> str:
    """A model's name may be anything; a header's value may not."""
    return quote(text, safe="/:@?&=+._-")
