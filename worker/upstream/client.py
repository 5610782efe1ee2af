"""All I/O with providers: one request out, lists of chunks in.

Hidden here: the client and its connections, the four timers, reading raw bytes (never lines, never decompressed), what a
status or a content type means, when a stream has ended, and that closing the generator closes the connection. The meaning
of an event is the normalizer's; the spelling of the stream is shared/lib/sse.py's; httpx is shared/lib/http.py's.

A stream has ended when it says so: [DONE], or a finish reason for every choice. An end of file proves nothing, since a
connection-close body that was cut looks just like one that is complete.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import stamina

from shared.config.settings import Settings
from shared.errors import (
    BadRequest,
    StreamspoolError,
    UpstreamError,
    UpstreamIncomplete,
    UpstreamInvalid,
    UpstreamRefused,
    UpstreamTimeout,
    without_frames,
)
from shared.lib import http, json, sse
from shared.lib.tasks import MovingTimeout
from shared.log.entry import Chunk
from worker.providers import fake
from worker.providers.dialect import Call, Decoder, Dialect
from worker.providers.dialects import dialect_of
from worker.providers.errors import error_from_response
from worker.providers.openai import Normalizer
from worker.providers.registry import Provider

T = TypeVar("T")

_Events = AsyncGenerator[list[sse.Event], None]
_Step = tuple[_Events | None, list[Chunk], UpstreamError | None]
OnRetry = Callable[[UpstreamError], None]

_TRIES = 3
_TRIES_S = 30.0
_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 10.0
"""A provider that asks for more has its refusal passed on at once: the client can plan better with it than we can."""

_GRACE_S = 5.0  # after the finish reason: how long usage and [DONE] may take
_REUSE_S = 0.05  # after [DONE]: how long the end of the body may take, so that the connection can be used again
_PINGS = ("ping", "keepalive")  # events of Anthropic's and OpenAI's that say no more than a comment does
_MAX_ERROR_BYTES = 64 * 1024
_FAKE_BATCH = 64


class Target(NamedTuple):
    """Somebody who may be asked: a provider, and its own name of the model."""

    provider: Provider
    model: str

    @property
    def name(self) -> str:
        return f"{self.provider.name}/{self.model}"


@dataclass(slots=True)
class Served:
    """How the first chunk came about: who said it, who was asked in vain before, and how often anybody was asked again."""

    target: Target | None = None
    refused: list[dict[str, Any]] = field(default_factory=list)
    """`{model, status, code}` of those that were given up on, in order."""
    retries: int = 0

    def note(self, *, spoke: bool) -> dict[str, Any]:
        """As it stands in the log beside the first chunk. `think`: reasoning may stand in the content."""
        note: dict[str, Any] = {}
        if spoke and self.target:
            note["model"] = self.target.name
            if self.target.provider.think_tags:
                note["think"] = True
        if self.refused:
            note["refused"] = self.refused
        if self.retries:
            note["retries"] = self.retries
        return note


class Upstream:
    """The provider side of one worker process: an async context manager that owns the HTTP client.

    Any number of streams may run at once.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._client = http.open_client(settings.upstream_connect_s)

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.__aexit__(kind, error, trace)

    async def stream(
        self,
        targets: Sequence[Target],
        body: dict[str, Any],
        normalizer: Normalizer,
        served: Served,
        *,
        on_retry: OnRetry | None = None,
    ) -> AsyncGenerator[list[Chunk], None]:
        """Asks the first target that begins to answer, and yields all chunks of one network read together.

        Never yields an empty list; the last list ends with the usage chunk, if usage was seen. Ends after [DONE], or
        once every choice has its finish reason and the body ends or 5 s have passed. Chunks that came before an error
        are yielded before it is raised. Close it (`contextlib.aclosing`) or cancel it to hang up on the provider at once.

        A refusal that may pass (429, 5xx, no connection, cut before the first chunk) is met with up to two more tries
        within 30 s, after the provider's own Retry-After where that is 10 s at most; `on_retry` hears of each. Then the
        next target is asked, as it is after any refusal that is not the request's own fault. `served` tells the story.

        Raises UpstreamTimeout (four codes, see Settings), UpstreamRefused for an error of the provider's,
        UpstreamIncomplete for a stream that was cut, UpstreamInvalid for one that cannot be understood, UpstreamError
        `upstream_connect_error`, `upstream_redirect`; and BadRequest for a fake model that does not exist.
        """
        timers = _Timers(self._settings)
        async with AsyncExitStack() as stack:
            stack.callback(timers.close)
            begun = await self._begin(stack, targets, body, normalizer, served, timers, on_retry)
            provider, (batches, chunks, failure) = begun
            while True:
                if chunks:
                    yield chunks
                    # The consumer's time is not the provider's: the idle timer starts when we begin to wait again.
                    timers.progress()
                if failure is not None:
                    raise _without_key(failure, provider)
                if normalizer.done or batches is None:
                    break
                batches, chunks, failure = await self._step(batches, normalizer, timers)
            if batches is not None:
                await _settle(batches)

    async def _begin(
        self,
        stack: AsyncExitStack,
        targets: Sequence[Target],
        body: dict[str, Any],
        normalizer: Normalizer,
        served: Served,
        timers: _Timers,
        on_retry: OnRetry | None,
    ) -> tuple[Provider, _Step]:
        """The first chunks of the first target that has some.

        Only here, before anything was said, can somebody else be asked without anybody noticing.
        """

        def again(error: UpstreamError) -> None:
            served.retries += 1
            if on_retry:
                on_retry(error)

        for target in targets[:-1]:
            try:
                step = await self._ask(stack, target, body, normalizer, timers, again)
            except StreamspoolError as error:
                if not _may_fall_back(error):
                    raise
                without_frames(error)
                served.refused.append({"model": target.name, "status": error.status, "code": error.code})
            else:
                served.target = target
                return target.provider, step
        served.target = targets[-1]
        return targets[-1].provider, await self._ask(stack, targets[-1], body, normalizer, timers, again)

    async def _ask(
        self,
        stack: AsyncExitStack,
        target: Target,
        body: dict[str, Any],
        normalizer: Normalizer,
        timers: _Timers,
        on_retry: OnRetry,
    ) -> _Step:
        """One target's first chunks, asked for up to three times. Their connection stays open until `stack` ends."""
        provider, dialect = target.provider, dialect_of(target.provider)
        passing: list[UpstreamError] = []

        def pause(error: Exception) -> bool | float:
            if not isinstance(error, UpstreamError) or not _is_passing(error):
                return False
            if (error.retry_after_s or 0) > _LONGEST_PAUSE_S:
                return False
            passing.append(without_frames(error))
            return True if error.retry_after_s is None else float(error.retry_after_s)

        async for attempt in stamina.retry_context(
            on=pause, attempts=_TRIES, timeout=_TRIES_S, wait_initial=_FIRST_PAUSE_S, wait_max=_LONGEST_PAUSE_S
        ):
            if attempt.num > 1:
                on_retry(passing[-1])
            with attempt:
                timers.begin()
                normalizer.begin(dialect)
                async with AsyncExitStack() as trial:
                    opened = self._open(target, dialect, body, timers)
                    batches: _Events | None = await trial.enter_async_context(opened)
                    chunks: list[Chunk] = []
                    failure = None
                    while batches is not None and not (chunks or failure or normalizer.done):
                        batches, chunks, failure = await self._step(batches, normalizer, timers)
                    if failure is not None and not chunks:
                        raise _without_key(failure, provider)
                    stack.push_async_exit(trial.pop_all())
        return batches, chunks, failure

    async def _step(self, batches: _Events, normalizer: Normalizer, timers: _Timers) -> _Step:
        """One batch further: the chunks it made, and the failure it ended in. None for batches: there will be no more."""
        try:
            events = await self._next(batches, normalizer, timers)
        except UpstreamError as failure:
            return batches, [], failure
        if any(event.event not in _PINGS for event in events or ()):
            timers.heard()
        chunks, failure_or_none = _normalize(events or [], normalizer)
        if failure_or_none is None and (normalizer.done or events is None):
            try:
                chunks += normalizer.end()
            except UpstreamError as failure:
                failure_or_none = failure
        return (None if events is None else batches), chunks, failure_or_none

    def _open(
        self, target: Target, dialect: Dialect, body: dict[str, Any], timers: _Timers
    ) -> AbstractAsyncContextManager[_Events]:
        """The events of one attempt, in batches that came together. Leaving the context closes the connection."""
        if target.provider.kind == "fake":
            return aclosing(_play(body, target.model))
        return self._request(target.provider, dialect, dialect.call(target.provider, body, target.model), timers)

    @asynccontextmanager
    async def _request(
        self, provider: Provider, dialect: Dialect, call: Call, timers: _Timers
    ) -> AsyncIterator[_Events]:
        response = await timers.wait(self._send(provider, call))
        try:
            await _check(response, provider, dialect, timers)
            decoder = dialect.decoder(self._settings.max_event_bytes)
            async with aclosing(_decode(response, decoder, self._settings.max_event_bytes)) as batches:
                yield batches
        finally:
            await response.aclose()

    async def _send(self, provider: Provider, call: Call) -> http.Response:
        """Sends the request; returns once the response's headers are there. Nothing of a client's request is sent on
        but the body."""
        headers = {
            "content-type": "application/json",
            "accept": "text/event-stream",
            "accept-encoding": "identity",
            **call.headers,
        }
        url = f"{provider.base_url}{call.path}"
        if provider.query:
            url += f"{'&' if '?' in url else '?'}{provider.query}"
        try:
            request = self._client.build_request("POST", url, headers=headers, content=json.dumps(call.body))
            return await self._client.send(request)
        except http.ConnectTimeout:
            failure: UpstreamError = _timeout("upstream_connect_timeout", self._settings.upstream_connect_s)
        except (http.TransportError, http.InvalidURL) as error:
            # The name of the error, not its text: that may hold an address.
            message = f"{provider.name}: no connection ({type(error).__name__})."
            failure = UpstreamError(message, code="upstream_connect_error")
        raise failure

    async def _next(self, batches: _Events, normalizer: Normalizer, timers: _Timers) -> list[sse.Event] | None:
        """The next batch; None once nothing more is to come. After the finish reason no failure can take that back."""
        if normalizer.finished:
            timers.grace()
        try:
            return await timers.wait(anext(batches, None))
        except UpstreamError:
            if normalizer.finished:
                return None
            raise


