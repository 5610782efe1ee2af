"""Our own HTTP API, from the outside: what the command line and the demo use, and nothing else.

Hidden here: how a view survives a lost connection (Last-Event-ID, growing pauses, 204), what counts as silence, and
that every failure, of the network or of the server, becomes a StreamspoolError whose message can be shown as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, Literal, NamedTuple
from urllib.parse import quote, urlencode

from shared.errors import StreamspoolError, Unavailable
from shared.lib import json, sse
from shared.lib.light_http import Broken, InvalidURL, Response, asked, reason

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 30.0
SILENCE_S = 45.0
"""No byte of a stream for this long, not even a keep-alive (15 s by default), and the connection counts as lost."""

FIRST_PAUSE_S = 0.1
LAST_PAUSE_S = 5.0
_PIECE_BYTES = 1024 * 1024
_MAX_EVENT_BYTES = 64 * 1024 * 1024
_WORTH_ANOTHER_TRY = frozenset({408, 429, 500, 502, 503, 504})


def url_of(host: str, port: int) -> str:
    """Where a server that listens on `host` is reached from this machine."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


class Event(NamedTuple):
    """One thing a viewer is told: a chunk, the start of an attempt (forget the text so far), or the final error."""

    kind: Literal["chunk", "attempt", "error"]
    data: dict[str, Any]
    position: str

    @property
    def text(self) -> str:
        """What the first choice says here."""
        return str(self._delta.get("content") or "")

    @property
    def reasoning(self) -> str:
        return str(self._delta.get("reasoning_content") or self._delta.get("reasoning") or "")

    @property
    def _delta(self) -> dict[str, Any]:
        choices = self.data.get("choices") or [{}]
        return choices[0].get("delta") or {}


@dataclass(slots=True)
class View:
    """How far one viewer has come. It is kept up to date, so that an interrupted viewer knows where to go on."""

    id: str = ""
    position: str = ""
    reconnects: int = 0
    error: dict[str, Any] | None = None


OnEvent = Callable[[Event], None]


