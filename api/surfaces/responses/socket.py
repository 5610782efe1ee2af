"""The WebSocket at /v1/responses: requests as messages, their events as messages, several at once (`stream_id`).

Hidden here: that each answer on a socket is one more viewer of its log, the same response that HTTP would be sent
(live/event_stream.py), of which the frames are taken apart; which requests wait for which; what a socket remembers of the
responses that were made through it; and how it ends: for a client that has gone, one that says nothing, an hour, and a server
that stops.

    client  {"type": "response.create", "model": …, "input": …, "stream_id"?, "generate"?}
    server  {"type": "response.created", …, "stream_id"?} … {"type": "response.completed", …}
            {"type": "error", "status": 400, "error": {message, type, param, code, headers?}, "stream_id"?}

Read after OpenAI's clients, which define both (openai-python, `ResponsesClientEvent` and `ResponsesServerEvent`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import suppress
from dataclasses import replace
from typing import Any

from fastapi import APIRouter
from starlette.websockets import WebSocket, WebSocketDisconnect

from api.auth import caller_of
from api.deps import CurrentCaller, CurrentServices, with_options
from api.live.client import AMONG, CONNECTION
from api.services import Services
from api.surfaces.responses.apart import read_apart
from api.surfaces.responses.lane import Lane, error_message
from api.surfaces.responses.memory import Memory
from shared.errors import BadRequest, Stopping, StreamspoolError, TooLarge, Unauthenticated
from shared.features.access.keys import status_of
from shared.generations.caller import Caller
from shared.lib import json
from shared.lib.telemetry import SOCKETS

router = APIRouter(prefix="/v1/responses", tags=["responses"])

IDLE_S = 600.0
"""How long a socket may stay without a message while nothing is answered."""
LIFE_S = 3600.0
"""How long a socket takes requests, as OpenAI's do."""
AT_ONCE = 64
"""Requests of a socket that are answered, or wait for the one before them on their lane."""
_STREAM_ID = 128
"""Characters of a `stream_id`."""
_DONE, _RESTARTS = 1000, 1012
"""Close codes. OpenAI's client for Python takes 1001 in the middle of an answer for its end, and 1012 for none."""


@router.websocket("")
async def connect(websocket: WebSocket, services: CurrentServices, caller: CurrentCaller) -> None:
    """OpenAI's WebSocket mode. The key is asked for before it opens."""
    await websocket.accept()
    with SOCKETS.track_inprogress():
        await Socket(websocket, services, caller).run()


