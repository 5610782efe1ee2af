"""The HTTP API as a client of raw bytes sees it: whole responses, and streams that are read frame by frame."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

import httpx

from tests.harness.upstream import Script

DONE_FRAME = b"data: [DONE]\n\n"
KEEPALIVE = b": ka\n"
SEAL_ID = "9007199254740991-0"

KEY_A, KEY_B = "key-of-tenant-a", "key-of-tenant-b"
ADMIN_KEY = "key-of-the-admin-of-all"
PROVIDER_KEY = "sk-canary-provider-key-0123456789"


class Scripted(NamedTuple):
    """A script that is registered, and the model name that plays it."""

    model: str
    script: Script

    @property
    def name(self) -> str:
        return self.model.partition("/")[2]


Register = Callable[..., Scripted]


def frames(body: bytes) -> list[bytes]:
    """The frames of a stream, each with its blank line; fails if the last one is not whole."""
    *whole, rest = body.split(b"\n\n")
    assert not rest, f"the stream ends inside a frame: {rest[:80]!r}"
    return [frame + b"\n\n" for frame in whole]


def field(frame: bytes, name: bytes) -> bytes | None:
    """The value of a frame's field, None if it has none."""
    for line in frame.split(b"\n"):
        if line.startswith(name + b": "):
            return line[len(name) + 2 :]
    return None


def position(frame: bytes) -> str:
    value = field(frame, b"id")
    assert value is not None, frame
    return value.decode()


def payload(frame: bytes) -> Any:
    """A frame's data as JSON."""
    data = field(frame, b"data")
    assert data is not None, frame
    return json.loads(data)


def chunks(body: bytes) -> list[dict[str, Any]]:
    """The chunks of a stream that ended well."""
    *found, end = frames(body)
    assert field(end, b"data") == b"[DONE]"
    return [payload(frame) for frame in found]


def text(found: list[dict[str, Any]]) -> str:
    """What the first choice of the chunks says."""
    deltas = [choice["delta"] for chunk in found for choice in chunk.get("choices", ()) if not choice["index"]]
    return "".join(delta.get("content") or "" for delta in deltas)


def end_error(body: bytes) -> dict[str, Any]:
    """The error with which a stream ended, right before its [DONE]."""
    *_, failure, end = frames(body)
    assert field(end, b"data") == b"[DONE]"
    return error_of(payload(failure))


def error_of(value: Any) -> dict[str, Any]:
    """The inside of OpenAI's error envelope, checked for its shape."""
    assert isinstance(value, dict), value
    assert list(value) == ["error"], value
    error: dict[str, Any] = value["error"]
    assert {"message", "type", "param", "code"} <= error.keys(), error
    assert isinstance(error["message"], str), error
    assert len(error["message"]) > 10, error
    assert isinstance(error["type"], str), error
    return error


def refused(response: httpx.Response, status: int, code: str | None = None) -> dict[str, Any]:
    """Checks a response for an error of this status, in OpenAI's shape, and returns the error."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    error = error_of(response.json())
    assert code is None or error["code"] == code, error
    return error


def ask(model: str, prompt: str = "hello there", **fields: Any) -> dict[str, Any]:
    """A request body."""
    return {"model": model, "messages": [{"role": "user", "content": prompt}], **fields}


class Viewer:
    """One streaming response. `take` waits for so many frames, `rest` for the end; `close` hangs up."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self._pieces = response.iter_raw()
        self._unread = b""
        self.body = b""
        """Everything received so far."""

    @property
    def id(self) -> str:
        return str(self.response.headers["x-stream-id"])

    def take(self, count: int) -> list[bytes]:
        """The next frames; keep-alives stay in front of the frame they came before."""
        while self._unread.count(b"\n\n") < count:
            self._receive()
        *found, self._unread = self._unread.split(b"\n\n", count)
        return [frame + b"\n\n" for frame in found]

    def until(self, wanted: bytes) -> None:
        """Waits until this was received."""
        while wanted not in self.body:
            self._receive()

    def rest(self) -> bytes:
        """All there is to come, with what came already but was not taken."""
        for piece in self._pieces:
            self._unread += piece
            self.body += piece
        rest, self._unread = self._unread, b""
        return rest

    def close(self) -> None:
        self.response.close()

    def _receive(self) -> None:
        piece = next(self._pieces, None)
        assert piece is not None, f"the stream ended after {self.body[-200:]!r}"
        self._unread += piece
        self.body += piece


class Client:
    """An HTTP client of one API, with or without a key."""

    def __init__(self, url: str, key: str | None = None) -> None:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
        self.http = httpx.Client(base_url=url, headers=headers, timeout=60, trust_env=False, limits=limits)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.http.get(path, **options)

    def post(self, body: Any, **options: Any) -> httpx.Response:
        return self.http.post("/v1/chat/completions", json=body, **options)

    def send(self, body: bytes | Iterator[bytes], **options: Any) -> httpx.Response:
        """A request with a body of raw bytes."""
        headers = {"content-type": "application/json", **options.pop("headers", {})}
        return self.http.post("/v1/chat/completions", content=body, headers=headers, **options)

    def stream(self, model: str, prompt: str = "hello there", *, ids: bool = False, **fields: Any) -> httpx.Response:
        """A whole streamed answer."""
        headers = {"x-stream-ids": "1"} if ids else {}
        response = self.post(ask(model, prompt, stream=True, **fields), headers=headers)
        assert response.status_code == 200, response.text
        return response

    def whole(self, generation_id: str, **options: Any) -> bytes:
        """The GET view from its start to its end."""
        response = self.get(f"/v1/streams/{generation_id}", **options)
        assert response.status_code == 200, response.text
        return response.content

    def state(self, generation_id: str) -> dict[str, Any]:
        response = self.get(f"/v1/streams/{generation_id}", headers={"accept": "application/json"})
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found

    def cancel(self, generation_id: str) -> httpx.Response:
        return self.http.post(f"/v1/streams/{generation_id}/cancel")

    @contextmanager
    def view(self, method: str, path: str, **options: Any) -> Iterator[Viewer]:
        """A streaming response, hung up at the end of the block."""
        with self.http.stream(method, path, **options) as response:
            yield Viewer(response)

    @contextmanager
    def streaming(self, model: str, prompt: str = "hello there", **fields: Any) -> Iterator[Viewer]:
        """A POST that streams, read bit by bit."""
        body = ask(model, prompt, stream=True, **fields)
        with self.view("POST", "/v1/chat/completions", json=body) as viewer:
            assert viewer.response.status_code == 200, viewer.response.read()
            yield viewer

    @contextmanager
    def watching(self, generation_id: str, **options: Any) -> Iterator[Viewer]:
        """A GET view, read bit by bit."""
        with self.view("GET", f"/v1/streams/{generation_id}", **options) as viewer:
            assert viewer.response.status_code == 200, viewer.response.read()
            yield viewer

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels, as this API process tells it."""
        lines = self.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))
