"""The hub and the relay in process, on a real Valkey: windows, laggards, attempts, and logs that go wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from api.live.cursor import parse
from api.live.livelog import LiveLog
from api.surfaces.chat.projection import chat_events
from shared.cli.embedded import EmbeddedValkey
from shared.lib.clock import now_ms
from shared.log import writer as writer_module
from shared.log.entry import Chunk, Entry
from shared.log.records import Outcome
from shared.log.streamlog import StreamLog
from shared.log.tracking import Tracker, Untracked
from shared.store.redis import ResponseError
from tests.harness.records import attempt_with, header_with, outcome_with
from tests.harness.store import open_store
from tests.support.live import COMPLETED, NATIVE, Bench, Viewer, open_bench
from tests.support.names import keys

OPENAI = chat_events(ids=False, include_usage=False)


@pytest.fixture(params=["asgi", "direct"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test twice: each piece through ASGI, and written to the connection where that may be."""
    monkeypatch.setattr(Viewer, "chunked", request.param == "direct")


@pytest.fixture
async def bench(valkey: EmbeddedValkey) -> AsyncIterator[Bench]:
    async with open_bench(valkey.url) as opened:
        yield opened


async def test_every_viewer_gets_every_frame_once_whenever_it_comes(bench: Bench) -> None:
    writer = await bench.log_of()
    viewers = [bench.watch(writer)]
    for word in range(60):
        await bench.say(writer, word)
        if word % 10 == 0:
            viewers += [bench.watch(writer), bench.watch(writer, OPENAI)]
    await bench.log.seal(writer.generation_id, COMPLETED)
    viewers.append(bench.watch(writer))
    await bench.end(*viewers)
    assert {tuple(viewer.words) for viewer in viewers} == {tuple(f"w{i}" for i in range(60))}
    assert len({viewer.body for viewer in viewers}) == 2
    assert all(viewer.body.endswith(b"data: [DONE]\n\n") and viewer.over for viewer in viewers)


@pytest.mark.parametrize("live", [True, False])
async def test_what_has_left_the_window_is_read_from_the_log(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, live: bool
) -> None:
    monkeypatch.setattr("api.live.livelog.WINDOW_BYTES", 100)
    writer = await bench.log_of(*range(200))
    first = bench.watch(writer)
    await first.until(b"w199")
    if live:
        await bench.say(writer, *range(200, 400))
    await bench.log.seal(writer.generation_id, COMPLETED)
    late, resumed = bench.watch(writer), bench.watch(writer, cursor=parse("1-100"))
    await bench.end(first, late, resumed)
    words = [f"w{i}" for i in range(400 if live else 200)]
    assert first.words == late.words == words
    assert resumed.words == words[100:]


async def test_a_viewer_that_does_not_read_is_dropped_and_the_others_are_not(bench: Bench) -> None:
    writer = await bench.log_of(*range(5))
    slow, quick = bench.watch(writer), bench.watch(writer)
    await slow.until(b"w4")
    slow.reading.clear()
    await bench.say(writer, 5)
    await bench.end(slow)
    assert slow.aborted
    assert not slow.over
    await bench.log.seal(writer.generation_id, COMPLETED)
    await bench.end(quick)
    assert len(quick.words) == 6


async def test_a_connection_that_breaks_harms_nobody_else(bench: Bench) -> None:
    """It may be closed a moment before its viewer hears of it, while the log is being written out."""
    writer = await bench.log_of(1)
    broken, well = bench.watch(writer), bench.watch(writer)
    for viewer in (broken, well):
        await viewer.until(b"w1")
    broken.lost = True
    await bench.say(writer, 2)
    await well.until(b"w2")
    broken.hang_up()
    await bench.end(broken)
    await bench.log.seal(writer.generation_id, COMPLETED)
    await bench.end(well)
    assert well.words == ["w1", "w2"]


