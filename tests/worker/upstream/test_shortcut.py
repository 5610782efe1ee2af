"""The shortcut of plain chunks, over real HTTP into a real Valkey: whatever comes, and however it is cut, log and counts are
those of the long way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.cli.embedded import EmbeddedValkey
from shared.lib import http, json
from shared.lib.telemetry import CHUNKS
from shared.log.decoding import by_name
from shared.log.entry import AT, VERSION, Kind
from tests.harness.records import header_with
from tests.harness.upstream import DONE, END, USAGE, Wire, chunk, serving
from tests.support.names import keys
from tests.support.until import until
from tests.worker.test_generate import Bench, benching
from worker.providers.registry import Provider
from worker.upstream.shortcut import Shortcut

SPOKEN = [f"{chr(97 + number)} {chr(122 - number)} " for number in range(20)]
"""Which have nothing in common, so that their shape is soon known."""
BEGUN = [chunk({"role": "assistant", "content": ""}), *map(chunk, SPOKEN)]
WHOLE = [chunk(None, "stop"), USAGE, DONE]


Packets = list[tuple[bytes, ...] | None]
"""What goes out in one write each, in chunks of HTTP; None is a pause, until all of it has come and is stored."""


class Said(NamedTuple):
    """What can be seen of an answer once it is over."""

    entries: list[tuple[Kind, bytes]]
    stored: list[tuple[bytes, dict[bytes, bytes]]]
    outcome: dict[str, Any]
    counted: float


class Taking:
    """Shortcuts, watched, of one answer at a time. With `is_on` false there are none."""

    def __init__(self) -> None:
        self.is_on, self.count = True, 0
        self.begin()

    def begin(self) -> None:
        self._shortcut: Any = None
        self.handler: Any = None
        self.timers: Any = None
        self._sent = self._received = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        take, tap, received, raw = Shortcut.take, Shortcut.tap, http._Handler.data_received, Wire.raw

        def watched_take(shortcut: Shortcut, payload: bytes) -> bool:
            taken = take(shortcut, payload)
            self.count += taken
            return taken

        def watched_tap(shortcut: Shortcut, *given: Any) -> Any:
            self._shortcut, self.timers = shortcut, given[2]
            return tap(shortcut, *given) if self.is_on else None

        def watched_received(handler: http._Handler, data: bytes) -> None:
            self.handler = handler
            received(handler, data)
            self._received += len(data)

        async def watched_raw(wire: Wire, data: bytes) -> None:
            self._sent += len(data)
            await raw(wire, data)

        with (
            patch.object(Shortcut, "take", watched_take),
            patch.object(Shortcut, "tap", watched_tap),
            patch.object(http._Handler, "data_received", watched_received),
            patch.object(Wire, "raw", watched_raw),
        ):
            yield

    def is_quiet(self) -> bool:
        """All that was sent has come, what was taken is stored, and more is waited for."""
        if self._received < self._sent or self.handler is None:
            return False
        body = self.handler._payload
        waits = body is not None and body._waiter is not None and not body._waiter.done()
        return waits and self._shortcut._writer._taken is None


class Stand:
    """A provider that says what it is told to, and a generator that asks it."""

    def __init__(self, taking: Taking) -> None:
        self.taking = taking
        self.bench: Bench
        self.in_chunks = True
        self.at_a_pause: Callable[[int], Awaitable[object] | None] = lambda number: None
        """Is told how many there were before."""
        self.hung_up = asyncio.Event()
        self._number = 0

    async def play(self, wire: Wire) -> str:
        with suppress(ConnectionError):
            await wire.head(transfer_encoding="chunked" if self.in_chunks else "")
            pauses = 0
            for packet in self._packets:
                if packet is not None:
                    await (wire.send(*packet) if self.in_chunks else wire.raw(b"".join(packet)))
                    continue
                await until(lambda: self.taking.is_quiet() or self.running.done())
                if (done := self.at_a_pause(pauses)) is not None:
                    await done
                pauses += 1
            if self._packets[-1] is None:
                await wire.hung_up()
                self.hung_up.set()
            elif self.in_chunks:
                await wire.raw(END)
                return "keep"
        return "close"

    async def start(self, packets: Packets, *, short: bool = True, **fields: Any) -> str:
        self._packets, self.taking.is_on = packets, short
        self.taking.begin()
        self._number += 1
        self.id = f"chatcmpl-{self._number:032x}"
        given = {"n": 1, "include_usage": False, **fields, "v": VERSION, "id": self.id, "owner": "a"}
        header = header_with({**given, "model": "scripted/m", "created_at_ms": 1_700_000_000_000})
        body = {"model": "scripted/m", "messages": [{"role": "user", "content": "four"}], "stream": True}
        await self.bench.log.create(header, json.dumps(body))
        self._counted = counted()
        self.running = asyncio.create_task(self.bench.generator.run(self.id, 1))
        return self.id

    async def run(self, packets: Packets, *, short: bool = True, **fields: Any) -> Said:
        """One answer, to its end."""
        await self.start(packets, short=short, **fields)
        assert await self.running
        return await self.said()

    async def said(self) -> Said:
        entries = [entry for entry in await self.bench.entries(self.id) if entry.kind in (Kind.CHUNK, Kind.USAGE)]
        outcome: Any = (await self.bench.summary(self.id)).outcome
        stored = []
        for entry_id, fields in await self.bench.log._redis.xrange(keys.log(self.id), "1-1", "1-9999999"):
            named = {name: value for name, value in by_name(fields).items() if name != AT}
            stored.append((entry_id, {name: self._plain(value) for name, value in named.items()}))
        names = ("status", "error", "finish_reasons", "usage", "usage_source", "characters")
        told = {name: outcome.get(name) for name in names}
        return Said(
            [(entry.kind, self._plain(entry.data)) for entry in entries], stored, told, counted() - self._counted
        )

    def _plain(self, data: bytes) -> bytes:
        return data.replace(self.id.encode(), b"ID")


@asynccontextmanager
async def standing(valkey: EmbeddedValkey, **given: Any) -> AsyncIterator[Stand]:
    stand = Stand(Taking())
    with stand.taking.watching():
        async with serving(stand.play) as server:
            provider = Provider("scripted", "openai", server.url, None, ())
            async with benching(valkey, provider, **given) as stand.bench:
                yield stand


@pytest.fixture
async def stand(valkey: EmbeddedValkey) -> AsyncIterator[Stand]:
    async with standing(valkey) as made:
        yield made


def counted() -> float:
    return sum(sample.value for metric in CHUNKS.collect() for sample in metric.samples if "created" not in sample.name)


def paced(events: Sequence[bytes]) -> Packets:
    return [part for event in events for part in ((event,), None)]


# ---- the same as the long way

EVENTS = st.lists(
    st.builds(chunk, st.text(max_size=4))
    | st.sampled_from(["x", " the", "é", "\u2028"]).map(chunk)
    | st.sampled_from(
        [
            chunk('"quoted"'),
            chunk("other", index=1),
            chunk("with", logprobs=None),
            chunk({"reasoning_content": "hm"}),
            chunk(
                {
                    "tool_calls": [
                        {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}
                    ]
                }
            ),
            b": comment\n\n",
            b"event: ping\ndata: {}\n\n",
            b"data: " + json.dumps({"choices": [], "prompt_filter_results": [{"a": 1}]}) + b"\n\n",
            chunk("spelled").replace(b"\n", b"\r\n"),
            chunk("no space").replace(b"data: ", b"data:"),
        ]
    ),
    max_size=30,
)
ENDS = st.sampled_from(
    [
        WHOLE,
        WHOLE,
        [chunk(None, "stop")],
        [chunk(None, "length"), chunk("after all"), DONE],
        [DONE],
        [],
        [b"data: {\n\n"],
    ]
)
HOW = st.lists(
    st.sampled_from(["pause"] * 4 + ["write", "chunk", "glue", 1, 7, 40, -1, -2, -30]), min_size=1, max_size=60
)
"""What comes after each event: a pause, the next write, the next chunk of HTTP in the same, or in this one the next event; or a
cut at this byte of it, with a pause there."""


def packets_of(events: Sequence[bytes], how: Sequence[str | int]) -> Packets:
    packets: Packets = []
    held: list[bytes] = [b""]
    for number, event in enumerate(events):
        way = how[number % len(how)]
        cut = way % (len(event) + 1) if isinstance(way, int) else len(event)
        held[-1] += event[:cut]
        if way == "chunk":
            held.append(b"")
        elif way != "glue":
            packets += [_full(held)] if way == "write" else [_full(held), None]
            held = [event[cut:]]
    return [*packets, _full(held)]


def _full(held: list[bytes]) -> tuple[bytes, ...]:
    """An empty chunk would be the end."""
    return tuple(filter(None, held))


async def _same(stand: Stand, packets: Packets, choices: int = 1, *, show_usage: bool = False) -> None:
    fields: dict[str, Any] = {"n": choices, "include_usage": show_usage}
    short = await stand.run(packets, **fields)
    long = await stand.run(packets, short=False, **fields)
    assert short == long


def test_whatever_comes_and_however_it_is_cut_is_what_it_is_the_long_way(valkey: EmbeddedValkey) -> None:
    takes = []

    @settings(max_examples=20, derandomize=True)
    @given(EVENTS, ENDS, HOW, st.sampled_from([1, 1, 2]), st.booleans(), st.booleans())
    def try_all(
        events: list[bytes], end: list[bytes], how: list[str | int], choices: int, show_usage: bool, in_chunks: bool
    ) -> None:
        async def once() -> None:
            async with standing(valkey) as stand:
                stand.in_chunks = in_chunks
                await _same(stand, [*paced(BEGUN), *packets_of([*events, *end], how)], choices, show_usage=show_usage)
                takes.append(stand.taking.count)

        asyncio.run(once())

    try_all()
    assert min(takes) > 5


@pytest.mark.parametrize("in_chunks", [True, False])
@pytest.mark.parametrize("show_usage", [True, False])
async def test_a_paced_answer_goes_by_the_shortcut(stand: Stand, in_chunks: bool, show_usage: bool) -> None:
    stand.in_chunks = in_chunks
    await _same(stand, paced([*BEGUN, *map(chunk, SPOKEN * 2), *WHOLE]), show_usage=show_usage)
    assert stand.taking.count > 40
    said = await stand.said()
    assert said.counted == len(said.entries) == 60 + 3


@pytest.mark.parametrize("end", [[DONE], WHOLE, [chunk("more "), DONE], []])
@pytest.mark.parametrize("in_chunks", [True, False])
async def test_the_end_in_the_packet_of_a_chunk_comes_behind_it(
    stand: Stand, end: list[bytes], in_chunks: bool
) -> None:
    """Each a chunk of HTTP, or all of it one piece of the body."""
    stand.in_chunks = in_chunks
    packets: Packets = [*paced(BEGUN), (chunk("last "), *end)]
    await _same(stand, packets)
    assert stand.taking.count > 5
    assert any(b"last " in data for _, data in (await stand.said()).entries)


@pytest.mark.parametrize("in_chunks", [True, False])
async def test_a_connection_that_is_closed_behind_a_taken_chunk_loses_nothing(stand: Stand, in_chunks: bool) -> None:
    stand.in_chunks = in_chunks
    short = await stand.run([*paced(BEGUN), (chunk("last "),)])
    assert stand.taking.count > 5
    assert (short.outcome["status"], short.outcome["error"]["code"]) == ("failed", "upstream_incomplete")
    assert len(short.entries) == len(BEGUN) + 1
    assert b"last " in short.entries[-1][1]
    assert short.outcome["characters"]["content"] == len("".join([*SPOKEN, "last "]))
    assert short == await stand.run([*paced(BEGUN), (chunk("last "),)], short=False)


async def test_a_call_between_words_stays_between_them(stand: Stand) -> None:
    called = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}
    call = [chunk({"tool_calls": [called]}), chunk({"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]})]
    await _same(stand, paced([*BEGUN, *call, *map(chunk, SPOKEN), *WHOLE]))
    assert stand.taking.count > 15


async def test_the_next_answer_over_the_same_connection_is_its_own(
    stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.upstream.client._REUSE_S", 60.0)
    packets: Packets = [*paced(BEGUN), tuple(WHOLE)]
    first = await stand.run(packets)
    handler = stand.taking.handler
    assert handler.tap is None
    taken = stand.taking.count
    assert first == await stand.run(packets)
    assert stand.taking.handler is handler
    assert stand.taking.count == 2 * taken
    assert first == await stand.run(packets, short=False)


async def test_one_that_is_too_long_ends_where_it_would_the_long_way(valkey: EmbeddedValkey) -> None:
    packets = paced([*BEGUN, *map(chunk, SPOKEN * 5)])
    async with standing(valkey, max_answer_bytes=5000) as stand:
        short = await stand.run(packets)
        assert stand.taking.count > 20
        assert short.outcome["error"]["code"] == "upstream_too_long"
        assert short == await stand.run(packets, short=False)


async def test_a_budget_that_is_reached_ends_it_at_the_next_word(stand: Stand) -> None:
    found = []
    for short in (True, False):

        def reach(number: int) -> None:
            if number == len(BEGUN) + 5:
                stand.bench.generator.running.budgets(stand.id).is_over = True

        stand.at_a_pause = reach
        found.append(await stand.run(paced([*BEGUN, *map(chunk, SPOKEN), *WHOLE]), short=short))
    assert found[0] == found[1]
    assert stand.taking.count >= 5
    assert found[0].outcome["error"]["code"] == "insufficient_quota"
    assert len(found[0].entries) == len(BEGUN) + 8  # the next word, and the end
