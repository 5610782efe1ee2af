"""Sessions and settlement: turns in order, each once, whoever settles and however often."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from shared.chat.request import ChatRequest
from shared.config.settings import Settings
from shared.errors import BadRequest, NotFound, SessionBusy, SessionTooLarge
from shared.features.sessions import Sessions
from shared.generations.caller import Caller
from shared.generations.core import Core
from shared.log.appender import Appender
from shared.log.entry import Chunk, Status
from shared.log.records import Header
from shared.log.streamlog import StreamLog
from shared.store.keys import Lane
from shared.store.redis import ArqRedis
from tests.harness.records import attempt_with, error_with, header_with
from tests.support.names import keys

ANN, BOB = Caller("ann"), Caller("bob")


class Bench:
    """A broker, and a worker's hands: `say` runs a generation to its end."""

    def __init__(self, redis: ArqRedis, log: StreamLog, appender: Appender, settings: Settings) -> None:
        self.redis, self.log, self.appender = redis, log, appender
        self.core = Core(redis, log, settings, name="test")
        self.broker, self.sessions = self.core.broker, self.core.sessions
        self.store = Sessions(redis, settings, self.core.blobs)

    async def ask(
        self, text: str, *, who: Caller = ANN, session: str = "s", key: str | None = None, **fields: Any
    ) -> Header:
        body = {"model": "fake/echo", "messages": [{"role": "user", "content": text}], "session_id": session, **fields}
        request = ChatRequest.check(body)
        return (await self.broker.submit(json.dumps(body).encode(), request, who, idempotency_key=key)).header

    async def say(self, header: Header, *deltas: dict[str, Any], finish: str | None = "stop") -> None:
        """What a worker writes, up to its seal. Without a finish reason, it fails."""
        writer, *_ = await self.log.claim(
            self.appender, header["id"], 1, attempt_with({"at_ms": 1, "token": header["id"]})
        )
        parts = [*deltas, {}] if finish else deltas
        for place, delta in enumerate(parts):
            reason = finish if place == len(parts) - 1 else None
            choice = {"index": 0, "delta": delta, "finish_reason": reason}
            await writer.append([Chunk(json.dumps({"choices": [choice]}).encode())])
        error = None if finish else error_with(code="upstream_incomplete")
        await self.core.outcomes.conclude(header["id"], 1, Status.FAILED, error=error)

    async def texts(self, who: Caller = ANN, session: str = "s") -> list[str]:
        return [message["content"] for message in await self.sessions.messages(session, who)]

    def turn(self, header: Header) -> int:
        assert header["session"] is not None
        return header["session"]["turn"]

    async def queued(self) -> list[str]:
        return [member.decode() for member in await self.redis.zrange(keys.waiting(Lane.GENERATION, "ann"), 0, -1)]

    async def prompt(self, header: Header, *texts: str) -> list[str]:
        asked = [{"role": "user", "content": text} for text in texts]
        history, new = await self.core.outcomes.transcripts.messages(header, {"messages": asked})
        return [message["content"] for message in [*history, *new]]


@pytest.fixture
async def bench(redis: ArqRedis, log: StreamLog, appender: Appender) -> Bench:
    catalogue = {"providers": {"fake": {"models": ["echo"], "open": False}}, "aliases": {}}
    await redis.set(keys.catalogue, json.dumps(catalogue), ex=60)
    return Bench(redis, log, appender, Settings(retention_s=100, session_max_tokens=1000))


