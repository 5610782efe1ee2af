"""Batches for tests: making the input, starting one, waiting for its end, reading what it left."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import httpx

from tests.harness.processes import wait_until

ENDED = {"completed", "failed", "expired", "cancelled"}
ENDPOINT = "/v1/chat/completions"


def line(custom_id: str, model: str = "fake/echo", prompt: str = "hello", **fields: Any) -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], **fields}
    return {"custom_id": custom_id, "method": "POST", "url": ENDPOINT, "body": body}


def jsonl(lines: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in lines)


def upload(http: httpx.Client, content: bytes, purpose: str = "batch") -> str:
    response = http.post("/v1/files", files={"file": ("in.jsonl", content)}, data={"purpose": purpose})
    assert response.status_code == 200, response.text
    return str(response.json()["id"])


def start(http: httpx.Client, content: bytes, **fields: Any) -> str:
    body = {"input_file_id": upload(http, content), "endpoint": ENDPOINT, "completion_window": "24h", **fields}
    response = http.post("/v1/batches", json=body)
    assert response.status_code == 200, response.text
    return str(response.json()["id"])


def state(http: httpx.Client, batch_id: str) -> dict[str, Any]:
    response = http.get(f"/v1/batches/{batch_id}")
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def ended(http: httpx.Client, batch_id: str, timeout_s: float = 100) -> dict[str, Any]:
    """The batch object once it is over."""

    def over() -> dict[str, Any] | None:
        found = state(http, batch_id)
        return found if found["status"] in ENDED else None

    found: dict[str, Any] = wait_until(over, timeout_s, f"{batch_id} has ended")
    return found


def results(http: httpx.Client, file_id: str | None) -> dict[str, dict[str, Any]]:
    """The lines of an output or error file by `custom_id`, each of which is there once."""
    if file_id is None:
        return {}
    response = http.get(f"/v1/files/{file_id}/content")
    assert response.status_code == 200, response.text
    found = [json.loads(text) for text in response.text.splitlines()]
    ids = [one["custom_id"] for one in found]
    assert len(ids) == len(set(ids)), "a custom_id is there twice"
    return dict(zip(ids, found, strict=True))
