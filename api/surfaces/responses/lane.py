"""One request on a WebSocket: from its message to the message of its last event.

Hidden here: that its answer is the response that HTTP would be sent, whose body is taken apart into events; and that one which
is only prepared (`generate: false`) has events, too, and asks nobody.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from api import spans
from api.live.client import AMONG
from api.live.event_stream import EventStream
from api.surfaces.responses.asked import turn_of, understand
from api.surfaces.responses.memory import Prepared
from api.surfaces.responses.verbatim import cipher_for, view_of
from shared.errors import BadRequest, Internal, StreamspoolError
from shared.features.responses.items import as_items
from shared.features.responses.objects import response
from shared.features.responses.output import event_frame
from shared.features.responses.request import TERMS
from shared.generations.headers import make_header
from shared.lib import json
from shared.lib.telemetry import begin_request, get_logger
from shared.log.blobs import Cut
from shared.log.entry import Status
from shared.log.records import response_id

if TYPE_CHECKING:
    from api.surfaces.responses.socket import Socket

logger = get_logger(__name__)

_TOLD = ("retry-after", "x-should-retry")
"""Response headers that a client is told of an error."""
_NOTHING_USED = {
    "input_tokens": 0,
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens": 0,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 0,
}


def error_message(error: StreamspoolError, stream_id: str | None = None) -> dict[str, Any]:
    """An error as a message: what would be the response's status, body and headers."""
    return _error(error.status, dict(error.to_object()), error.headers(), stream_id)


def _error(status: int, error: dict[str, Any], headers: dict[str, str], stream_id: str | None) -> dict[str, Any]:
    told = {name: value for name, value in headers.items() if name in _TOLD or name.startswith("x-ratelimit-")}
    return {
        "type": "error",
        "status": status,
        "error": {**error, **({"headers": told} if told else {})},
        **({"stream_id": stream_id} if stream_id is not None else {}),
    }