class _Timers:
    """Until when the current wait may last, and what it is called if it lasts longer. Times are of the event loop."""

    def __init__(self, settings: Settings) -> None:
        self._clock = asyncio.get_running_loop().time
        self._total_s = settings.generation_s
        self._idle_s = settings.upstream_idle_s
        self._end = self._clock() + self._total_s
        self._first_s = settings.upstream_first_s
        self._in_grace = False
        self._alarm = MovingTimeout()
        self.begin()

    def begin(self) -> None:
        """The provider is asked, or asked again: from now on the first timer counts."""
        self._code, self._seconds = "upstream_first_timeout", self._first_s
        self._until = self._clock() + self._first_s

    def progress(self) -> None:
        """A data event came: from now on the idle timer counts, from here. Comments and pings are none."""
        if not self._in_grace:
            self._code, self._seconds = "upstream_idle_timeout", self._idle_s
            self._until = self._clock() + self._idle_s

    def heard(self) -> None:
        """A data event came that may mean nothing to the client: progress, once the answer has begun. Before that it
        is not: somebody else may still be asked."""
        if self._code == "upstream_idle_timeout":
            self.progress()

    def grace(self) -> None:
        """The answer is whole; starts once, and is not extended."""
        if not self._in_grace:
            self._in_grace = True
            self._until = self._clock() + _GRACE_S

    async def wait(self, awaitable: Awaitable[T]) -> T:
        """Raises UpstreamTimeout when the current timer, or that of the whole generation, runs out first."""
        try:
            return await self._alarm.wait(awaitable, min(self._until, self._end))
        except MovingTimeout.Rang:
            pass
        if self._end <= self._until:
            raise _timeout("generation_timeout", self._total_s)
        raise _timeout(self._code, self._seconds)

    def close(self) -> None:
        self._alarm.close()


