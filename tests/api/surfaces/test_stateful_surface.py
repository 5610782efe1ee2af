"""A surface whose events depend on all that was said before (tests/support/numbered.py), served as any other.

What is proven: the same bytes whenever a viewer comes, lags or resumes, and work that grows with the log, not with the
number of its pages times its length.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.live.cursor import Cursor
from api.live.drain import Drain
from api.live.event_stream import EventStream
from api.live.folding import EVERY, Folding
from api.live.livelog import LiveLog
from shared.cli.embedded import EmbeddedValkey
from shared.config.settings import Settings
from shared.errors import Damaged
from shared.lib.tasks import FairTurns
from shared.log.entry import SEAL, Chunk, Entry, Kind, Position
from shared.log.records import Outcome
from shared.log.writer import Writer
from tests.harness.records import attempt_with, header_with, outcome_with
from tests.support.live import COMPLETED, Bench, Viewer, open_bench
from tests.support.names import keys
from tests.support.numbered import Numbered

FAILED = outcome_with(
    {**COMPLETED, "status": "failed", "error": {"message": "m", "type": "t", "param": None, "code": "c"}}
)
CANCELLED = outcome_with({**COMPLETED, "status": "cancelled"})
USAGE = b'{"choices":[],"usage":{"total_tokens":7}}'


@pytest.fixture(params=["asgi", "direct"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice: each piece through ASGI, and written to the connection where that may be."""
    monkeypatch.setattr(Viewer, "chunked", request.param == "direct")


@pytest.fixture
async def bench(valkey: EmbeddedValkey, way: None) -> AsyncIterator[Bench]:
    async with open_bench(valkey.url) as opened:
        yield opened


def chunk(text: str) -> bytes:
    return json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}).encode()


async def say(writer: Writer, *texts: str) -> None:
    await writer.append([Chunk(chunk(text)) for text in texts])


def events(body: bytes) -> list[bytes]:
    """Each event, whole."""
    return [event + b"\n\n" for event in body.split(b"\n\n")[:-1]]


def numbers(body: bytes) -> list[int]:
    return [int(event.partition(b"\n")[0].removeprefix(b"id: ")) for event in events(body)]


def last(body: bytes) -> dict[str, Any]:
    """Data of the last event."""
    data: dict[str, Any] = json.loads(events(body)[-1].rstrip().rpartition(b"data: ")[2])
    return data


async def test_events_have_numbers_an_item_is_opened_and_closed_and_the_last_one_has_the_whole_text(
    bench: Bench,
) -> None:
    writer = await bench.log_of()
    surface = Numbered(native=False)
    early = bench.watch(writer, surface)
    await early.until(b"created")
    for text in ("a", "", "b"):
        await say(writer, text)
    await early.until(b'"b"')
    await writer.append([Chunk(USAGE, is_usage=True)])
    await bench.log.seal(writer.generation_id, COMPLETED)
    late = bench.watch(writer, surface)
    await bench.end(early, late)
    assert early.body == late.body
    names = [event.split(b"\n")[1].removeprefix(b"event: ").decode() for event in events(early.body)]
    assert names == ["created", "item.opened", "text", "text", "item.closed", "done"]
    assert numbers(early.body) == list(range(6))
    answer = {"id": writer.generation_id, "status": "completed", "text": "ab", "usage": {"total_tokens": 7}}
    assert last(early.body) == {"number": 5, "answer": answer}


async def test_a_client_resumes_by_the_number_of_its_last_event(bench: Bench) -> None:
    writer = await bench.log_of()
    surface = Numbered(native=False)
    await say(writer, *"abc")
    live = bench.watch(writer, surface, cursor=3)
    await live.until(b'"c"')
    await bench.log.seal(writer.generation_id, COMPLETED)
    again = [bench.watch(writer, surface, cursor=cursor) for cursor in range(8)]
    ahead = bench.watch(writer, surface, cursor=8)
    await bench.end(live, *again, ahead)
    assert [numbers(viewer.body) for viewer in again] == [list(range(cursor, 7)) for cursor in range(8)]
    assert live.body == again[3].body
    assert (again[7].status, again[7].body) == (204, b"")
    assert ahead.status == 400
    assert "this stream has 7 events" in last(ahead.body + b"\n\n")["error"]["message"]


