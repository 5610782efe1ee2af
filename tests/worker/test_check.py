"""How providers answer the doctor: each kind of answer has its verdict, and no key is in any of them."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from shared.config.settings import Settings
from tests.support.lookups import unknown
from worker.check import look

ANSWERS: dict[str, tuple[int, str, str]] = {
    "/good/models": (200, "application/json", '{"data": [{"id": "a"}, {"id": "b"}]}'),
    "/one/models": (200, "application/json", '{"models": [{"name": "a"}]}'),
    "/ollama/tags": (200, "application/json", '{"models": []}'),
    "/key/models": (401, "application/json", '{"error": {"message": "no"}}'),
    "/page/models": (404, "text/html; charset=utf-8", "<html>"),
    "/without/models": (404, "application/json", "{}"),
    "/sick/models": (503, "text/plain", "later"),
    "/v1/models": (200, "application/json", '{"models": [{"name": "command"}]}'),
}


@pytest.fixture
def provider() -> Iterator[tuple[str, list[tuple[str, dict[str, str]]]]]:
    asked: list[tuple[str, dict[str, str]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
            status, content_type, body = ANSWERS[self.path]
            self.send_response(status)
            self.send_header("content-type", content_type)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", asked
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("path", "kind", "ok", "says"),
    [
        ("/good", "openai", True, "lists 2 models"),
        ("/one", "gemini", True, "lists 1 model"),
        ("/ollama", "ollama", True, "lists 0 models"),
        ("/v2", "cohere", True, "lists 1 model"),
        ("/key", "anthropic", False, "refuses the key (HTTP 401)"),
        ("/page", "openai", False, "answers with a web page (HTTP 404)"),
        ("/without", "openai", True, "does not list its models"),
        ("/sick", "openai", False, "is there, and not well (HTTP 503)"),
    ],
)
def test_each_answer_has_its_verdict(
    provider: tuple[str, list[Any]], monkeypatch: pytest.MonkeyPatch, path: str, kind: str, ok: bool, says: str
) -> None:
    url, asked = provider
    monkeypatch.setenv("LAB_KEY", "canary-canary-canary-last")
    table = {"kind": kind, "base_url": url + path, "api_key_env": "LAB_KEY"}
    report = asyncio.run(look(Settings(_env_file=None, providers={"lab": table}), ask=True))
    (row,) = report["providers"]
    assert (row["ok"], row["key"], row["url"]) == (ok, "…last", url + path)
    assert says in row["found"]
    assert "canary" not in json.dumps(report)
    assert any("canary" in value for value in asked[0][1].values())


def test_what_cannot_be_reached_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown(monkeypatch, "nowhere.invalid")
    settings = Settings(
        _env_file=None,
        providers={"away": {"base_url": "http://127.0.0.1:1/v1"}, "unknown": {"base_url": "http://nowhere.invalid/v1"}},
    )
    away, strange = asyncio.run(look(settings, ask=True))["providers"]
    assert "connection refused" in away["found"]
    assert "the name is not known here" in strange["found"]


def test_nothing_is_asked_unless_it_is_wanted() -> None:
    settings = Settings(_env_file=None, providers={"lab": {"base_url": "http://127.0.0.1:1/v1"}})
    (row,) = asyncio.run(look(settings, ask=False))["providers"]
    assert (row["ok"], row["found"]) == (None, None)