def _timeout(code: str, seconds: float) -> UpstreamTimeout:
    return UpstreamTimeout(f"The provider took longer than {seconds:g} s ({code}).", code=code)


def _normalize(events: list[sse.Event], normalizer: Normalizer) -> tuple[list[Chunk], UpstreamError | None]:
    """The chunks of a batch, and the error that ended it: what came before an error is kept."""
    chunks: list[Chunk] = []
    try:
        for event in events:
            chunks += normalizer.feed(event)
    except UpstreamError as failure:
        return chunks, failure
    return chunks, None


def _is_passing(error: UpstreamError) -> bool:
    """Whether the same request may be met with an answer a little later."""
    if isinstance(error, UpstreamInvalid) or error.code == "upstream_redirect":
        return False
    if isinstance(error, UpstreamTimeout) and error.code != "upstream_connect_timeout":
        return False
    return error.status in (408, 429) or error.status >= 500


def _may_fall_back(error: StreamspoolError) -> bool:
    """Whether somebody else may do better: not where the request itself is wrong, or its time is over."""
    if isinstance(error, UpstreamError):
        return error.code != "generation_timeout" and error.status not in (400, 413, 422)
    return isinstance(error, BadRequest)  # it cannot be asked for this; another may


def _without_key(failure: UpstreamError, provider: Provider) -> UpstreamError:
    """The normalizer takes out what looks like a key; a provider's own may look like anything, and only we know it."""
    if provider.api_key is None or provider.api_key not in str(failure.to_object()):
        return failure
    return UpstreamRefused(f"{provider.name}: reported an error that cannot be shown.", status=failure.status)