def answer(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


async def test_turn_after_turn(bench: Bench) -> None:
    for number in range(3):
        header = await bench.ask(f"q{number}")
        assert bench.turn(header) == number + 1
        assert await bench.prompt(header, f"q{number}") == [
            text for before in range(number) for text in (f"q{before}", f"a{before}")
        ] + [f"q{number}"]
        await bench.say(header, answer(f"a{number}"))
    assert await bench.texts() == ["q0", "a0", "q1", "a1", "q2", "a2"]
    session = await bench.sessions.find("s", ANN)
    assert (session["turns"], session["open"]) == (3, [])


async def test_a_turn_is_settled_once_however_often(bench: Bench) -> None:
    header = await bench.ask("q")
    await bench.say(header, answer("a"))
    unsettled = keys.unsettled(keys.cells.of(header["id"]))
    await bench.redis.sadd(unsettled, header["id"])  # type: ignore[misc]
    await asyncio.gather(*(bench.core.settlement.settle(header["id"]) for _ in range(5)))
    assert await bench.texts() == ["q", "a"]
    session = await bench.sessions.find("s", ANN)
    assert session["turns"] == 1
    assert not await bench.redis.scard(unsettled)  # type: ignore[misc]
    (row,) = await bench.core.ledger.read("ann", *(2 * [_today()]))
    assert (row["requests"], row["completed_requests"], row["estimate_requests"]) == (1, 1, 1)


async def test_an_id_that_is_made_once_more_is_settled_once_more(bench: Bench) -> None:
    """Its log has expired, its Idempotency-Key has not: the mark of the first one is not the second one's."""
    header = await bench.ask("q")
    await bench.say(header, answer("a"))
    await bench.redis.delete(keys.log(header["id"]))
    again = header_with({**header, "created_at_ms": header["created_at_ms"] + 1, "session": None, "session_id": None})
    await bench.log.create(again, b'{"messages": []}')
    await bench.say(again, answer("b"))
    (row,) = await bench.core.ledger.read("ann", *(2 * [_today()]))
    assert row["requests"] == 2


async def test_what_the_sealer_left_is_settled_by_the_reaper(bench: Bench) -> None:
    header = await bench.ask("q")
    writer, *_ = await bench.log.claim(bench.appender, header["id"], 1, attempt_with({"at_ms": 1}))
    choice = {"index": 0, "delta": answer("a"), "finish_reason": "stop"}
    await writer.append([Chunk(json.dumps({"choices": [choice]}).encode())])
    told = await bench.core.outcomes.transcripts.read(header["id"], 1)
    await bench.log.seal(header["id"], await bench.core.outcomes.compose(told, Status.COMPLETED, None), epoch=1)
    assert not await bench.redis.exists(keys.session("ann", "s").turns)  # and here the worker died
    await asyncio.gather(*(bench.core.settlement.settle_left_over() for _ in range(3)))
    assert await bench.texts() == ["q", "a"]


async def test_an_answer_that_can_be_read_is_a_turn(bench: Bench) -> None:
    """The settlement comes a moment after the seal; whoever saw the seal may ask on at once."""
    header = await bench.ask("q0")
    writer, *_ = await bench.log.claim(bench.appender, header["id"], 1, attempt_with({"at_ms": 1}))
    choice = {"index": 0, "delta": answer("a0"), "finish_reason": "stop"}
    await writer.append([Chunk(json.dumps({"choices": [choice]}).encode())])
    told = await bench.core.outcomes.transcripts.read(header["id"], 1)
    await bench.log.seal(header["id"], await bench.core.outcomes.compose(told, Status.COMPLETED, None), epoch=1)
    assert await bench.texts() == ["q0", "a0"]
    following = await bench.ask("q1")
    assert await bench.prompt(following, "q1") == ["q0", "a0", "q1"]
    assert following["id"] in await bench.queued()


async def test_busy_sessions_reject(bench: Bench) -> None:
    header = await bench.ask("q0")
    with pytest.raises(SessionBusy, match=header["id"]):
        await bench.ask("q1")
    await bench.ask("q1", who=BOB)
    await bench.ask("q1", session="other")
    await bench.say(header, answer("a0"))
    await bench.ask("q1")


async def test_a_request_made_twice_at_once_with_its_key_is_not_told_that_it_is_busy_with_itself(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one makes it between two looks at the session."""
    waiting, made = Sessions._waiting, list[Header]()

    async def after_the_other(sessions: Sessions, pipe: Any, name: str) -> list[str]:
        if not made and not isinstance(pipe, ArqRedis):
            monkeypatch.setattr(Sessions, "_waiting", waiting)
            made.append(await bench.ask("q0", key="k"))
        return await waiting(sessions, pipe, name)

    monkeypatch.setattr(Sessions, "_waiting", after_the_other)
    assert (await bench.ask("q0", key="k"))["id"] == made[0]["id"]
    await bench.say(made[0], answer("a0"))
    assert await bench.texts() == ["q0", "a0"]


async def test_enqueued_ones_wait_their_turn(bench: Bench) -> None:
    first = await bench.ask("q0")
    second = await bench.ask("q1", session_policy="enqueue")
    third = await bench.ask("q2", session_policy="enqueue")
    assert await bench.queued() == [first["id"]]
    assert not await bench.broker.dispatch(second)
    await bench.say(first, answer("a0"))
    assert second["id"] in await bench.queued()
    assert third["id"] not in await bench.queued()
    assert await bench.prompt(second, "q1") == ["q0", "a0", "q1"]
    await bench.broker.cancel(second["id"], ANN)
    assert third["id"] in await bench.queued()
    await bench.say(third, answer("a2"))
    assert await bench.texts() == ["q0", "a0", "q2", "a2"]


async def test_interrupting_cancels_what_is_before(bench: Bench) -> None:
    first = await bench.ask("q0")
    second = await bench.ask("q1", session_policy="enqueue")
    third = await bench.ask("q2", session_policy="interrupt")
    for header in (first, second):
        assert (await bench.broker.find(header["id"], ANN)).status is Status.CANCELLED
    assert third["id"] in await bench.queued()
    await bench.say(third, answer("a2"))
    assert await bench.texts() == ["q2", "a2"]


async def test_two_at_once_have_an_order(bench: Bench) -> None:
    headers = await asyncio.gather(*(bench.ask(f"q{i}", session_policy="enqueue") for i in range(6)))
    assert sorted(bench.turn(header) for header in headers) == [1, 2, 3, 4, 5, 6]
    rejecting = await asyncio.gather(*(bench.ask(f"q{i}", session="r") for i in range(6)), return_exceptions=True)
    assert sum(isinstance(found, SessionBusy) for found in rejecting) == 5


async def test_failed_and_cancelled_turns_leave_nothing(bench: Bench) -> None:
    await bench.say(await bench.ask("q0"), answer("half"), finish=None)
    queued = await bench.ask("q1")
    await bench.broker.cancel(queued["id"], ANN)
    assert await bench.texts() == []
    await bench.say(await bench.ask("q2", session_keep_partial=True), answer("half"), finish=None)
    assert await bench.texts() == ["q2", "half"]
    await bench.say(await bench.ask("q3"), answer("cut"), finish="length")
    assert await bench.texts() == ["q2", "half", "q3", "cut"]


async def test_reasoning_stays_out_unless_it_is_wanted(bench: Bench) -> None:
    thought = {"role": "assistant", "content": "a", "reasoning_content": "r"}
    await bench.say(await bench.ask("q0"), thought)
    await bench.say(await bench.ask("q1", store_reasoning=True), thought)
    await bench.say(await bench.ask("q2"), {"role": "assistant", "reasoning": "r only"})
    messages = [m for m in await bench.sessions.messages("s", ANN) if m["role"] == "assistant"]
    assert [(m["content"], m.get("reasoning_content")) for m in messages] == [("a", None), ("a", "r"), ("r only", None)]


async def test_limits_and_trimming(bench: Bench) -> None:
    for number in range(3):
        await bench.say(await bench.ask(f"q{number}" + "x" * 1000), answer("a" * 600))
    before = await bench.queued()
    with pytest.raises(SessionTooLarge, match=r"12\d\d tokens.*1000"):
        await bench.ask("q")
    with pytest.raises(SessionTooLarge):
        await bench.ask("q", session_max_tokens=10)
    assert await bench.queued() == before
    header = await bench.ask("q", session_trim="oldest")
    found = await bench.prompt(header, "q")
    assert [text[:2] for text in found] == ["q1", "aa", "q2", "aa", "q"]
    await bench.say(header, answer("a"))
    tiny = await bench.ask("q", session_trim="oldest", session_max_tokens=1)
    assert await bench.prompt(tiny, "q") == ["q", "a", "q"]


async def test_a_session_is_its_tenants(bench: Bench) -> None:
    await bench.say(await bench.ask("q"), answer("a"))
    for method in (bench.sessions.find, bench.sessions.messages, bench.sessions.delete):
        with pytest.raises(NotFound):
            await method("s", BOB)
    assert await bench.sessions.newest(BOB, None, 10) == []


async def test_deleting_cancels_and_forgets(bench: Bench) -> None:
    await bench.say(await bench.ask("q0"), answer("a0"))
    running = await bench.ask("q1")
    waiting = await bench.ask("q2", session_policy="enqueue")
    await bench.sessions.delete("s", ANN)
    for header in (running, waiting):
        assert (await bench.broker.find(header["id"], ANN)).status is Status.CANCELLED
    with pytest.raises(NotFound):
        await bench.sessions.find("s", ANN)
    assert bench.turn(await bench.ask("again")) == 1


async def sealed(bench: Bench, header: Header, text: str) -> None:
    """What a worker writes that dies before it settles it."""
    writer, *_ = await bench.log.claim(
        bench.appender, header["id"], 1, attempt_with({"at_ms": 1, "token": header["id"]})
    )
    choice = {"index": 0, "delta": answer(text), "finish_reason": "stop"}
    await writer.append([Chunk(json.dumps({"choices": [choice]}).encode())])
    told = await bench.core.outcomes.transcripts.read(header["id"], 1)
    await bench.log.seal(header["id"], await bench.core.outcomes.compose(told, Status.COMPLETED, None), epoch=1)


async def test_what_is_deleted_with_its_last_answer_not_settled_stays_deleted(bench: Bench) -> None:
    """A client that has seen the end deletes the session at once: the turn came after that, and the session was half of one."""
    await bench.say(await bench.ask("q0"), answer("a0"))
    header = await bench.ask("q1")
    await sealed(bench, header, "a1")
    await bench.sessions.delete("s", ANN)
    await bench.core.settlement.settle(header["id"])
    with pytest.raises(NotFound):
        await bench.sessions.find("s", ANN)
    assert not [name async for name in bench.redis.scan_iter("*session:{ann:s}*")]
    await bench.say(await bench.ask("again"), answer("b"))
    assert await bench.texts() == ["again", "b"]


@pytest.mark.parametrize("again", [0, 1, 2])
async def test_a_turn_of_a_deleted_session_is_in_none(bench: Bench, again: int) -> None:
    """Its request met the DELETE. Its text came back, and where the name had turns again, its number was refused, or theirs."""
    await bench.say(await bench.ask("q0"), answer("a0"))
    header = await bench.ask("q1")
    await bench.store.delete("ann", "s")
    anew = [text for number in range(again) for text in (f"n{number}", f"m{number}")]
    for number in range(again):
        await bench.say(await bench.ask(f"n{number}"), answer(f"m{number}"))
    open_one = await bench.ask("open") if again else None
    await bench.say(header, answer("a1"))
    assert (await bench.broker.find(header["id"], ANN)).status is Status.COMPLETED
    if open_one is None:
        assert not [name async for name in bench.redis.scan_iter("*session:{ann:s}*")]
        assert await bench.sessions.newest(ANN, None, 10) == []
        open_one = await bench.ask("open")
    await bench.say(open_one, answer("end"))
    assert await bench.texts() == [*anew, "open", "end"]
    session = await bench.sessions.find("s", ANN)
    assert (session["turns"], session["open"]) == (again + 1, [])


async def test_what_waits_in_a_deleted_session_waits_for_nothing_in_its_next(bench: Bench) -> None:
    await bench.ask("q0")
    header = await bench.ask("q1", session_policy="enqueue")
    await bench.store.delete("ann", "s")
    await bench.ask("again")
    assert await bench.store.is_next(header)


async def test_half_a_session_that_an_older_version_left_goes_on(bench: Bench) -> None:
    """It wrote the turn of one that was deleted."""
    for number in range(2):
        await bench.say(await bench.ask(f"q{number}"), answer(f"a{number}"))
    names = keys.session("ann", "s")
    await bench.redis.xdel(names.turns, "1-0")
    await bench.redis.hdel(names.head, "created_at_ms", "turn")  # type: ignore[misc]
    await bench.redis.hset(names.head, "turns", "1")  # type: ignore[misc]
    session = await bench.sessions.find("s", ANN)
    assert session["created_at"] == session["updated_at"]
    await bench.say(await bench.ask("q2"), answer("a2"))
    assert await bench.texts() == ["q1", "a1", "q2", "a2"]


async def test_a_list_of_sessions(bench: Bench) -> None:
    for name in ("one", "two", "three"):
        await bench.say(await bench.ask("q", session=name), answer("a"))
    found = await bench.sessions.newest(ANN, None, 10)
    assert {session["id"] for session in found} == {"one", "two", "three"}
    assert await bench.sessions.newest(ANN, found[0]["id"], 10) == found[1:]
    with pytest.raises(NotFound):
        await bench.sessions.newest(ANN, "four", 10)


@pytest.mark.parametrize("session", ["", "a b", "ä", "x" * 129, "{x}", "-x"])
async def test_ids_that_are_none(bench: Bench, session: str) -> None:
    with pytest.raises(BadRequest):
        await bench.ask("q", session=session)


async def test_a_turn_has_one_answer(bench: Bench) -> None:
    with pytest.raises(BadRequest, match="n must be 1"):
        await bench.ask("q", n=2)


async def test_a_lost_log_is_nobodys_turn(bench: Bench) -> None:
    lost = await bench.ask("q0")
    await bench.redis.delete(keys.log(lost["id"]))
    await bench.say(await bench.ask("q1"), answer("a1"))
    assert await bench.texts() == ["q1", "a1"]


async def test_the_same_request_again_is_no_second_turn(bench: Bench) -> None:
    body = {"model": "fake/echo", "messages": [{"role": "user", "content": "q"}], "session_id": "s"}
    request = ChatRequest.check(body)
    raw = json.dumps(body).encode()
    found = [await bench.broker.submit(raw, request, ANN, idempotency_key="k") for _ in range(3)]
    assert len({submitted.header["id"] for submitted in found}) == 1
    await bench.say(found[0].header, answer("a"))
    await bench.broker.submit(raw, request, ANN, idempotency_key="k")
    assert await bench.texts() == ["q", "a"]
    assert (await bench.sessions.find("s", ANN))["open"] == []


def _today() -> Any:
    from datetime import UTC, datetime

    return datetime.now(UTC).date()
