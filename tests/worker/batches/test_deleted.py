"""A line whose stream its owner deletes while it runs, where the control is apart from the logs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from shared.cli.embedded import EmbeddedValkey
from shared.store.cluster.cells import Cells
from tests.harness.upstream import ScriptedUpstream
from tests.support.batch_lab import OWNER, Lab, few, open_lab
from worker.batches import run
from worker.batches.lines import line_id


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_BLOCK_MS", 20)
    monkeypatch.setattr(run, "jittered", lambda pause_s: 0.0)


@pytest.fixture
async def lab(valkey: EmbeddedValkey, upstream: ScriptedUpstream, tmp_path: Path) -> AsyncIterator[Lab]:
    async with open_lab(valkey, upstream, tmp_path, cells=Cells(4)) as running:
        running.answering.clear()
        yield running


async def test_a_line_whose_stream_is_deleted_is_asked_as_its_next_try(lab: Lab) -> None:
    """Its name is not to be used again for a minute. That was taken for another worker's having the batch."""
    batch_id = await lab.start(few(3))
    async with lab.running(batch_id) as running:
        await lab.until_open(3)
        await lab.log.delete(line_id(batch_id, 2, 0), OWNER)
        async with asyncio.timeout(60):
            while line_id(batch_id, 2, 1) not in dict(await lab.log.open_ids()):
                assert not running.done(), "it let go of the batch"
                await asyncio.sleep(0.01)
        lab.answering.set()
        assert await running
    head = await lab.head(batch_id)
    assert (head["status"], head["completed"], head["failed"]) == ("completed", 3, 0)
    assert await lab.logs() == []


async def test_a_line_that_another_worker_has_written_down_is_not_asked_again(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "TICK_S", 3600.0)  # the first learns of it by the line
    batch_id = await lab.start(few(3))
    async with lab.running(batch_id) as running:
        await lab.until_open(3)
        await lab.batches.claim(batch_id)
        await lab.log.delete(line_id(batch_id, 2, 0), OWNER)
        async with asyncio.timeout(60):
            assert await running is False
    assert len(await lab.log.open_ids()) == 2
