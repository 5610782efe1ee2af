"""The table of operations in PROTOCOL.md, cell by cell, on a real Valkey."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from shared.cli.embedded import EmbeddedValkey
from shared.errors import LogError, StoredError
from shared.lib.clock import now_ms
from shared.log.appender import Appender
from shared.log.decoding import by_name
from shared.log.entry import SEAL, VERSION, Chunk, Kind
from shared.log.records import Attempt, BatchRef, Header, Outcome, Served, SessionTerms, WebhookTarget
from shared.log.streamlog import StreamLog
from shared.log.writer import Writer
from shared.store.redis import OutOfMemoryError, connect
from tests.docs import tables
from tests.docs.snippets import blocks, prose
from tests.harness.records import attempt_with, header_with, outcome_with
from tests.support.names import keys
from tests.support.records import mismatches

STATES = ("no log", "queued: no attempt", "newest attempt is E", "newest attempt is above E", "sealed")
OPERATIONS = ("create", "claim E", "append in E", "seal, for E", "seal, for anybody", "read", "tail", "delete")
E = 2
OUTCOME = outcome_with({"status": "completed", "ended_at_ms": 1})


def written() -> dict[str, list[str]]:
    """Operation to cells; the first row is the head."""
    section = prose(tables.ROOT, "shared/log/PROTOCOL.md").partition("## Operations\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("|")]
    return {name: cells for name, *cells in rows}


class Scene:
    """One log in a given state, with a writer of attempt E where there can be one."""

    def __init__(self, log: StreamLog, appender: Appender) -> None:
        self.log, self.appender = log, appender
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self.header = header_with({"v": VERSION, "id": self.id, "owner": "docs", "created_at_ms": now_ms()})
        self.attempt = attempt_with({"worker": "w", "token": "t"})
        self.writer: Writer | None = None

    async def enter(self, state: str) -> None:
        await self.log.create(self.header, b"{}")
        if state != "queued: no attempt":
            self.writer, _, _ = await self.log.claim(self.appender, self.id, E, self.attempt)
            await self.writer.append([Chunk(b"{}")])
        if state == "newest attempt is above E":
            await self.log.claim(self.appender, self.id, E + 1, attempt_with({"worker": "other"}))
        elif state == "sealed":
            await self.log.seal(self.id, outcome_with({**OUTCOME, "by": "another"}))
        elif state == "no log":
            await self.log.delete(self.id, "docs")

    async def run(self, operation: str) -> str:
        """What the operation answers, in the words of the table."""
        try:
            told: str = await getattr(self, re.sub(r"\W+", "_", operation).lower())()
            return told
        except LogError as error:
            return f"`{type(error).__name__}`"

    async def create(self) -> str:
        return str(await self.log.create(header_with({**self.header, "model": "another"}), b"{}")).lower()

    async def claim_e(self) -> str:
        await self.log.claim(self.appender, self.id, E, attempt_with({"worker": "new", "token": "another"}))
        return "a writer"

    async def append_in_e(self) -> str:
        if self.writer is None:
            return "not possible"
        await self.writer.append([Chunk(b"{}")])
        return "stored"

    async def seal_for_e(self) -> str:
        await self.log.seal(self.id, OUTCOME, epoch=E)
        return "stored"

    async def seal_for_anybody(self) -> str:
        await self.log.seal(self.id, OUTCOME)
        return "stored"

    async def read(self) -> str:
        return "entries" if await self.log.read(self.id) else "nothing"

    async def tail(self) -> str:
        async for _ in self.log.tail(self.id):
            return "entries"
        return "nothing"


def own(valkey: EmbeddedValkey) -> str:
    """A database in which no worker looks for what waits."""
    return valkey.url.replace("db=0", "db=1")


@pytest.fixture
async def log(valkey: EmbeddedValkey) -> AsyncIterator[tuple[StreamLog, Appender]]:
    async with AsyncExitStack() as stack:
        redis = connect(own(valkey), max_connections=4)
        stack.push_async_callback(redis.aclose, close_connection_pool=True)
        log = StreamLog(redis, retention_s=60, safety_s=60)
        yield log, await stack.enter_async_context(Appender(redis))


async def test_a_full_server_takes_the_end_and_nothing_else(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        server = stack.enter_context(EmbeddedValkey(tmp_path))
        redis = connect(server.url, max_connections=4)
        stack.push_async_callback(redis.aclose, close_connection_pool=True)
        log = StreamLog(redis, retention_s=60, safety_s=60)
        appender = await stack.enter_async_context(Appender(redis))
        running, queued, new = (Scene(log, appender) for _ in range(3))
        await running.enter("newest attempt is E")
        await queued.enter("queued: no attempt")
        await redis.config_set("maxmemory", "1")
        for raises in (new.create, queued.claim_e):
            with pytest.raises(OutOfMemoryError):
                await raises()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await running.append_in_e()
        assert await running.seal_for_e() == await queued.seal_for_anybody() == "stored"
        assert (await log.read(running.id))[-1].position == SEAL
        sent = await redis.info("commandstats")
        assert "cmdstat_eval" in sent


def test_the_table_is_complete() -> None:
    cells = written()
    assert tuple(cells.pop("")) == STATES
    assert tuple(name for name in cells if name != "---") == OPERATIONS


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("operation", OPERATIONS)
async def test_an_operation_answers_as_the_table_says(
    operation: str, state: str, log: tuple[StreamLog, Appender]
) -> None:
    cell = written()[operation][STATES.index(state)]
    scene = Scene(*log)
    await scene.enter(state)
    try:
        if operation == "delete":
            await scene.log.delete(scene.id, "docs")
            assert cell == "done"
        elif cell == "waits":
            assert await scene.log.read(scene.id) == []
        else:
            answer = await scene.run(operation)
            assert cell.startswith(answer) or cell == f"stored: {answer}", answer
    finally:
        await scene.log.delete(scene.id, "docs")


async def test_the_same_header_claim_and_outcome_are_ours(log: tuple[StreamLog, Appender]) -> None:
    scene = Scene(*log)
    await scene.enter("newest attempt is E")
    assert "this very claim" in written()["claim E"][2]
    await scene.log.claim(scene.appender, scene.id, E, scene.attempt)
    for operation, epoch in (("seal, for E", E), ("seal, for anybody", None)):
        assert "this very outcome" in written()[operation][4]
        await scene.log.seal(scene.id, OUTCOME, epoch=epoch)
        await scene.log.seal(scene.id, OUTCOME, epoch=epoch)
    await scene.log.delete(scene.id, "docs")


# ---- the JSON

RECORDS = {"header": Header, "attempt": Attempt, "outcome": Outcome, "error": StoredError}


@pytest.mark.parametrize("name", RECORDS)
def test_an_example_is_what_its_type_says(name: str) -> None:
    (shown,) = [block.code for block in blocks(tables.ROOT, "shared/log/PROTOCOL.md") if name in block.words]
    example = json.loads(shown)
    assert mismatches(example, RECORDS[name]) == []
    assert mismatches({**example, "surplus": 1}, RECORDS[name]) == [
        f"$.surplus: is not a field of {RECORDS[name].__name__}"
    ]
    assert mismatches({}, RECORDS[name]), "a type without a field that must be there would say nothing"


def test_the_header_shown_has_every_field() -> None:
    (shown,) = [block.code for block in blocks(tables.ROOT, "shared/log/PROTOCOL.md") if "header" in block.words]
    assert list(json.loads(shown)) == list(Header.__annotations__)


@pytest.mark.parametrize(
    ("kind", "begins"),
    [(SessionTerms, "`session` is null or"), (BatchRef, "`batch` is null or"), (WebhookTarget, "`webhook` is null or")],
)
def test_the_fields_named_in_the_text_are_those_of_the_type(kind: type, begins: str) -> None:
    text = prose(tables.ROOT, "shared/log/PROTOCOL.md").partition(begins)[2]
    fields = re.match(r"\s+`\{(.*?)\}`", text, re.S)
    assert fields
    assert re.split(r",\s+", fields[1]) == list(kind.__annotations__)


def test_who_said_it_is_told_in_the_text() -> None:
    text = prose(tables.ROOT, "shared/log/PROTOCOL.md").partition("`served` is what stands")[2].partition("\n\n")[0]
    assert all(f"`{field}`" in text for field in Served.__annotations__)


# ---- pieces


def payloads(entries: list[tuple[str, str, str | None, bytes]]) -> list[bytes]:
    """What the chunks of one attempt say, read as the section says and by nothing else of ours."""
    found = []
    prefix = suffix = b""
    for _, kind, mark, data in entries:
        payload = prefix + data + suffix if kind == "d" else data
        if mark:
            first, last = map(int, mark.split("-"))
            assert first + last <= len(payload)
            prefix, suffix = payload[:first], payload[len(payload) - last :]
        found.append(payload)
    return found


def test_the_pieces_shown_are_the_chunks_beside_them() -> None:
    (shown,) = [block.code for block in blocks(tables.ROOT, "shared/log/PROTOCOL.md") if "pieces" in block.words]
    rows = [re.fullmatch(r"(\S+) (\w) (\S+) +'(.*)' +is +'(.*)'", line) for line in shown.splitlines()]
    entries = [(row[1], row[2], row[3].strip("-") or None, row[4].encode()) for row in rows if row]
    assert len(entries) == len(rows) == 6
    assert payloads(entries) == [row[5].encode() for row in rows if row]


async def test_pieces_are_written_as_they_are_described(
    log: tuple[StreamLog, Appender], valkey: EmbeddedValkey
) -> None:
    scene, head = Scene(*log), '{"object":"chat.completion.chunk","choices":[{"delta":'
    await scene.log.create(scene.header, b"{}")
    writer, _, _ = await scene.log.claim(scene.appender, scene.id, E, scene.attempt)
    said = [f'{head}{{"{kind}":"{i}"}}}}]}}'.encode() for kind in ("reasoning", "content") for i in range(30)]
    for start in range(0, len(said), 7):
        await writer.append([Chunk(payload) for payload in said[start : start + 7]])
    await writer.append([Chunk(b'{"usage":1}', is_usage=True)])
    redis = connect(own(valkey), max_connections=1)
    raw = [(at.decode(), by_name(fields)) for at, fields in await redis.xrange(keys.log(scene.id), f"{E}-1", "+")]
    await redis.aclose(close_connection_pool=True)
    entries = []
    for at, fields in raw:
        kind = next(iter(fields))
        mark = fields.get(b"t")
        entries.append((at, kind.decode(), mark.decode() if mark else None, fields[kind]))
    assert payloads(entries) == [*said, b'{"usage":1}']
    kinds = [kind for _, kind, _, _ in entries]
    assert (kinds[0], entries[0][2], kinds[-1], entries[-1][2]) == ("c", None, "u", None)
    assert kinds.count(Kind.PIECE) > 50
    assert [set(fields) - {b"c", b"d", b"u", b"t"} for _, fields in raw[1:]] == [set()] * (len(raw) - 1)
    await scene.log.delete(scene.id, "docs")
