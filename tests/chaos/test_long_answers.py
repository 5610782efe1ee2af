"""F62: an answer that does not end, against a store that it could fill."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shared.cli.embedded import EmbeddedValkey
from tests.harness.processes import Stack, memory_mb, wait_until
from tests.harness.store import open_store
from tests.harness.upstream import Answer, ScriptedUpstream, chunk
from tests.support.wire import Client, ask, chunks, text

EVENTS = [chunk({"content": f"{number:x}" * 256 * 1024}) for number in range(16)]
"""Different ones: the same again and again would be stored as next to nothing."""


@pytest.fixture
def provider() -> Iterator[ScriptedUpstream]:
    with ScriptedUpstream() as server:
        yield server


@pytest.fixture
def small(tmp_path: Path, provider: ScriptedUpstream) -> Iterator[Stack]:
    """64 MB of store, and the limit as it is shipped."""
    (tmp_path / "stack").mkdir()
    with (
        EmbeddedValkey(tmp_path / "valkey", maxmemory="64mb") as valkey,
        Stack(valkey.url, provider.base_url, tmp_path / "stack") as running,
    ):
        yield running


def test_f62_an_answer_without_end_leaves_room_for_others(small: Stack, provider: ScriptedUpstream) -> None:
    """Events of 256 KiB, one after the other, for ever: the store does not fill up, and the provider is hung up on."""
    plan = provider.plan("endless", by=lambda _: Answer(itertools.cycle((*EVENTS, 0))))
    with (
        Client(small.url) as client,
        open_store(small.redis_url) as store,
        ThreadPoolExecutor(1) as waiting,
    ):
        before = memory_mb(small, "VmRSS", "worker")
        asked = waiting.submit(client.post, ask("scripted/endless"), timeout=250)
        wait_until(lambda: plan.live)
        for number in range(20):
            answer = client.post(ask("fake/echo", f"number {number}"))
            assert answer.status_code == 200, answer.text
        response = asked.result()
        (choice,) = response.json()["choices"]
        said = len(choice["message"]["content"])
        assert (response.status_code, choice["finish_reason"]) == (200, "length")
        assert 31 * 2**20 < said < 34 * 2**20
        wait_until(lambda: plan.live == 0, what="the provider is hung up on")
        assert len(plan.calls) == 1
        assert store.info("memory")["used_memory"] < 60 * 2**20
        assert memory_mb(small, "VmHWM", "worker") - before < 4 * 33
        generation_id = response.headers["x-stream-id"]
        state = client.state(generation_id)
        assert (state["status"], state["error"]["code"]) == ("incomplete", "upstream_too_long")
        found = chunks(client.whole(generation_id))
        assert found[-1]["choices"][0]["finish_reason"] == "length"
        assert len(text(found)) == said
