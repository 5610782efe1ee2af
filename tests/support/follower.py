"""A page that follows `GET /v1/events`, as a client of raw bytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.wire import Client, Viewer, field, payload

Event = dict[str, Any]
MOMENTARY = ("viewers", "workers", "cursor")
"""What is told of now, and not of what happened."""


class Follower:
    """What one connection was told, in its order. An event is its JSON, with its frame's id as `cursor`, None without one."""

    def __init__(self, viewer: Viewer) -> None:
        self.viewer = viewer
        self.events: list[Event] = []

    def next(self) -> Event:
        (frame,) = self.viewer.take(1)
        event: Event = payload(frame)
        told, cursor = field(frame, b"event"), field(frame, b"id")
        assert told == event["type"].encode(), frame
        event["cursor"] = cursor.decode() if cursor else None
        assert (cursor is None) == (event["type"] in ("viewers", "workers")), frame
        self.events.append(event)
        return event

    def until(self, kind: str, **fields: Any) -> Event:
        """The first event, from here on, that has these fields."""
        while True:
            event = self.next()
            if event["type"] == kind and fields.items() <= event.items():
                return event

    @property
    def happened(self) -> list[Event]:
        """All that was told but for snapshots and what is true just now."""
        return [one for one in self.events if one["type"] not in (*MOMENTARY, "snapshot")]

    @property
    def cursor(self) -> str:
        return [str(one["cursor"]) for one in self.events if one["cursor"]][-1]

    def said(self) -> str:
        return json.dumps(self.events)


@contextmanager
def following(client: Client, cursor: str | None = None, **query: Any) -> Iterator[Follower]:
    headers = {} if cursor is None else {"last-event-id": cursor}
    with client.view("GET", "/v1/events", params=query, headers=headers) as viewer:
        assert viewer.response.status_code == 200, viewer.response.read()
        assert viewer.response.headers["content-type"].startswith("text/event-stream")
        yield Follower(viewer)
