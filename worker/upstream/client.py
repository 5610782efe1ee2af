"""All I/O with providers: one request out, lists of chunks in.

Hidden here: the HTTP client and its connections, reading raw bytes (never lines; inflated within bounds, where a proxy
compresses unasked), what a status or a content type means, when a stream has ended, and that closing the generator closes
the connection. Which provider is asked, and how often, is attempts.py's; how long each wait may last is timers.py's; the
meaning of an event is the normalizer's.

A stream has ended when it says so: [DONE], or a finish reason for every choice and an end of the body behind it. An end of file
alone proves nothing, since a connection-close body that was cut looks just like one that is complete.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, asynccontextmanager
from types import TracebackType
from typing import Any, NamedTuple, Self

from shared.chat.whole import FIELD
from shared.config.settings import Settings
from shared.errors import StreamspoolError, UpstreamError, UpstreamIncomplete, UpstreamInvalid
from shared.features.blobs import OfTenant
from shared.lib import http, json, sse
from shared.log.entry import Chunk
from worker import spans
from worker.normalizer import Normalizer
from worker.providers import fake, framing
from worker.providers.dialect import Call, Decoder, Dialect
from worker.providers.errors import error_from_response
from worker.providers.formats import dialect_of
from worker.providers.registry import Provider
from worker.upstream.attempts import Attempts, Events, OnRetry, Served, Target, without_key
from worker.upstream.health import Health
from worker.upstream.shortcut import Shortcut, Tap
from worker.upstream.timers import Timers, too_slow

_REUSE_S = 0.05  # after [DONE]: how long the end of the body may take, so that the connection can be used again
_MAX_ERROR_BYTES = 64 * 1024
_PIECE_BYTES = 64 * 1024
_FAKE_BATCH = 64


class Terms(NamedTuple):
    """What may be wanted of an answer beside its chunks."""

    on_retry: OnRetry | None = None
    """Hears of each time a provider is asked again."""
    blobs: OfTenant | None = None
    """What marks in the request stand for, read while it is sent."""
    shortcut: Shortcut | None = None
    """Is offered chunks that come while the next are waited for. Those that it takes are not yielded."""


class Upstream:
    """The provider side of one worker process: an async context manager that owns the HTTP client.

    Any number of streams may run at once.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings, self.health = settings, Health()
        self._client = http.open_client(settings.upstream_connect_s, settings.upstream_proxies)

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
        terms: Terms = Terms(),  # noqa: B008 - a constant
    ) -> AsyncGenerator[list[Chunk], None]:
        """Asks the first target that begins to answer, and yields all chunks of one network read together.

        Never yields an empty list; the last list ends with the usage chunk, if usage was seen. Ends after [DONE], or
        once every choice has its finish reason and the body ends, 5 s have passed after usage, or nothing came for as long as
        nothing may come. Chunks that came before an error
        are yielded before it is raised. Close it (`contextlib.aclosing`) or cancel it to hang up on the provider at once.

        A refusal that may pass (429, 5xx, no connection, cut before the first chunk) is met with up to two more tries
        within 30 s, after the provider's own Retry-After where that is 10 s at most. Then the
        next target is asked, as it is after any refusal that is not the request's own fault. `served` tells the story.

        Raises UpstreamTimeout (four codes, see Settings), UpstreamRefused for an error of the provider's,
        UpstreamIncomplete for a stream that was cut, UpstreamInvalid for one that cannot be understood, UpstreamError
        `upstream_connect_error`, `upstream_redirect`; BadRequest for a fake model that does not exist; FileStorageFailed
        and RequestLost where a blob cannot be had.
        """
        timers = Timers(self._settings)
        opener = self._opener(body, normalizer, terms)
        attempts = Attempts(opener, normalizer, timers, served, terms.on_retry, self.health)
        async with AsyncExitStack() as stack:
            stack.callback(timers.close)
            if terms.shortcut is not None:
                stack.callback(terms.shortcut.close)
            stack.enter_context(spans.asking(body, normalizer, served))
            provider, (batches, chunks, failure) = await attempts.begin(stack, targets)
            while True:
                if chunks:
                    yield chunks
                    # The consumer's time is not the provider's: the idle timer starts when we begin to wait again.
                    timers.progress()
                if failure is not None:
                    self.health.failed(provider.name, failure)
                    raise without_key(failure, provider)
                if normalizer.done or batches is None:
                    break
                batches, chunks, failure = await attempts.step(batches)
            if batches is not None:
                await _drain(batches)

    def _opener(
        self, body: dict[str, Any], normalizer: Normalizer, terms: Terms
    ) -> Callable[[Target, Timers], AbstractAsyncContextManager[Events]]:
        def open_events(target: Target, timers: Timers) -> AbstractAsyncContextManager[Events]:
            dialect = dialect_of(target.provider, body.get(FIELD))
            if target.provider.kind == "fake":
                return aclosing(_play(body, target.model, terms.blobs))
            call = dialect.call(target.provider, body, target.model)
            decoder = dialect.decoder(self._settings.max_event_bytes)
            tap = terms.shortcut.tap(decoder, normalizer, timers) if terms.shortcut is not None else None
            return self._request(target.provider, dialect, call, timers, terms.blobs, decoder, tap)

        return open_events

    @asynccontextmanager
    async def _request(
        self,
        provider: Provider,
        dialect: Dialect,
        call: Call,
        timers: Timers,
        blobs: OfTenant | None,
        decoder: Decoder,
        tap: Tap | None,
    ) -> AsyncIterator[Events]:
        response = await timers.wait(self._send(provider, call, blobs))
        try:
            doubtful = await _check(response, provider, dialect, timers)
            limit = self._settings.max_event_bytes
            async with aclosing(_decode(response, decoder, provider, limit, tap, doubtful=doubtful)) as batches:
                yield batches
        finally:
            response.close()

    async def _send(self, provider: Provider, call: Call, blobs: OfTenant | None) -> http.Response:
        """Sends the request; returns once the response's headers are there. Nothing of a client's request is sent on
        but the body."""
        headers = {
            "content-type": "application/json",
            "accept": "text/event-stream",
            "accept-encoding": "identity",
            **call.headers,
            **(spans.outgoing() if self._settings.trace_upstream else {}),
        }
        url = f"{provider.base_url}{call.path}"
        if provider.query:
            url += f"{'&' if '?' in url else '?'}{provider.query}"
        text = json.dumps(call.body)
        content: bytes | _Filled = text
        if blobs is not None and blobs.are_in(text):
            content = _Filled(blobs, text)
            headers["content-length"] = str(blobs.length(text))
        try:
            return await self._client.request("POST", url, headers=headers, content=content)
        except http.ConnectTimeout:
            failure: UpstreamError = too_slow("upstream_connect_timeout", self._settings.upstream_connect_s)
        except (http.TransportError, http.InvalidURL) as error:
            if isinstance(content, _Filled) and content.failure is not None:
                raise content.failure from None  # which the HTTP client takes for the connection's
            message = f"{provider.name}: no connection ({http.reason(error)})."
            failure = UpstreamError(message, code="upstream_connect_error")
        raise failure