class Lane:
    """A request, and an ASGI client of its response. `room` is what its body takes of the room for large ones."""

    def __init__(self, socket: Socket, stream_id: str | None, given: dict[str, Any], cut: Cut, room: Any) -> None:
        self.stream_id = stream_id
        self._socket, self._given, self._cut, self._room = socket, given, cut, room
        self._previous = given.get("previous_response_id")
        self._mark = b"" if stream_id is None else b'{"stream_id":%b,' % json.dumps(stream_id)
        self._status, self._headers = 0, dict[str, str]()
        self._ended = False

    async def run(self) -> None:
        """Returns when all is said. An error is said, too."""
        request_id = f"req_{uuid.uuid4().hex}"
        begin_request(request_id)
        with spans.answering(self._socket.scope, request_id):
            await self._run(request_id)

    async def _run(self, request_id: str) -> None:
        try:
            answer = await self._begin()
            self._given, self._cut, self._room = {}, Cut(b"", b""), None
            if answer is not None:
                scope: dict[str, Any] = {"type": "http", "method": "POST", "extensions": {}}
                if self._socket.among is not None:
                    scope[AMONG] = self._socket.among
                await answer(scope, self._receive, self._send)
                self._check_end()
        except StreamspoolError as error:
            spans.told(error.status)
            self._refused(error.headers())
            await self._socket.say(error_message(error, self.stream_id))
        except Exception as bug:
            spans.told(Internal.status)
            logger.error("unhandled", path="/v1/responses", request_id=request_id, exc_info=bug)
            broken = Internal(f"Something broke on our side. {request_id} finds it in the log.")
            await self._socket.say(error_message(broken, self.stream_id))

    def _refused(self, headers: Mapping[str, str]) -> None:
        """What a refused request was to go on from is forgotten, so that nothing is built on half of a turn (Open Responses,
        "WebSocket transport"); unless the same request may be made again, since nothing was done."""
        if headers.get("x-should-retry") != "true":
            self._socket.memory.forget(self._previous)

    def _check_end(self) -> None:
        """What ends without an end was cut: because this server stops, which the socket is about to say; or because the
        client reads nothing."""
        if not (self._ended or self._socket.left.is_set() or self._socket.services.drain.everyone):
            self._socket.abort()

    async def _begin(self) -> EventStream | None:
        """Accepts the request; None if there was nothing to be answered. Raises StreamspoolError."""
        services, caller, memory = self._socket.services, self._socket.caller, self._socket.memory
        given = {**self._given, "stream": True}
        if given.pop("generate", None) is False:
            await self._prepare(given)
            return None
        wanted = given.get("previous_response_id")
        asked = await understand(services, caller, memory.with_prepared(given), memory)
        if wanted is not None:
            asked.body[TERMS]["previous_response_id"] = wanted  # what was prepared has a name for its client alone
        front = asked.front(await turn_of(services, self._socket.session, given, self._cut))
        cipher = await cipher_for(services, caller.tenant, asked.body)
        header, replayed = await services.broker.submit(
            await services.blobs.cut(json.dumps(asked.body), self._cut),
            asked.chat,
            caller,
            repeat=True if front.turn else None,
            front=front,
        )
        memory.note(response_id(header["id"]), self.stream_id)
        hold_s = 0 if asked.chat.background else services.settings.hold_headers_s
        view = view_of(header, asked.body, cipher)
        return EventStream(services, header, view, fresh=not replayed, hold_s=hold_s, headers={})

    async def _prepare(self, given: dict[str, Any]) -> None:
        """Checks and keeps a request for the one that goes on from it."""
        services, caller, memory = self._socket.services, self._socket.caller, self._socket.memory
        own = given.get("input")
        whole = memory.with_prepared(given)
        checkable = whole if whole.get("input") else {**whole, "input": [{"role": "user", "content": ""}]}
        asked = await understand(services, caller, checkable, memory)
        if asked.request.conversation_id is not None:
            raise BadRequest("conversation: A request that is not answered adds to none.", param="conversation")
        await services.catalogue.check(asked.chat.model)
        asked.body[TERMS]["previous_response_id"] = given.get("previous_response_id")
        generation_id = f"chatcmpl-{uuid.uuid4().hex}"
        header = make_header(
            services.settings, generation_id, asked.chat, caller, None, client_history=False, webhook=None
        )
        items = as_items(whole["input"]) if whole.get("input") else []
        text = json.dumps(items)
        memory.check_size(services.blobs.length(text) if own else 0)
        kept = json.loads(services.blobs.marks.put_back(text, self._cut))
        memory.prepare(response_id(generation_id), Prepared(kept, asked.request.previous_response_id))
        view = view_of(header, asked.body)
        begun = view.start(header)
        ended = response(header, view.echoed, Status.COMPLETED, output=[], completed_at=header["created_at_ms"] // 1000)
        last = event_frame(begun.fold.events, "response.completed", {"response": {**ended, "usage": _NOTHING_USED}})
        await self._say_events(b"".join([*begun.frames, last]))

    # ---- as a client of the response

    async def _receive(self) -> dict[str, str]:
        await self._socket.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            spans.told(self._status)
            self._headers = {name.decode(): value.decode("latin-1") for name, value in message.get("headers", ())}
            return
        self._ended = not message.get("more_body", False)
        body = message.get("body", b"")
        if self._status == 200:
            await self._say_events(body)
        else:
            error = json.loads(body)["error"]
            self._refused(self._headers)
            await self._socket.say(_error(self._status, error, self._headers, self.stream_id))

    async def _say_events(self, body: bytes) -> None:
        for kind, data in events_of(body):
            if kind == b"error":  # this server stops
                await self._socket.say(_error(503, json.loads(data)["error"], {}, self.stream_id))
            else:
                await self._socket.say(self._mark + data[1:] if self._mark else data)


def events_of(body: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The types and the data of the events in a piece of an event stream of ours, in which frames are whole."""
    for frame in body.split(b"\n\n"):
        fields, _, data = frame.rpartition(b"\ndata: ")
        if data:
            yield fields.rpartition(b"event: ")[2].partition(b"\n")[0], data
