"""A whole answer that cannot be waited for, and whether its client may ask for it anew."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest
from redis.exceptions import ConnectionError, NoPermissionError

from api.live.answer import Answer
from api.surfaces.chat.projection import completion
from shared.cli.embedded import EmbeddedValkey
from tests.harness.records import header_with
from tests.support.live import Bench, Viewer, open_bench


@pytest.fixture
async def bench(valkey: EmbeddedValkey) -> AsyncIterator[Bench]:
    async with open_bench(valkey.url) as opened:
        yield opened


@pytest.mark.parametrize(
    ("fresh", "idempotency", "told"),
    [
        pytest.param(True, None, b"false", id="a second POST would be a second answer"),
        pytest.param(True, "digest", None, id="with a key it joins the first"),
        pytest.param(False, None, None, id="a GET costs nothing"),
    ],
)
async def test_a_stop_does_not_make_an_sdk_pay_twice(
    bench: Bench, fresh: bool, idempotency: str | None, told: bytes | None
) -> None:
    writer = await bench.log_of(1)
    bench.parts.drain.everyone = True
    header = header_with({"id": writer.generation_id, "owner": "ann", "created_at_ms": 1, "idempotency": idempotency})
    viewer = Viewer(Answer(bench.parts, header, completion, fresh=fresh, headers={}))
    await bench.end(viewer)
    assert (viewer.status, json.loads(viewer.body)["error"]["code"]) == (503, "draining")
    assert viewer.headers[b"retry-after"] == b"2"
    assert viewer.headers.get(b"x-should-retry") == told


@pytest.mark.parametrize(
    ("problem", "code"),
    [
        (NoPermissionError("this user has no permissions to run the 'xrange' command"), "storage_refused"),
        (ConnectionError("refused"), "storage_unavailable"),
        (OSError(), "storage_unavailable"),
    ],
)
async def test_what_cannot_be_read_is_told_for_what_it_is(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, problem: Exception, code: str
) -> None:
    async def join(*_: object, **__: object) -> None:
        raise problem

    writer = await bench.log_of(1)
    monkeypatch.setattr(bench.parts.hub, "join", join)
    header = header_with({"id": writer.generation_id, "owner": "ann", "created_at_ms": 1})
    viewer = Viewer(Answer(bench.parts, header, completion, fresh=True, headers={}))
    await bench.end(viewer)
    assert (viewer.status, json.loads(viewer.body)["error"]["code"]) == (503, code)
    assert viewer.headers.get(b"x-should-retry") == b"false"