class _Filled:
    """A request's body that is read from the file storage while it is sent. `failure` is why it could not be."""

    def __init__(self, blobs: OfTenant, text: bytes) -> None:
        self._blobs, self._text = blobs, text
        self.failure: StreamspoolError | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._blobs.stream(self._text):
                yield piece
                await asyncio.sleep(0)  # a connection may take several at once, and other answers go on meanwhile
        except StreamspoolError as error:
            self.failure = error
            raise


async def _check(response: http.Response, provider: Provider, dialect: Dialect, timers: Timers) -> bool:
    """Raises the error that a response stands for which is not an event stream. Returns whether its content type leaves that
    open: some call any answer text/html, and two headers of one name are one with a comma."""
    content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not 200 <= response.status_code < 300:
        body = await timers.wait(_read_some(response))
        raise error_from_response(provider, response.status_code, response.headers, body)
    if _encoding(response) not in _INFLATED:
        # It was told not to.
        raise UpstreamInvalid(f"{provider.name}: the stream is compressed in a way that was not asked for.")
    return content_type not in dialect.stream_types


_INFLATED = ("", "identity", "gzip", "x-gzip", "deflate")
_STARTS = (b"data:", b"event:", b"id:", b"retry:", b":", b"{", b"[", b"\xef\xbb\xbf")
"""How a body begins that may be an answer."""


