"""The WebSocket at /v1/responses as its clients see it: messages, each of which is checked by OpenAI's own models."""

from __future__ import annotations

import json
from typing import Any, Self

from websockets.sync.client import ClientConnection, connect

from tests.support.responses import ENDS, PATH, Event, checked

WORDS: Any = {"type": "response.create", "model": "fake/echo", "input": "one two"}


class Socket:
    """A client that keeps what it was told, by lane. A context manager."""

    def __init__(self, url: str, key: str = "", **headers: str) -> None:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        if key:
            fields["authorization"] = f"Bearer {key}"
        self.told: dict[str | None, list[Event]] = {}
        self.keepalives = 0
        self.connection: ClientConnection
        self._opening = connect(
            f"{url.replace('http', 'ws', 1)}{PATH}",
            additional_headers=fields,
            compression=None,
            proxy=None,
            open_timeout=60,
            max_size=None,
        )

    def __enter__(self) -> Self:
        self.connection = self._opening.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._opening.__exit__(None, None, None)

    def send(self, **fields: Any) -> None:
        self.connection.send(json.dumps({**WORDS, **fields}))

    def next(self) -> Event:
        """The next message that is no keep-alive. Numbers have no gap in any answer of any lane."""
        while True:
            message: Event = json.loads(self.connection.recv(timeout=60))
            if message["type"] != "keepalive":
                break
            self.keepalives += 1
        lane = message.get("stream_id")
        if message["type"] != "error":
            checked(message)
            told = self.told.setdefault(lane, [])
            if message["type"] == "response.created":
                told.clear()
            assert message["sequence_number"] == len(told), message
            told.append(message)
        return message

    def until(self, kind: str, lane: str | None = None) -> Event:
        while True:
            message = self.next()
            if message["type"] == kind and message.get("stream_id") == lane:
                return message

    def answer(self, **fields: Any) -> Event:
        """The last event of the answer to this request."""
        self.send(**fields)
        while True:
            message = self.next()
            if message["type"] in (*ENDS, "error"):
                return message

    def whole(self, **fields: Any) -> dict[str, Any]:
        """The response, completed."""
        message = self.answer(**fields)
        assert message["type"] == "response.completed", message
        response: dict[str, Any] = message["response"]
        return response

    def refused(self, status: int, code: str | None, **fields: Any) -> dict[str, Any]:
        message = self.answer(**fields)
        assert (message["type"], message.get("status")) == ("error", status), message
        error: dict[str, Any] = message["error"]
        assert error["code"] == code, error
        return error