async def test_a_cursor_ahead_of_a_live_log_is_refused(bench: Bench) -> None:
    writer = await bench.log_of()
    await say(writer, "a")
    viewer = bench.watch(writer, Numbered(native=False), cursor=9)
    await bench.end(viewer)
    assert viewer.status == 400
    assert b"cursor_ahead" in viewer.body


async def test_a_new_attempt_starts_over_for_those_that_know_attempts_and_ends_the_others(bench: Bench) -> None:
    writer = await bench.log_of()
    await say(writer, "a", "b")
    knowing, other = Numbered(native=True), Numbered(native=False)
    native, plain = bench.watch(writer, knowing), bench.watch(writer, other)
    for viewer in (native, plain):
        await viewer.until(b'"b"')
    second, _, _ = await bench.log.claim(bench.appender, writer.generation_id, 2, attempt_with({"at_ms": 2}))
    await say(second, "x")
    await native.until(b'"x"')
    counted = bench.watch(writer, other, cursor=3)
    await bench.log.seal(writer.generation_id, COMPLETED, epoch=2)
    fresh = bench.watch(writer, other)
    await bench.end(native, plain, counted, fresh)
    before, _, after = native.body.partition(b'event: attempt\ndata: {"attempt":2}\n\n')
    assert numbers(before) == [0, 1, 2, 3]
    assert after == fresh.body
    assert last(fresh.body)["answer"]["text"] == "x"
    assert plain.body == before + b'event: error\ndata: {"attempt":2}\n\n'
    assert counted.status == 409
    assert last(counted.body + b"\n\n")["error"]["restart_from"] == "2-0"


async def test_a_log_that_goes_ends_with_an_event_that_has_the_next_number(bench: Bench) -> None:
    writer = await bench.log_of()
    await say(writer, "a")
    viewer = bench.watch(writer, Numbered(native=False))
    await viewer.until(b'"a"')
    await bench.redis.delete(keys.log(writer.generation_id))
    await bench.end(viewer)
    assert last(viewer.body) == {"number": 3, "error": "stream_lost"}


async def test_a_log_without_its_beginning_cannot_be_folded(bench: Bench) -> None:
    writer = await bench.log_of()
    await say(writer, *"abcdef")
    await bench.redis.xdel(keys.log(writer.generation_id), "1-1", "1-2", "1-3")
    await bench.log.seal(writer.generation_id, COMPLETED)
    viewer = bench.watch(writer, Numbered(native=False))
    await bench.end(viewer)
    assert b"stream_lost" in viewer.body


CHUNKS = 10_000
TEXTS = [f"{number} " for number in range(CHUNKS)]