async def _check(response: http.Response, provider: Provider, dialect: Dialect, timers: _Timers) -> None:
    """Raises the error that a response stands for which is not an event stream."""
    encoding = response.headers.get("content-encoding", "").strip().lower()
    content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    encoded = encoding not in ("", "identity")
    if response.status_code == 200 and encoded:
        # It was told not to. Inflating would let a small body fill the memory.
        raise UpstreamInvalid(f"{provider.name}: the stream is compressed, which was not asked for.")
    if response.status_code != 200 or content_type not in dialect.stream_types:
        body = b"" if encoded else await timers.wait(_read_some(response))
        raise error_from_response(provider, response.status_code, response.headers, body)


async def _read_some(response: http.Response) -> bytes:
    body = bytearray()
    try:
        async for data in response.aiter_raw():
            body += data
            if len(body) >= _MAX_ERROR_BYTES:
                break
    except http.TransportError:
        pass  # the status is known; a message that was cut is better than none
    return bytes(body[:_MAX_ERROR_BYTES])


async def _decode(response: http.Response, decoder: Decoder, max_event_bytes: int) -> _Events:
    """All events that came since the last time it was asked: the client gathers what comes while the consumer is busy,
    within bounds, and hands it out together."""
    try:
        async for data in response.aiter_raw():
            if events := decoder.feed(data):
                yield events
            if decoder.refused:
                raise sse.EventTooLarge
        if events := decoder.close():
            yield events
    except sse.EventTooLarge:
        message = f"The provider sent an event of more than {max_event_bytes} bytes."
        raise UpstreamInvalid(message, code="upstream_chunk_too_large") from None
    except http.TransportError:
        message = "The connection to the provider broke before the answer had ended."
        raise UpstreamIncomplete(message) from None


async def _play(body: dict[str, Any], model: str) -> _Events:
    """A fake model's events at their times: those that are due come together."""
    clock = asyncio.get_running_loop().time
    due = clock()
    batch: list[sse.Event] = []
    for delay_s, event in fake.script(body, model):
        due += delay_s
        if batch and (len(batch) >= _FAKE_BATCH or due > clock()):
            yield batch
            batch = []
            await asyncio.sleep(0)  # without pauses in the script, nobody else would get a turn
        if (pause := due - clock()) > 0:
            await asyncio.sleep(pause)
        batch.append(event)
    if batch:
        yield batch


async def _settle(batches: _Events) -> None:
    """After [DONE]: the body's end is usually there already, and once it is read the connection can be used again."""
    try:
        async with asyncio.timeout(_REUSE_S):
            await anext(batches, None)
    except (TimeoutError, UpstreamError):
        pass  # the answer is whole; the connection is closed instead
