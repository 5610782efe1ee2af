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
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self

from shared.config.settings import Settings
from shared.errors import StreamspoolError, UpstreamError, UpstreamIncomplete, UpstreamInvalid, without_frames
from shared.features.blobs import OfTenant
from shared.lib import http, json, sse
from shared.log.entry import Chunk
from worker import spans
from worker.normalizer import Normalizer
from worker.providers import fake, framing
from worker.providers.dialect import Call, Decoder, Dialect
from worker.providers.errors import error_from_response
from worker.providers.registry import Provider
from worker.upstream.attempts import Attempts, Events, OnRetry, Served, Target, without_key
from worker.upstream.health import Health
from worker.upstream.shortcut import Shortcut
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
        opener = partial(self._open, body, normalizer, terms)
        attempts = Attempts(opener, normalizer, timers, served, terms.on_retry, self.health)
        try:
            with spans.asking(body, normalizer, served):
                try:
                    chunks, failure = await attempts.begin(targets)
                    while True:
                        if chunks:
                            yield chunks
                            # The consumer's time is not the provider's: the idle timer starts when we begin to wait again.
                            timers.progress()
                        if failure is not None:
                            assert served.target is not None
                            self.health.failed(served.target.provider.name, failure)
                            raise without_key(failure, served.target.provider)
                        if normalizer.done or attempts.is_over:
                            break
                        chunks, failure = await attempts.step()
                    await attempts.drain()
                finally:
                    await attempts.close()
        finally:
            if terms.shortcut is not None:
                terms.shortcut.close()
            timers.close()

    async def _open(
        self,
        body: dict[str, Any],
        normalizer: Normalizer,
        terms: Terms,
        target: Target,
        dialect: Dialect,
        timers: Timers,
    ) -> Events:
        provider = target.provider
        if provider.kind == "fake":
            return _Played(body, target.model, terms.blobs)
        call = dialect.call(provider, body, target.model)
        decoder = dialect.decoder(self._settings.max_event_bytes)
        tap = terms.shortcut.tap(decoder, normalizer, timers) if terms.shortcut is not None else None
        with timers:
            response = await self._send(provider, call, terms.blobs)
        try:
            if not 200 <= response.status_code < 300:
                with timers:
                    said = await _read_some(response)
                raise error_from_response(provider, response.status_code, response.headers, said)
            return _Answer(response, provider, dialect, decoder, self._settings.max_event_bytes, tap)
        except BaseException:
            response.close()
            raise

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
        except http.ConnectTimeout as late:
            without_frames(late)  # one of these holds what aiohttp raised
            failure: UpstreamError = too_slow("upstream_connect_timeout", self._settings.upstream_connect_s)
        except (http.TransportError, http.InvalidURL) as error:
            if isinstance(content, _Filled) and content.failure is not None:
                raise content.failure from None  # which the HTTP client takes for the connection's
            message = f"{provider.name}: no connection ({http.reason(without_frames(error))})."
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


_PLAIN, _INFLATED = ("", "identity"), ("gzip", "x-gzip", "deflate")
_STARTS = (b"data:", b"event:", b"id:", b"retry:", b":", b"{", b"[", b"\xef\xbb\xbf")
"""How a body begins that may be an answer."""