async def test_late_and_lagging_viewers_of_a_long_log_cost_a_fold_of_what_they_read(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.live.livelog.WINDOW_BYTES", 100_000)
    monkeypatch.setattr(bench.parts.settings, "send_timeout_s", 60)
    writer = await bench.log_of()
    surface, costs = Numbered(native=False), []

    async def cost(*viewers: Viewer) -> None:
        before = surface.fed
        await bench.end(*viewers)
        costs.append(surface.fed - before)

    follower = bench.watch(writer, surface)
    await follower.until(b"created")
    lagging = bench.watch(writer, surface)
    await lagging.until(b"created")
    lagging.reading.clear()
    for start in range(0, CHUNKS, 500):
        await say(writer, *TEXTS[start : start + 500])
        await follower.until(b'"%d "' % (start + 499))
    assert surface.fed == CHUNKS  # once for both, whatever one of them has taken
    (live,) = bench.parts.hub._live.values()
    assert live.floor > CHUNKS - 2000
    lagging.reading.set()
    await bench.log.seal(writer.generation_id, COMPLETED)
    await cost(follower, lagging)
    late = bench.watch(writer, surface)
    await cost(late)
    assert follower.body == lagging.body == late.body
    assert numbers(late.body) == list(range(CHUNKS + 4))
    assert last(late.body)["answer"]["text"] == "".join(TEXTS)
    points = range(0, CHUNKS, 1000)
    resumed = [bench.watch(writer, surface, cursor=point) for point in points]
    await cost(*resumed)
    whole = events(late.body)
    assert [viewer.body for viewer in resumed] == [b"".join(whole[point:]) for point in points]
    assert costs[0] <= CHUNKS + EVERY  # the lagging one, at most
    assert costs[1] <= 2 * CHUNKS + EVERY  # nothing was kept: the log is caught up with, and read by the viewer
    assert costs[2] <= CHUNKS + sum(CHUNKS - point + 2 * EVERY for point in points)


async def test_viewers_that_come_at_once_are_folded_for_once(bench: Bench) -> None:
    writer = await bench.log_of()
    await say(writer, *TEXTS[:3000])
    await bench.log.seal(writer.generation_id, COMPLETED)
    surface = Numbered(native=False)
    viewers = [bench.watch(writer, surface) for _ in range(50)]
    await bench.end(*viewers)
    assert len({viewer.body for viewer in viewers}) == 1
    assert surface.fed == 3000
    again = bench.watch(writer, surface)  # of a log that is at hand, whose frames were dropped
    await bench.end(again)
    assert again.body == viewers[0].body
    assert surface.fed <= 6000


class Pages:
    """A log of one attempt, without Redis: read in pages, fed to a live log in pieces."""

    def __init__(self, payloads: Sequence[bytes], outcome: Outcome) -> None:
        self.attempt = [
            Entry(Position(1, seq), Kind.CHUNK if payload is not USAGE else Kind.USAGE, payload)
            for seq, payload in enumerate(payloads, 1)
        ]
        self.outcome = Entry(SEAL, Kind.OUTCOME, json.dumps(outcome).encode())
        self.there = 0
        self.sealed_elsewhere = False
        """Redis has its end, which is not read here."""
        self.asked = asyncio.Event()
        """Where it ends was looked up."""
        self.live = LiveLog("g")
        self.live.feed([Entry(Position(1, 0), Kind.ATTEMPT, b"{}")])

    def feed(self, count: int) -> None:
        if entries := self.attempt[self.there : self.there + count]:
            self.there += len(entries)
            self.live.feed(entries)

    def end(self) -> None:
        self.feed(len(self.attempt))
        self.live.feed([self.outcome])

    async def read(self, _: str, after: Position, count: int, **options: object) -> list[Entry]:
        await asyncio.sleep(0)
        return self.attempt[after.seq : min(after.seq + count, self.there)]

    async def ends(self, _: list[str]) -> dict[str, Position]:
        self.asked.set()
        return {"g": SEAL if self.sealed_elsewhere else self.live.position}

    def watch(self, surface: Numbered, cursor: Cursor | None) -> Viewer:
        async def join(_: str, **options: object) -> LiveLog:
            return self.live

        async def never(*_: object) -> bool:
            return False

        hub: Any = SimpleNamespace(join=join, leave=never, rounds=FairTurns(1), may_be_mended=never)
        broker = SimpleNamespace(log=self)
        process = SimpleNamespace(hub=hub, broker=broker, settings=Settings(_env_file=None), drain=Drain())
        response: Callable[..., Awaitable[None]] = EventStream(
            process, header_with({"id": "g", "owner": "a", "created_at_ms": 1}), surface, cursor=cursor, headers={}
        )
        return Viewer(response)


async def test_a_cursor_that_another_process_reached_waits_for_this_one() -> None:
    log = Pages([chunk(text) for text in "abc"], COMPLETED)
    log.feed(1)
    log.sealed_elsewhere = True
    viewer = log.watch(Numbered(native=False), 4)
    await log.asked.wait()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not viewer.status
    log.end()
    await viewer.task
    assert numbers(viewer.body) == [4, 5, 6]


async def test_who_has_everything_is_told_so_by_a_process_that_is_behind() -> None:
    """An EventSource that comes back behind the end; it was sent the whole answer once more."""
    log = Pages([chunk(text) for text in "abc"], COMPLETED)
    log.feed(2)
    log.sealed_elsewhere = True
    viewer = log.watch(Numbered(native=False), SEAL)
    await log.asked.wait()
    log.end()
    await viewer.task
    assert (viewer.status, viewer.body) == (204, b"")


async def test_who_has_everything_of_a_log_that_lacks_a_part_here_is_told_of_that() -> None:
    log = Pages([chunk(text) for text in "abc"], COMPLETED)
    log.feed(2)
    log.live.fail(Damaged("1-3 is missing"))
    viewer = log.watch(Numbered(native=False), SEAL)
    await viewer.task
    assert last(viewer.body)["error"] == "stream_lost"


async def test_what_was_joined_and_is_dropped_while_somebody_reads_it_is_made_once_more() -> None:
    """By a process that needs the memory: a fold that stands at the end told the rest of the answer twice."""
    log = Pages([chunk(text) for text in TEXTS[:4000]], COMPLETED)
    log.end()
    surface = Numbered(native=False)
    whole = log.watch(surface, None)
    await whole.task
    for kept in (10, 8, 2):
        log.live.rest()
        slow = log.watch(surface, None)
        slow.reading.clear()
        for _ in range(20):  # as far as it gets
            await asyncio.sleep(0)
        log.live.shrink(log.live.size * kept // 10)
        slow.reading.set()
        await slow.task
        assert slow.body == whole.body
    again = log.watch(surface, 3000)
    await again.task
    assert again.body == b"".join(events(whole.body)[3000:])


PAYLOADS = st.lists(st.sampled_from(["a", "bc", "", "d" * 40]).map(chunk), max_size=40)


@settings(max_examples=60)
@given(
    payloads=PAYLOADS,
    usage=st.booleans(),
    outcome=st.sampled_from([COMPLETED, FAILED, CANCELLED]),
    every=st.integers(1, 9),
    window=st.integers(1, 3000),
    pieces=st.lists(st.integers(1, 12), max_size=8),
    direct=st.booleans(),
)
def test_every_point_to_resume_from_gives_the_rest_of_the_same_bytes(
    payloads: list[bytes],
    usage: bool,
    outcome: Outcome,
    every: int,
    window: int,
    pieces: list[int],
    direct: bool,
) -> None:
    async def check() -> None:
        said = payloads + [USAGE] * usage
        whole = Pages(said, outcome)
        uninterrupted = whole.watch(Numbered(native=False), None)
        for piece in pieces:
            whole.feed(piece)
            await asyncio.sleep(0)
        whole.end()
        await uninterrupted.task
        expected = events(uninterrupted.body)
        assert numbers(uninterrupted.body) == list(range(len(expected)))
        # While it goes on, as soon as there is that much; and when it is over.
        surface, going_on = Numbered(native=False), Pages(said, outcome)
        viewers: dict[int, Viewer] = {}
        for piece in (0, *pieces):
            going_on.feed(piece)
            keeping_up = going_on.watch(surface, None)
            viewers[-1 - len(viewers)] = keeping_up
            shown = going_on.live.shown(surface, header_with({"id": "g"}))
            await shown.follow(going_on.live, going_on)  # type: ignore[arg-type]
            for cursor in range(shown.events(going_on.live) + 1):
                viewers.setdefault(cursor, going_on.watch(surface, cursor))
            await asyncio.sleep(0)
        going_on.end()
        over = [going_on.watch(surface, cursor) for cursor in range(len(expected))]
        await asyncio.gather(*(viewer.task for viewer in (*viewers.values(), *over)))
        going_on.live.rest()  # nobody watches for a while: what is not joined is let go of
        again = [going_on.watch(surface, cursor) for cursor in range(len(expected))]
        await asyncio.gather(*(viewer.task for viewer in again))
        going_on.live.rest()
        last = [(cursor, going_on.watch(surface, cursor)) for cursor in reversed(range(len(expected)))]
        await asyncio.gather(*(viewer.task for _, viewer in last))
        for cursor, viewer in (*viewers.items(), *enumerate(over), *enumerate(again), *last):
            assert viewer.body == b"".join(expected[max(0, cursor) :])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("api.live.folding.EVERY", every)
        patch.setattr("api.live.livelog.WINDOW_BYTES", window)
        patch.setattr("api.live.livelog._BODY_BYTES", 1 + window // 3)
        patch.setattr(Viewer, "chunked", direct)
        asyncio.run(check())


async def test_what_is_joined_is_not_folded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until a viewer begins where no body does."""
    surface, pages = Numbered(native=False), Pages([chunk(f"{n} ") for n in range(9)], COMPLETED)
    pages.feed(9)
    pages.end()
    first = pages.watch(surface, None)
    await first.task
    pages.live.rest()
    made: list[int] = []
    caught_up = Folding._caught_up

    async def counted(shown: Folding, live: Any, log: Any) -> bool:
        made.append(1)
        return await caught_up(shown, live, log)

    monkeypatch.setattr(Folding, "_caught_up", counted)
    again = pages.watch(surface, None)
    await again.task
    assert (again.body, made) == (first.body, [])
    in_the_middle = pages.watch(surface, 4)
    await in_the_middle.task
    assert (in_the_middle.body, made) == (b"".join(events(first.body)[4:]), [1])