def _encoding(response: http.Response) -> str:
    return str(response.headers.get("content-encoding", "")).strip().lower()


def _pieces(response: http.Response, tap: Tap | None = None) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
    """The body's bytes as they come, and as they were before they were compressed; those that were not may go to a `tap`."""
    if _encoding(response) in ("", "identity"):
        if tap is not None:
            response.offer(tap)
        return aclosing(response.pieces())
    return aclosing(_inflated(response))


async def _inflated(response: http.Response) -> AsyncGenerator[bytes, None]:
    """A bounded piece at a time, so that a small body fills no memory, and with a turn for others after each. Raises
    zlib.error."""
    inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip or zlib, as the first bytes say
    async for data in response.pieces():
        while data and not inflate.eof:
            if piece := inflate.decompress(data, _PIECE_BYTES):
                yield piece
            data = inflate.unconsumed_tail
            await asyncio.sleep(0)


async def _read_some(response: http.Response) -> bytes:
    body = bytearray()
    try:
        async with _pieces(response) as pieces:
            async for data in pieces:
                body += data
                if len(body) >= _MAX_ERROR_BYTES:
                    break
    except (http.TransportError, zlib.error):
        pass  # the status is known; a message that was cut is better than none
    return bytes(body[:_MAX_ERROR_BYTES])


async def _decode(
    response: http.Response,
    decoder: Decoder,
    provider: Provider,
    max_event_bytes: int,
    tap: Tap | None,
    *,
    doubtful: bool,
) -> Events:
    """All events that came since the last time it was asked: the client gathers what comes while the consumer is busy,
    within bounds, and hands it out together. `doubtful` is a body that may be none of an answer."""
    head = b""
    try:
        async with _pieces(response, tap) as pieces:
            async for data in pieces:
                if doubtful:
                    head = (head + data).lstrip()
                    if not head.startswith(_STARTS):
                        if any(start.startswith(head) for start in _STARTS):
                            continue  # too little to tell
                        raise error_from_response(provider, response.status_code, response.headers, head)
                    data, doubtful = head, False
                if events := decoder.feed(data):
                    yield events
                if decoder.refused:
                    raise sse.EventTooLarge
        if doubtful and head:
            raise error_from_response(provider, response.status_code, response.headers, head)
        if isinstance(decoder, framing.Decoder) and (body := decoder.other) is not None:
            raise error_from_response(provider, response.status_code, response.headers, body)
        if events := decoder.close():
            yield events
    except sse.EventTooLarge:
        message = f"The provider sent an event of more than {max_event_bytes} bytes."
        raise UpstreamInvalid(message, code="upstream_chunk_too_large") from None
    except zlib.error:
        raise UpstreamInvalid(f"{provider.name}: the stream says that it is compressed, and is not.") from None
    except http.TransportError:
        message = "The connection to the provider broke before the answer had ended."
        raise UpstreamIncomplete(message) from None


async def _play(body: dict[str, Any], model: str, blobs: OfTenant | None) -> Events:
    """A fake model's events at their times: those that are due come together."""
    if blobs is not None:
        body = await _filled(body, blobs)
    clock = asyncio.get_running_loop().time
    due = clock()
    batch: list[sse.Event] = []
    for delay_s, event in fake.script(body, model):
        due += delay_s
        if batch and (len(batch) >= _FAKE_BATCH or due > clock()):
            yield batch
            batch = []
            await asyncio.sleep(0)  # without pauses in the script, no other task would get a turn
        if (pause := due - clock()) > 0:
            await asyncio.sleep(pause)
        batch.append(event)
    if batch:
        yield batch


async def _filled(body: dict[str, Any], blobs: OfTenant) -> dict[str, Any]:
    text = json.dumps(body)
    filled: dict[str, Any] = json.loads(await blobs.filled(text)) if blobs.are_in(text) else body
    return filled


async def _drain(batches: Events) -> None:
    """After [DONE]: the body's end is usually there already, and once it is read the connection can be used again."""
    try:
        async with asyncio.timeout(_REUSE_S):
            await anext(batches, None)
    except (TimeoutError, UpstreamError):
        pass  # the answer is whole; the connection is closed instead