class Socket:
    """One socket, from its opening to its end."""

    def __init__(self, websocket: WebSocket, services: Services, caller: Caller) -> None:
        self.services, self.caller = services, caller
        self.memory = Memory()
        self.session: str | None = websocket.headers.get("session-id")
        self.left = asyncio.Event()
        """The client has gone."""
        self.among: Any = websocket.scope.get(AMONG)
        """Those that are turned out when the key is revoked: this socket, and the viewers on it."""
        if self.among is not None:
            self.among.add(self)
        self._websocket, self.scope = websocket, websocket.scope
        self._connection: Any = websocket.scope["extensions"].get(CONNECTION)
        self._queues: dict[str | None, deque[Any]] = {}
        """The requests of each lane that is busy, the one that is answered first among them."""
        self._tasks: asyncio.TaskGroup
        self._timer: asyncio.Timeout | None = None
        self._stopping = False
        loop = asyncio.get_running_loop()
        self._heard, self._until = loop.time(), loop.time() + LIFE_S

    async def run(self) -> None:
        """Returns when the socket is closed."""
        if self._connection is not None:
            self._connection.on_stopping = self._stop
        try:
            async with asyncio.TaskGroup() as self._tasks:
                await self._listen()
        finally:
            if self._connection is not None:
                self._connection.on_stopping = None

    # ---- what comes

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        while self._queues or not (self._stopping or self._is_over()):
            try:
                async with asyncio.timeout_at(self._look_again_at()) as self._timer:
                    message: Any = await self._websocket.receive()
            except TimeoutError:
                continue
            finally:
                self._timer = None
            if message["type"] == "websocket.disconnect":
                self.left.set()
                return
            self._heard = loop.time()
            await self._take(message)
        if self._stopping:
            await self._close(_RESTARTS, "This server stops. Connect again.")
        elif loop.time() >= self._until:
            await self.say(error_message(_over()))
            await self._close(_RESTARTS, "A socket is closed after an hour. Connect again.")
        else:
            await self._close(_DONE, "Nothing was asked for a long time.")

    def _look_again_at(self) -> float | None:
        """When to look whether this is to end; None: when it is told to, or an answer has."""
        return None if self._queues or self._stopping else min(self._heard + IDLE_S, self._until)

    def _is_over(self) -> bool:
        now = asyncio.get_running_loop().time()
        return now >= min(self._heard + IDLE_S, self._until)

    def _stop(self) -> None:
        self._stopping = True
        self._look()

    def _look(self) -> None:
        """Has the loop look at what has changed, wherever it waits."""
        if self._timer is not None:
            with suppress(RuntimeError):  # it has been told already
                self._timer.reschedule(asyncio.get_running_loop().time())

    async def _take(self, message: Any) -> None:
        text = message.get("text")
        body = message.get("bytes") or b"" if text is None else text.encode()
        stream_id: str | None = None
        try:
            given, cut = await read_apart(self.services, body)
            if not isinstance(given, dict):
                raise BadRequest("A message is a JSON object with a `type`.", param="type")
            stream_id = _stream_id(given.pop("stream_id", None))
            kind = given.pop("type", None)
            if kind == "response.steer":
                await self.say(self._steer_failed(given))
                return
            if kind != "response.create":
                raise BadRequest("A message of a client has the type response.create.", param="type")
            self._look_at_key()
            if len(body) > (most := self.services.limiter.body_bytes(self.caller) or len(body)):
                raise TooLarge(f"A message may have {most} bytes (body_bytes of this key).")
            if self._stopping:
                raise _stopping()
            if asyncio.get_running_loop().time() >= self._until:
                raise _over()
            if sum(map(len, self._queues.values())) >= AT_ONCE:
                told = f"More than {AT_ONCE} requests of this socket are not answered yet. Wait for one."
                raise BadRequest(told, code="too_many_pipelined_requests")
        except StreamspoolError as error:
            await self.say(error_message(error, stream_id))
            return
        options = with_options(given, self._websocket)
        self._put(Lane(self, stream_id, options, cut, message.get("room")))

    def _look_at_key(self) -> None:
        """A socket is open for long: what its key may do now is what counts. Raises Unauthenticated."""
        record = self.services.ring.record(self.caller.key_id)
        if record is None:
            return
        if status_of(record) != "active":
            raise Unauthenticated("The key that this socket was opened with is good no more. Use another one.")
        self.caller = replace(caller_of(record), tenant=self.caller.tenant)

    def _put(self, lane: Lane) -> None:
        queue = self._queues.get(lane.stream_id)
        if queue is not None:
            queue.append(lane)
            return
        self._queues[lane.stream_id] = deque([lane])
        self._tasks.create_task(self._answer(lane.stream_id), name="lane of a socket")

    async def _answer(self, stream_id: str | None) -> None:
        """The requests of one lane, one after the other."""
        queue = self._queues[stream_id]
        try:
            while queue and not self.left.is_set():
                await queue[0].run()
                queue.popleft()
        finally:
            del self._queues[stream_id]
            self._heard = asyncio.get_running_loop().time()
            self._look()

    def _steer_failed(self, given: dict[str, Any]) -> dict[str, Any]:
        """No model here can be steered while it speaks."""
        target = str(given.get("previous_response_id"))
        told = "This server does not steer a running answer. Send the input with the next response.create."
        stream_id = self.memory.stream_of(target)
        return {
            "type": "response.steer.failed",
            "sequence_number": 0,
            "error": {"code": "steering_not_supported", "message": told},
            "steer": {"previous_response_id": target, "input": given.get("input")},
            **({"stream_id": stream_id} if stream_id is not None else {}),
        }

    # ---- what goes

    async def say(self, message: dict[str, Any] | bytes) -> None:
        """Sends a message; to a client that has gone, nothing."""
        if self.left.is_set():
            return
        text = message.decode() if isinstance(message, bytes) else json.dumps(message).decode()
        try:
            await self._websocket.send_text(text)
        except (WebSocketDisconnect, RuntimeError, OSError):
            self.left.set()

    def turn_out(self) -> None:
        """Its key was revoked."""
        self.abort()

    def abort(self) -> None:
        """Ends a connection whose client does not read."""
        self.left.set()
        if self._connection is not None:
            self._connection.transport.abort()

    async def _close(self, code: int, reason: str) -> None:
        if not self.left.is_set():
            try:
                await self._websocket.close(code, reason)
            except (WebSocketDisconnect, RuntimeError, OSError):
                self.left.set()


def _stopping() -> Stopping:
    error = Stopping("This server is stopping. Connect again: nothing was done.")
    error.retryable = True
    return error


def _over() -> BadRequest:
    return BadRequest(
        "This socket has been open for an hour, and takes no more requests. Connect again, and send the whole conversation "
        "where it is not stored.",
        code="websocket_connection_limit_reached",
    )


def _stream_id(value: Any) -> str | None:
    """Raises BadRequest."""
    if value is None or (isinstance(value, str) and 0 < len(value) <= _STREAM_ID):
        return value
    raise BadRequest(f"stream_id: Input should be a string of 1 to {_STREAM_ID} characters.", param="stream_id")