async def test_a_log_that_cannot_be_followed_ends_with_an_error_and_no_other_does(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad, good = await bench.log_of(1), await bench.log_of(1)
    unlucky, lucky = bench.watch(bad), bench.watch(good)
    for viewer in (unlucky, lucky):
        await viewer.until(b"w1")
    feed = LiveLog.feed

    def break_down(live: LiveLog, entries: list[Entry]) -> None:
        if live.id == bad.generation_id:
            raise ZeroDivisionError
        feed(live, entries)

    monkeypatch.setattr(LiveLog, "feed", break_down)
    await bench.say(bad, 2)
    await bench.end(unlucky)
    assert b"stream_lost" in unlucky.body
    await bench.say(good, 2)
    await lucky.until(b"w2")
    await bench.log.seal(good.generation_id, COMPLETED)
    await bench.end(lucky)


async def test_a_log_that_was_replayed_is_at_hand_for_the_next(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = await bench.log_of(*range(1500))
    await bench.log.seal(writer.generation_id, COMPLETED)
    reads: list[Any] = []
    read = StreamLog.read_all

    def counted(*args: Any, **options: Any) -> Any:
        reads.append(args)
        return read(*args, **options)

    monkeypatch.setattr(StreamLog, "read_all", counted)
    first = bench.watch(writer)
    await bench.end(first)
    again = [bench.watch(writer), bench.watch(writer, OPENAI), bench.watch(writer, cursor=parse("1-700"))]
    await bench.end(*again)
    assert len(reads) == 1
    words = [f"w{i}" for i in range(1500)]
    assert [viewer.words for viewer in (first, *again)] == [words, words, words, words[700:]]
    assert again[0].body == first.body


async def test_a_log_of_the_same_id_that_was_made_later_is_another_one(bench: Bench) -> None:
    writer = await bench.log_of(1)
    await bench.log.seal(writer.generation_id, COMPLETED)
    old = bench.watch(writer)
    await bench.end(old)
    await bench.log.delete(writer.generation_id, "a")
    await bench.log.create(
        header_with({"id": writer.generation_id, "owner": "a", "created_at_ms": 2, "model": "m"}), b"{}"
    )
    anew, _, _ = await bench.log.claim(bench.appender, writer.generation_id, 1, attempt_with({"at_ms": 2}))
    await bench.say(anew, 2)
    new = bench.watch(anew, made=2)
    await new.until(b"w2")
    await bench.log.seal(writer.generation_id, COMPLETED)
    await bench.end(new)
    assert (old.words, new.words) == (["w1"], ["w2"])


async def test_what_is_kept_of_replayed_logs_is_bounded(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.live.hot._BYTES", 700)
    for _ in range(3):
        writer = await bench.log_of(*range(6))  # some 60 bytes, and their objects
        await bench.log.seal(writer.generation_id, COMPLETED)
        await bench.end(bench.watch(writer))
    assert len(bench.parts.hub._hot) == 1
    monkeypatch.setattr("api.live.hot._IDLE_S", 0)
    async with asyncio.timeout(60):
        while bench.parts.hub._hot:  # noqa: ASYNC110 - nobody is told
            await asyncio.sleep(0.05)


async def test_what_is_held_of_followed_logs_is_bounded_and_nobody_misses_it(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.live.hub._WINDOWS_BYTES", 20_000)
    monkeypatch.setattr(bench.parts.hub, "_keepalive_s", 0.2)
    writers = [await bench.log_of(*range(100)) for _ in range(3)]
    first = [bench.watch(writer) for writer in writers]
    for viewer in first:
        await viewer.until(b"w99")
    live = list(bench.parts.hub._live.values())
    assert len(live) == 3
    async with asyncio.timeout(60):
        while sum(one.held for one in live) > 20_000:  # noqa: ASYNC110 - nobody is told
            await asyncio.sleep(0.05)
    assert all(one.floor for one in live)
    late = [bench.watch(writer, view) for writer in writers for view in (NATIVE, OPENAI)]
    resumed = bench.watch(writers[0], cursor=parse("1-50"))
    for writer in writers:
        await bench.say(writer, *range(100, 110))
        await bench.log.seal(writer.generation_id, COMPLETED)
    await bench.end(*first, *late, resumed)
    words = [f"w{i}" for i in range(110)]
    assert [viewer.words for viewer in (*first, *late)] == [words] * 9
    assert resumed.words == words[50:]


async def test_silent_viewers_are_kept_alive_and_a_dead_one_harms_nobody(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench.parts.hub, "_keepalive_s", 0.2)
    monkeypatch.setattr(bench.parts.settings, "keepalive_s", 0.2)
    writer = await bench.log_of(1)
    viewers = [bench.watch(writer), bench.watch(writer, OPENAI)]
    dead = bench.watch(writer)
    for viewer in (*viewers, dead):
        await viewer.until(b"w1")
    dead.lost = True
    for viewer in viewers:
        await viewer.until(b": ka\n: ka\n: ka\n")
    dead.hang_up()
    await bench.say(writer, 2)
    await bench.log.seal(writer.generation_id, COMPLETED)
    await bench.end(*viewers, dead)
    assert [viewer.words for viewer in viewers] == [["w1", "w2"]] * 2


async def test_a_viewer_that_leaves_is_forgotten(bench: Bench) -> None:
    writer = await bench.log_of(1)
    viewer = bench.watch(writer)
    await viewer.until(b"w1")
    assert bench.parts.hub.viewers(writer.generation_id) == 1
    viewer.hang_up()
    await bench.end(viewer)
    assert bench.parts.hub.viewers(writer.generation_id) == 0
    assert not viewer.over
    assert not viewer.aborted


async def test_a_new_attempt_clears_native_viewers_and_ends_the_others(bench: Bench) -> None:
    writer = await bench.log_of(1, 2)
    native, openai = bench.watch(writer), bench.watch(writer, OPENAI)
    await native.until(b"w2")
    await openai.until(b"w2")
    second, _, _ = await bench.log.claim(bench.appender, writer.generation_id, 2, attempt_with({"at_ms": 2}))
    await bench.say(second, 7, 8)
    await native.until(b"w8")  # this process knows of the new attempt: who comes now is not shown the old one
    await bench.log.seal(writer.generation_id, COMPLETED, epoch=2)
    fresh = bench.watch(writer)
    old = bench.watch(writer, cursor=parse("1-1"))
    old_openai = bench.watch(writer, OPENAI, cursor=parse("1-1"))
    await bench.end(native, openai, fresh, old, old_openai)
    assert native.words == ["w1", "w2", "w7", "w8"]
    assert b'id: 2-0\nevent: attempt\ndata: {"attempt":2}\n\n' in native.body
    for viewer in (openai, old_openai):
        assert b'"generation_interrupted"' in viewer.body
        assert "w7" not in viewer.words
    assert fresh.words == ["w7", "w8"]
    assert b"event: attempt" not in fresh.body
    assert old.body.startswith(b"id: 2-0\nevent: attempt\n")
    assert old.words == ["w7", "w8"]


async def test_an_attempt_that_said_nothing_is_not_mentioned(bench: Bench) -> None:
    writer = await bench.log_of()
    viewers = [bench.watch(writer), bench.watch(writer, OPENAI)]
    second, _, _ = await bench.log.claim(bench.appender, writer.generation_id, 2, attempt_with({"at_ms": 2}))
    await bench.say(second, 1)
    await bench.log.seal(writer.generation_id, COMPLETED, epoch=2)
    await bench.end(*viewers)
    for viewer in viewers:
        assert viewer.words == ["w1"]
        assert b"event:" not in viewer.body
        assert b"error" not in viewer.body


async def test_a_counted_cursor_of_a_replaced_attempt_is_sent_back(bench: Bench) -> None:
    writer = await bench.log_of(1, 2)
    second, _, _ = await bench.log.claim(bench.appender, writer.generation_id, 2, attempt_with({"at_ms": 2}))
    await bench.say(second, 7)
    viewer = bench.watch(writer, cursor=2)
    await bench.end(viewer)
    assert viewer.status == 409
    assert json.loads(viewer.body)["error"]["restart_from"] == "2-0"
    assert viewer.headers[b"x-should-retry"] == b"false"
    again = bench.watch(writer, cursor=parse("2-0"))
    await bench.log.seal(writer.generation_id, COMPLETED)
    await bench.end(again)
    assert again.words == ["w7"]


@pytest.mark.parametrize(("by", "code"), [("its owner", b"stream_gone"), ("nobody", b"stream_lost")])
async def test_a_log_that_goes_ends_its_viewers(bench: Bench, by: str, code: bytes) -> None:
    writer = await bench.log_of(1)
    viewers = [bench.watch(writer), bench.watch(writer, OPENAI)]
    for viewer in viewers:
        await viewer.until(b"w1")
    if by == "nobody":
        await bench.redis.delete(keys.log(writer.generation_id))
    else:
        await bench.log.delete(writer.generation_id, "a")
    await bench.end(*viewers)
    for viewer in viewers:
        assert b'"' + code + b'"' in viewer.body
        assert viewer.body.endswith(b"data: [DONE]\n\n")


FORGED = Chunk(b'{"x":"w8"}\n\ndata: {"x":"w9"}')
"""What no worker writes: in an event stream it would be two events."""


async def test_a_chunk_with_line_breaks_is_shown_to_nobody(bench: Bench) -> None:
    writer = await bench.log_of(0)
    viewers = [bench.watch(writer), bench.watch(writer, OPENAI)]
    for viewer in viewers:
        await viewer.until(b"w0")
    await writer.append([FORGED])
    await bench.end(*viewers)
    for viewer in viewers:
        assert viewer.words == ["w0"]
        assert b'"error"' in viewer.body
        assert viewer.over
    late = bench.watch(writer)
    with pytest.raises(ValueError, match="CR, LF and NUL"):
        await late.task
    assert not late.words


async def test_nor_where_it_has_left_the_window(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("api.live.livelog.WINDOW_BYTES", 100)
    writer = await bench.log_of(0)
    await writer.append([FORGED])
    await bench.say(writer, *range(10, 200))
    late = bench.watch(writer)
    with pytest.raises(ValueError, match="CR, LF and NUL"):
        await late.task
    assert not late.words


async def test_a_log_that_lost_entries_ends_its_viewers(bench: Bench) -> None:
    writer = await bench.log_of(1, 2, 3)
    viewer = bench.watch(writer)
    await viewer.until(b"w3")
    key = keys.log(writer.generation_id)
    async with bench.redis.pipeline(transaction=True) as pipe:
        pipe.xdel(key, "1-3")
        await pipe.execute()
    await bench.end(viewer)
    assert b'"stream_lost"' in viewer.body


async def test_a_gap_in_what_comes_is_never_passed_over(bench: Bench) -> None:
    writer = await bench.log_of(1)
    viewer = bench.watch(writer)
    await viewer.until(b"w1")
    await bench.redis.xadd(keys.log(writer.generation_id), {"c": b'"w9"'}, id="1-5")
    await bench.end(viewer)
    assert viewer.words == ["w1"]
    assert b'"stream_lost"' in viewer.body


async def test_trimmed_logs_say_from_where_they_can_be_read(bench: Bench) -> None:
    writer = await bench.log_of(*range(6))
    await bench.redis.xdel(keys.log(writer.generation_id), "1-1", "1-2", "1-3")
    await bench.log.seal(writer.generation_id, COMPLETED)
    for cursor in (None, parse("1-2"), 1):
        viewer = bench.watch(writer, cursor=cursor)
        await bench.end(viewer)
        assert viewer.status == 410
        assert json.loads(viewer.body)["error"]["floor"] == "1-3"
    viewer = bench.watch(writer, cursor=parse("1-3"))
    await bench.end(viewer)
    assert viewer.words == ["w3", "w4", "w5"]


async def test_a_cursor_that_another_process_already_reached_waits_for_this_one(bench: Bench) -> None:
    writer = await bench.log_of(1)
    live = await bench.parts.hub.join(writer.generation_id)
    position, live.position = live.position, live.position
    await bench.say(writer, 2, 3, 4)
    viewer = bench.watch(writer, cursor=parse("1-3"))
    await bench.log.seal(writer.generation_id, COMPLETED)
    await bench.end(viewer)
    assert viewer.words == ["w4"]
    assert position < live.position
    await bench.parts.hub.leave(live)


async def test_a_server_that_stops_lets_native_viewers_go_at_a_boundary(bench: Bench) -> None:
    writer = await bench.log_of(1)
    native, openai = bench.watch(writer), bench.watch(writer, OPENAI)
    for viewer in (native, openai):
        await viewer.until(b"w1")
    bench.parts.drain.native = True
    bench.parts.hub.wake()
    await bench.end(native)
    assert native.aborted
    assert native.body.endswith(b"\n\n")
    await bench.say(writer, 2)
    await openai.until(b"w2")
    bench.parts.drain.everyone = True
    bench.parts.hub.wake()
    await bench.end(openai)
    assert openai.aborted
    assert not openai.over


async def test_what_costs_much_to_write_goes_in_fewer_writes_but_for_the_first_word_and_the_end(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.live.livelog.rest_s", lambda took_s: 1000.0)
    writer = await bench.log_of()
    first, left = bench.watch(writer), bench.watch(writer, OPENAI)
    await bench.say(writer, 0)
    for viewer in (first, left):
        await viewer.until(b"w0")
    live = await bench.parts.hub.join(writer.generation_id)
    while Viewer.chunked and sum(map(len, live._lanes.values())) < 2:  # noqa: ASYNC110 - nobody is told
        await asyncio.sleep(0)
    live._free_at = 0.0  # whether they were here when the first word came or not
    await bench.say(writer, 1)
    for viewer in (first, left):
        await viewer.until(b"w1")
    await bench.say(writer, *range(2, 10))
    while live.end < 10:
        await live.waiter()
    await bench.parts.hub.leave(live)
    if Viewer.chunked:
        assert first.words == left.words == ["w0", "w1"]
    left.hang_up()
    await bench.end(left)
    late = bench.watch(writer)
    await late.until(b"w9")
    await first.until(b"w9")
    await bench.say(writer, 10)
    await bench.log.seal(writer.generation_id, COMPLETED)
    await bench.end(first, late)
    assert first.words == late.words == [f"w{i}" for i in range(11)]
    assert first.written <= 4


async def test_where_redis_tracks_no_keys_everybody_is_shown_the_same(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> Tracker:
        raise Untracked from ResponseError("ERR unknown command")

    monkeypatch.setattr(Tracker, "open", refuse)
    first, second = await bench.log_of(1), await bench.log_of(1)
    viewers = [bench.watch(first), bench.watch(second), bench.watch(second, OPENAI)]
    for viewer in viewers:
        await viewer.until(b"w1")
    for word in range(2, 30):
        await bench.say(first, word)
        await bench.say(second, word)
    viewers.append(bench.watch(first, cursor=parse("1-10")))
    for writer in (first, second):
        await bench.log.seal(writer.generation_id, COMPLETED)
    await bench.end(*viewers)
    words = [f"w{i}" for i in range(1, 30)]
    assert [viewer.words for viewer in viewers] == [words, words, words, words[10:]]


async def test_a_log_nobody_watches_is_not_followed(bench: Bench) -> None:
    writer = await bench.log_of(1)
    opening = asyncio.ensure_future(bench.parts.hub.join(writer.generation_id))
    await asyncio.sleep(0)
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)
    assert not bench.parts.hub._live


async def test_viewers_that_come_at_once_cost_one_reading(bench: Bench, valkey: EmbeddedValkey) -> None:
    writer = await bench.log_of(*range(50))
    await bench.log.seal(writer.generation_id, COMPLETED)
    with open_store(valkey.url) as store, store.monitor() as monitor:
        viewers = [bench.watch(writer) for _ in range(100)]
        await bench.end(*viewers)
        await bench.redis.echo("over")
        seen = [monitor.next_command()["command"].split()]
        while seen[-1] != ["ECHO", "over"]:
            seen.append(monitor.next_command()["command"].split())
    # Of this log alone: others on this server are read as well, by the servers of other tests.
    readings = [words for words in seen if words[:2] == ["XRANGE", keys.log(writer.generation_id)]]
    assert {tuple(viewer.words) for viewer in viewers} == {tuple(f"w{i}" for i in range(50))}
    assert 1 <= len(readings) <= 4


# ---- pacing: one token every 1000 s, so that nothing here depends on how long it takes

SLOWLY = 0.001
FAILED = outcome_with(
    {**COMPLETED, "status": "failed", "error": {"message": "m", "type": "t", "param": None, "code": "c"}}
)


@pytest.fixture
def begun_4500_s_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker wrote the first chunk so long ago that four more are due, and the next one is not for 500 s."""
    monkeypatch.setattr(writer_module, "now_ms", lambda: now_ms() - 4_500_000)


DUE = [f"w{i}" for i in range(5)]


async def test_paced_viewers_all_see_what_is_due_whenever_they_come(bench: Bench, begun_4500_s_ago: None) -> None:
    writer = await bench.log_of(0)
    viewers = [bench.watch(writer, rate=SLOWLY), bench.watch(writer, OPENAI, rate=SLOWLY)]
    await bench.say(writer, *range(1, 20))
    await bench.log.seal(writer.generation_id, COMPLETED)
    viewers += [bench.watch(writer, rate=SLOWLY), bench.watch(writer, rate=SLOWLY, cursor=parse("1-2"))]
    for viewer in viewers:
        await viewer.until(b"w4")
    assert [viewer.words for viewer in viewers] == [DUE, DUE, DUE, DUE[2:]]
    for viewer in viewers:
        viewer.hang_up()
    await bench.end(*viewers)
    assert not any(viewer.over for viewer in viewers)


async def test_a_resumed_viewer_waits_for_the_next_chunk_only(bench: Bench) -> None:
    """It has more than is due by the clock here: the process it comes from may have had another."""
    writer = await bench.log_of(*range(20))
    viewer = bench.watch(writer, rate=SLOWLY, cursor=parse("1-10"))
    await viewer.until(b"w10")
    assert viewer.words == ["w10"]
    viewer.hang_up()
    await bench.end(viewer)


async def test_what_was_said_long_ago_is_shown_at_once(bench: Bench, begun_4500_s_ago: None) -> None:
    writer = await bench.log_of(*range(20))
    await bench.log.seal(writer.generation_id, COMPLETED)
    viewer = bench.watch(writer, rate=1)
    await bench.end(viewer)
    assert len(viewer.words) == 20
    assert viewer.over


@pytest.mark.parametrize("outcome", [FAILED, outcome_with({**COMPLETED, "status": "cancelled"})])
async def test_what_failed_is_not_waited_for(bench: Bench, outcome: Outcome) -> None:
    writer = await bench.log_of(*range(20))
    viewer = bench.watch(writer, rate=SLOWLY)
    await viewer.until(b"w0")
    assert viewer.words == ["w0"]
    await bench.log.seal(writer.generation_id, outcome)
    await bench.end(viewer)
    assert viewer.words == [f"w{i}" for i in range(20)]
    assert b'{"error":' in viewer.body
    assert viewer.over


async def test_a_paced_viewer_of_a_lost_log_is_told_at_once(bench: Bench) -> None:
    writer = await bench.log_of(*range(20))
    viewer = bench.watch(writer, rate=SLOWLY)
    await viewer.until(b"w0")
    await bench.redis.delete(keys.log(writer.generation_id))
    await bench.end(viewer)
    assert b'"stream_lost"' in viewer.body


async def test_a_paced_viewer_of_a_replaced_attempt_is_told_at_once(bench: Bench) -> None:
    writer = await bench.log_of(*range(20))
    native, openai = bench.watch(writer, rate=SLOWLY), bench.watch(writer, OPENAI, rate=SLOWLY)
    for viewer in (native, openai):
        await viewer.until(b"w0")
    second, _, _ = await bench.log.claim(bench.appender, writer.generation_id, 2, attempt_with({"at_ms": 2}))
    await bench.say(second, 77, 78)
    await native.until(b"w77")
    await bench.end(openai)
    assert native.words == ["w0", "w77"]
    assert b'"generation_interrupted"' in openai.body
    native.hang_up()
    await bench.end(native)


async def test_a_laggard_reads_no_more_from_the_log_than_is_due(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, begun_4500_s_ago: None
) -> None:
    monkeypatch.setattr("api.live.livelog.WINDOW_BYTES", 100)
    writer = await bench.log_of(*range(200))
    viewer = bench.watch(writer, rate=SLOWLY)
    await viewer.until(b"w4")
    assert viewer.words == DUE
    viewer.hang_up()
    await bench.end(viewer)


async def test_a_server_that_stops_does_not_wait_for_the_pace(bench: Bench) -> None:
    writer = await bench.log_of(1, 2)
    await bench.log.seal(writer.generation_id, COMPLETED)
    native, openai = bench.watch(writer, rate=SLOWLY), bench.watch(writer, OPENAI, rate=SLOWLY)
    for viewer in (native, openai):
        await viewer.until(b"w1")
    bench.parts.drain.native = True
    bench.parts.hub.wake()
    await bench.end(native)
    bench.parts.drain.everyone = True
    bench.parts.hub.wake()
    await bench.end(openai)
    assert native.aborted and openai.aborted  # noqa: PT018 - both, for the same reason
    assert native.words == openai.words == ["w1"]