class _Answer:
    """A response's events: the client gathers what comes while the consumer is busy, within bounds, and hands it out together.

    The content type may leave open whether it is an answer: some call any answer text/html, and two headers of one name are one
    with a comma. Then its first bytes tell.
    """

    def __init__(
        self,
        response: http.Response,
        provider: Provider,
        dialect: Dialect,
        decoder: Decoder,
        max_event_bytes: int,
        tap: http.Tap | None,
    ) -> None:
        """What was not compressed may go to a `tap`. Raises UpstreamInvalid where it was in a way that was not asked for."""
        self._response, self._provider, self._decoder = response, provider, decoder
        self._limit, self._is_over = max_event_bytes, False
        content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        self._is_doubtful, self._head = content_type not in dialect.stream_types, b""
        encoding = _encoding(response)
        if encoding in _PLAIN:
            self._piece = response.piece
            if tap is not None:
                response.offer(tap)
        elif encoding in _INFLATED:  # it was told not to
            self._piece = _Inflated(response).piece
        else:
            raise UpstreamInvalid(f"{provider.name}: the stream is compressed in a way that was not asked for.")

    async def next(self) -> list[sse.Event] | None:
        try:
            while not self._is_over:
                if self._decoder.refused:
                    raise sse.EventTooLarge
                data = await self._piece()
                if not data:
                    self._is_over = True
                    return self._last() or None
                if self._is_doubtful:
                    data = self._known(data)
                if data and (events := self._decoder.feed(data)):
                    return events
        except sse.EventTooLarge:
            message = f"The provider sent an event of more than {self._limit} bytes."
            raise UpstreamInvalid(message, code="upstream_chunk_too_large") from None
        except zlib.error:
            message = f"{self._provider.name}: the stream says that it is compressed, and is not."
            raise UpstreamInvalid(message) from None
        except http.TransportError:
            message = "The connection to the provider broke before the answer had ended."
            raise UpstreamIncomplete(message) from None
        return None

    def _known(self, data: bytes) -> bytes:
        """What came, once it is known that it may be an answer; nothing before. Raises UpstreamError once it cannot be one."""
        self._head = head = (self._head + data).lstrip()
        if head.startswith(_STARTS):
            self._is_doubtful = False
            return head
        if any(start.startswith(head) for start in _STARTS):
            return b""
        raise self._no_answer(head)

    def _last(self) -> list[sse.Event]:
        """The body has ended."""
        if self._is_doubtful and self._head:
            raise self._no_answer(self._head)
        if isinstance(self._decoder, framing.Decoder) and (body := self._decoder.other) is not None:
            raise self._no_answer(body)
        return self._decoder.close()

    def _no_answer(self, body: bytes) -> UpstreamError:
        return error_from_response(self._provider, self._response.status_code, self._response.headers, body)

    async def drain(self) -> None:
        """After [DONE]: the body's end is usually there already, and once it is read the connection can be used again."""
        if self._response.is_complete:
            return
        try:
            async with asyncio.timeout(_REUSE_S):
                await self.next()
        except (TimeoutError, UpstreamError):
            pass  # the answer is whole; the connection is closed instead

    async def close(self) -> None:
        self._response.close()


def _encoding(response: http.Response) -> str:
    return str(response.headers.get("content-encoding", "")).strip().lower()


class _Inflated:
    """A body as it was before it was compressed: a bounded piece at a time, so that a small one fills no memory, and with a
    turn for others after each."""

    def __init__(self, response: http.Response) -> None:
        self._response, self._data = response, b""
        self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)  # gzip or zlib, as the first bytes say

    async def piece(self) -> bytes:
        """b"" at the end. Raises zlib.error, TransportError."""
        while True:
            while self._data and not self._inflate.eof:
                piece = self._inflate.decompress(self._data, _PIECE_BYTES)
                self._data = self._inflate.unconsumed_tail
                await asyncio.sleep(0)
                if piece:
                    return piece
            self._data = await self._response.piece()
            if not self._data:
                return b""


async def _read_some(response: http.Response) -> bytes:
    body = bytearray()
    next_piece = response.piece if _encoding(response) in _PLAIN else _Inflated(response).piece
    try:
        while len(body) < _MAX_ERROR_BYTES and (data := await next_piece()):
            body += data
    except (http.TransportError, zlib.error):
        pass  # the status is known; a message that was cut is better than none
    return bytes(body[:_MAX_ERROR_BYTES])


class _Played:
    """A fake model's events at their times: those that are due come together."""

    def __init__(self, body: dict[str, Any], model: str, blobs: OfTenant | None) -> None:
        self._batches = _play(body, model, blobs)

    async def next(self) -> list[sse.Event] | None:
        return await anext(self._batches, None)

    async def drain(self) -> None:
        pass

    async def close(self) -> None:
        await self._batches.aclose()


async def _play(body: dict[str, Any], model: str, blobs: OfTenant | None) -> AsyncGenerator[list[sse.Event], None]:
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