class Client:
    """All methods raise StreamspoolError; Unavailable when the server cannot be reached. Nothing is kept between them.

    `tenant`: whose things all requests are about, for an admin's key; `*` on lists. `give_up_s`: how long a view that has been
    connected tries to get back before it gives up.
    """

    def __init__(
        self, base_url: str, api_key: str | None = None, *, tenant: str | None = None, give_up_s: float = 60
    ) -> None:
        self.base_url = base_url.rstrip("/").removesuffix("/v1")  # as OpenAI's clients are told it
        self._headers = {"authorization": f"Bearer {api_key}"} if api_key else {}
        self._tenant = tenant
        self._give_up_s = give_up_s

    async def submit(self, body: Mapping[str, Any], view: View, on_event: OnEvent) -> None:
        """Starts a generation and watches it to its end. It goes on when the caller is cancelled."""
        await self._follow(view, on_event, body)

    async def watch(self, view: View, on_event: OnEvent) -> None:
        """Watches `view.id` to its end: from its start, or from after `view.position`."""
        await self._follow(view, on_event, None)

    async def complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A generation in one piece: OpenAI's `chat.completion` object."""
        return await self.send("POST", "/v1/chat/completions", {**body, "stream": False}, timeout_s=None)

    async def state(self, generation_id: str) -> dict[str, Any]:
        """What became of it; of one whose text is not kept any more, what is still known (`stream_expired`)."""
        path = f"/v1/streams/{quote(generation_id, safe='')}"
        found = await self.send("GET", path, accepted=(200, 404))
        error = found.get("error")
        known = found if "id" in found else error.get("stream") if isinstance(error, dict) else None
        return known or await self.send("GET", path)  # which is refused again, and raises that

    async def answer(self, generation_id: str) -> dict[str, Any]:
        """What is stored of it, in one piece: OpenAI's `chat.completion` object."""
        return await self.send("GET", f"/v1/chat/completions/{quote(generation_id, safe='')}")

    async def cancel(self, generation_id: str) -> dict[str, Any]:
        """Ends it, if it has not ended; returns its state either way."""
        return await self.send("POST", f"/v1/streams/{quote(generation_id, safe='')}/cancel")

    async def request(self, generation_id: str) -> str:
        """The body of its request, as it was sent."""
        async with self._answered("GET", f"/v1/streams/{quote(generation_id, safe='')}/request") as response:
            return (await response.read()).decode("utf-8", "replace")

    async def list(self, **query: str | int | None) -> dict[str, Any]:
        """A page of states, newest first; `query` as of GET /v1/streams."""
        return await self.send("GET", _with_query("/v1/streams", query))

    async def usage(self, **query: str | None) -> dict[str, Any]:
        """The ledger; `query` as of GET /v1/usage."""
        return await self.send("GET", _with_query("/v1/usage", query))

    async def sessions(self, **query: str | int | None) -> dict[str, Any]:
        """A page of sessions, last used first."""
        return await self.send("GET", _with_query("/v1/sessions", query))

    async def upload(self, content: BinaryIO, filename: str) -> dict[str, Any]:
        """Stores a file for a batch, piece by piece; returns the file object."""
        boundary = secrets.token_hex(16)
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n'
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{quote(filename)}"\r\n\r\n'
        ).encode()
        tail = f"\r\n--{boundary}--\r\n".encode()

        async def form() -> AsyncGenerator[bytes]:
            yield head
            while piece := content.read(_PIECE_BYTES):
                yield piece
            yield tail

        size = content.seek(0, 2)
        content.seek(0)
        headers = {
            "content-type": f"multipart/form-data; boundary={boundary}",
            "content-length": str(len(head) + size + len(tail)),
        }
        return await self.send("POST", "/v1/files", timeout_s=None, content=form(), headers=headers)

    async def create_batch(self, file_id: str, window: str) -> dict[str, Any]:
        """Starts a batch on a file; returns the batch object."""
        body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": window}
        return await self.send("POST", "/v1/batches", body)

    async def batch(self, batch_id: str) -> dict[str, Any]:
        return await self.send("GET", f"/v1/batches/{quote(batch_id, safe='')}")

    async def watch_batch(self, batch_id: str, on_change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Hears of each change, to the end; returns the batch object. Lost connections are made again."""
        path, seen = f"/v1/batches/{quote(batch_id, safe='')}/events", ""
        pause_s, last_contact = FIRST_PAUSE_S, time.monotonic()
        while True:
            try:
                headers = {"accept": "text/event-stream", **({"last-event-id": seen} if seen else {})}
                async with self._open("GET", path, None, headers) as response, aclosing(_events(response)) as found:
                    async for event in found:
                        pause_s, last_contact = FIRST_PAUSE_S, time.monotonic()
                        if event is None:
                            continue
                        if event.data == sse.DONE:
                            return await self.batch(batch_id)
                        seen = event.id
                        on_change(self._object(event.data))
                if response.status_code == 204:
                    return await self.batch(batch_id)
            except (Broken, TimeoutError, EOFError, _Later) as error:
                if time.monotonic() - last_contact > self._give_up_s:
                    raise error.refusal if isinstance(error, _Later) else self._unreachable(error) from None
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LAST_PAUSE_S)

    async def download(self, file_id: str, target: BinaryIO) -> None:
        """Writes what a file holds to `target`."""
        async with self._answered("GET", f"/v1/files/{quote(file_id, safe='')}/content") as response:
            async for piece in response.pieces():
                target.write(piece)

    @asynccontextmanager
    async def _answered(self, method: str, path: str) -> AsyncIterator[Response]:
        """A response that is no refusal, whose body is still to be read."""
        try:
            async with self._open(method, path, None) as response:
                if response.status_code != 200:
                    raise _refusal(response, await response.read())
                yield response
        except (Broken, TimeoutError) as error:
            raise self._unreachable(error) from None

    async def models(self) -> dict[str, Any]:
        return await self.send("GET", "/v1/models")

    async def ready(self, wanted: str = "both") -> dict[str, Any]:
        """`{"status": "ok"|"unavailable", "checks": {…}}`; `wanted` is `accept`, `serve` or both."""
        return await self.send("GET", "/readyz" if wanted == "both" else f"/readyz?for={wanted}", accepted=(200, 503))

    async def probe(self, path: str, *, with_key: bool = True) -> tuple[int, Mapping[str, str]]:
        """The status and headers of a GET whose body does not matter."""
        hidden = None if with_key else {"authorization": ""}
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S), self._open("GET", path, None, hidden) as response:
                return response.status_code, response.headers
        except (Broken, TimeoutError) as error:
            raise self._unreachable(error) from None

    async def post_unread(self, path: str, content: bytes) -> int:
        """The status of a POST, 0 where the connection broke instead."""

        async def whole() -> AsyncGenerator[bytes]:
            yield content

        headers = {"content-type": "application/json", "content-length": str(len(content))}
        try:
            async with (
                asyncio.timeout(ANSWER_TIMEOUT_S),
                self._open("POST", path, None, headers, whole()) as response,
            ):
                return response.status_code
        except (Broken, TimeoutError):
            return 0

    async def send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = ANSWER_TIMEOUT_S,
        accepted: tuple[int, ...] = (200,),
        content: AsyncIterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> dict[str, Any]:
        try:
            async with asyncio.timeout(timeout_s), self._open(method, path, body, headers, content) as response:
                received = await response.read()
        except (Broken, TimeoutError) as error:
            raise self._unreachable(error) from None
        if response.status_code not in accepted:
            raise _refusal(response, received)
        return self._object(received)

    async def _follow(self, view: View, on_event: OnEvent, body: Mapping[str, Any] | None) -> None:
        pause_s, last_contact, connected, lost = FIRST_PAUSE_S, time.monotonic(), False, False
        while True:
            try:
                async with aclosing(self._connect(view, None if connected else body)) as events:
                    async for event in events:
                        view.reconnects += lost
                        pause_s, last_contact, connected, lost = FIRST_PAUSE_S, time.monotonic(), True, False
                        if event is not None:
                            view.position = event.position or view.position
                            view.error = event.data["error"] if event.kind == "error" else None
                            on_event(event)
                return
            except (Broken, TimeoutError, EOFError, _Later) as error:
                reached = connected or isinstance(error, _Later)
                # A generation whose id is not known cannot be found again; and a server never reached is a wrong URL.
                if not view.id or not reached or time.monotonic() - last_contact > self._give_up_s:
                    raise error.refusal if isinstance(error, _Later) else self._unreachable(error) from None
            lost = True
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LAST_PAUSE_S)

    async def _connect(self, view: View, body: Mapping[str, Any] | None) -> AsyncGenerator[Event | None]:
        """One connection's events, None for each sign of life without one. Returns at the end of the stream.

        Raises EOFError when it is cut, and _Later, or whatever the HTTP client raises, when it is worth another try.
        """
        headers = {"accept": "text/event-stream"}
        if body is not None:
            opened = self._open("POST", "/v1/chat/completions", {**body, "stream": True}, {"x-stream-ids": "1"})
        else:
            if view.position:
                headers["last-event-id"] = view.position
            opened = self._open("GET", f"/v1/streams/{quote(view.id, safe='')}", None, headers)
        async with opened as response, aclosing(_events(response)) as events:
            if response.status_code == 200:
                view.id = response.headers.get("x-stream-id") or view.id
            async for event in events:
                if event is None:
                    yield None
                elif event.data == sse.DONE:
                    return
                else:
                    yield self._event(event)

    @asynccontextmanager
    async def _open(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        headers: Mapping[str, str] | None = None,
        content: AsyncIterator[bytes] | None = None,
    ) -> AsyncIterator[Response]:
        """The response, body not read yet. Raises TimeoutError for a stream that does not begin."""
        wanted = {"accept": "application/json", **self._headers, **(headers or {})}
        sent: bytes | AsyncIterator[bytes] | None = content
        if body is not None:
            sent, wanted["content-type"] = json.dumps(body), "application/json"
        url = self.base_url + path
        if self._tenant:
            url += f"{'&' if '?' in path else '?'}{urlencode({'tenant': self._tenant})}"
        opened = asked(method, url, headers=wanted, content=sent, connect_timeout_s=CONNECT_TIMEOUT_S)
        async with contextlib.AsyncExitStack() as exits:
            try:
                async with asyncio.timeout(SILENCE_S if wanted["accept"] == "text/event-stream" else None):
                    response = await exits.enter_async_context(opened)
            except (InvalidURL, ValueError):
                raise StreamspoolError(f"{self.base_url!r} is not a URL that can be asked. Check --url.") from None
            yield response

    def _event(self, event: sse.Event) -> Event:
        data = self._object(event.data)
        if event.event == "attempt":
            return Event("attempt", data, event.id)
        return Event("error" if isinstance(data.get("error"), dict) else "chunk", data, event.id)

    def _object(self, content: bytes) -> dict[str, Any]:
        try:
            value = json.loads(content)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise StreamspoolError(f"What answers at {self.base_url} is not Streamspool.")
        return value

    def _unreachable(self, error: Exception) -> Unavailable:
        return Unavailable(
            f"Cannot reach Streamspool at {self.base_url} ({reason(error)}). "
            "Start it with `streamspool up`, or say where it is with --url or STREAMSPOOL_URL.",
            code="unreachable",
        )


async def _events(response: Response) -> AsyncGenerator[sse.Event | None]:
    """The events of a response, None for each sign of life. Raises EOFError where it is cut, _Later for a refusal that
    may be gone later."""
    if response.status_code == 204:
        return
    if response.status_code != 200:
        refusal = _refusal(response, await response.read())
        raise _Later(refusal) if response.status_code in _WORTH_ANOTHER_TRY else refusal
    yield None
    decoder = sse.Decoder(_MAX_EVENT_BYTES)
    slices = response.pieces()
    while True:
        async with asyncio.timeout(SILENCE_S):
            received = await anext(slices, b"")
        if not received:
            raise EOFError
        yield None
        for event in decoder.feed(received):
            yield event


class _Later(Exception):
    """A refusal that may be gone at the next try."""

    def __init__(self, refusal: StreamspoolError) -> None:
        self.refusal = refusal


def _refusal(response: Response, content: bytes) -> StreamspoolError:
    """The error a response carries, whatever wrote it; in its text also what it can be found by: status, code, and the id
    of the generation or of the request."""
    status = response.status_code
    found = response.headers.get("x-stream-id") or response.headers.get("x-request-id")
    at_hand = f"; {found}" if found else ""
    try:
        error = json.loads(content)["error"]
        code = error.get("code")
        told = f"{error['message']} (HTTP {status}{f', {code}' if code else ''}{at_hand})"
        return StreamspoolError(told, code=code, param=error.get("param"), status=status)
    except (ValueError, LookupError, TypeError, AttributeError):
        return StreamspoolError(f"The server answered with HTTP status {status}{at_hand}.", status=status)


def _with_query(path: str, query: Mapping[str, str | int | None]) -> str:
    given = {name: str(value) for name, value in query.items() if value is not None}
    return f"{path}?{urlencode(given)}" if given else path
