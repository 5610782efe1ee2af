"""Chains of responses: each keeps what it added, all of them are read, and they last as long as the newest of them."""

from __future__ import annotations

import json
from typing import Any
from unittest.mock import AsyncMock

import pytest
from redis.exceptions import ConnectionError

from shared.chat.request import ChatRequest
from shared.config.settings import Settings
from shared.errors import FileStorageFailed, NotFound, RequestLost, Unavailable
from shared.features.chains import NAMED
from shared.generations.caller import Caller
from shared.generations.front import Front
from shared.log.appender import Appender
from shared.log.entry import Status
from shared.log.records import Header
from shared.log.streamlog import StreamLog
from shared.store.commands import watch
from shared.store.redis import ArqRedis
from shared.store.transaction import commit
from tests.harness.records import error_with
from tests.shared.features.test_sessions import ANN, BOB, Bench, answer
from tests.support.names import keys

KEPT_MS = 1_000_000


@pytest.fixture
async def bench(redis: ArqRedis, log: StreamLog, appender: Appender) -> Bench:
    catalogue = {"providers": {"fake": {"models": ["echo", "other"], "open": False}}, "aliases": {}}
    await redis.set(keys.catalogue, json.dumps(catalogue), ex=60)
    return Bench(redis, log, appender, Settings(retention_s=100))


async def asked(
    bench: Bench, messages: list[Any], previous: str | None = None, who: Caller = ANN, **fields: Any
) -> Header:
    before = await bench.core.chains.keep(who.tenant, previous, KEPT_MS) if previous else []
    body = {"model": "fake/echo", "messages": messages, "responses": fields.pop("terms", {}), **fields}
    request = ChatRequest.check({**body, "messages": messages or user("")})
    request.store = True
    front = Front("responses", previous=before)
    return (await bench.broker.submit(json.dumps(body).encode(), request, who, front=front)).header


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


async def chain(bench: Bench, length: int) -> list[Header]:
    made: list[Header] = []
    for number in range(length):
        made.append(await asked(bench, user(f"q{number}"), made[-1]["id"] if made else None))
        await bench.say(made[-1], answer(f"a{number}"))
    return made


async def prompt(bench: Bench, header: Header, messages: list[Any]) -> list[Any]:
    before, new = await bench.core.outcomes.transcripts.messages(header, {"messages": messages})
    return [*before, *new]


def said(length: int) -> list[str]:
    return [text for number in range(length) for text in (f"q{number}", f"a{number}")]


async def test_a_long_chain_is_read_whole_and_each_keeps_its_own(bench: Bench) -> None:
    length = 2 * NAMED + 5
    made = await chain(bench, length)
    last = await asked(bench, user("now"), made[-1]["id"])
    assert [message["content"] for message in await prompt(bench, last, user("now"))] == [*said(length), "now"]
    for header in made:
        _, stored = await bench.log.request(header["id"])
        assert len(json.loads(stored.data)["messages"]) == 1
        assert len(header.get("previous") or ()) <= NAMED


async def test_all_of_a_chain_lasts_as_long_as_its_newest(bench: Bench) -> None:
    made = await chain(bench, 20)
    for header in made:  # as if what was promised of each were nearly over
        for name in (keys.log(header["id"]), keys.settled(header["id"])):
            await bench.redis.pexpire(name, 50_000)
    last = await asked(bench, user("now"), made[-1]["id"])
    for header in made:
        assert await bench.redis.pttl(keys.log(header["id"])) > 900_000
        assert await bench.redis.pttl(keys.settled(header["id"])) > 900_000
    assert [message["content"] for message in await prompt(bench, last, [])] == said(20)


async def test_what_is_deleted_is_there_for_those_that_go_on_from_it_alone(bench: Bench) -> None:
    made = await chain(bench, 3)
    await bench.broker.delete(made[0]["id"], ANN)
    with pytest.raises(NotFound):
        await bench.broker.find(made[0]["id"], ANN)
    assert made[0]["id"] not in [summary.header["id"] async for summary in bench.broker.listed(ANN)]
    last = await asked(bench, user("now"), made[-1]["id"])
    assert [message["content"] for message in await prompt(bench, last, [])] == said(3)
    await bench.broker.delete(last["id"], ANN)
    assert not await bench.redis.exists(keys.log(last["id"]))


async def test_a_chain_with_a_hole_is_refused(bench: Bench) -> None:
    made = await chain(bench, 3)
    last = await asked(bench, [], made[-1]["id"])
    await bench.redis.delete(keys.log(made[1]["id"]))
    with pytest.raises(NotFound) as caught:
        await prompt(bench, last, [])
    assert caught.value.code == "previous_response_not_found"
    with pytest.raises(NotFound):
        await bench.core.chains.keep("ann", made[-1]["id"], KEPT_MS)
    with pytest.raises(NotFound):
        await bench.core.chains.keep(BOB.tenant, made[0]["id"], KEPT_MS)


@pytest.mark.parametrize("why", [None, FileStorageFailed(), RequestLost(), KeyError("a bug")], ids=repr)
async def test_what_goes_on_from_what_is_gone_can_be_ended(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, why: Exception | None
) -> None:
    """By its owner and by the reaper, whatever is the matter with those before it."""
    made = await chain(bench, 2)
    cancelled, deleted, given_up = [await asked(bench, user("now"), made[-1]["id"]) for _ in range(3)]
    if why is None:
        await bench.redis.delete(keys.log(made[0]["id"]))
    else:
        monkeypatch.setattr(bench.core.chains, "messages", AsyncMock(side_effect=why))
    assert (await bench.broker.cancel(cancelled["id"], ANN)).status is Status.CANCELLED
    await bench.broker.delete(deleted["id"], ANN)
    assert not await bench.redis.exists(keys.log(deleted["id"]))
    await bench.broker.give_up(given_up["id"], error_with(code="no_worker"))
    assert (await bench.broker.find(given_up["id"], ANN)).status is Status.FAILED
    with pytest.raises(type(why) if why else NotFound):
        await prompt(bench, cancelled, user("now"))


async def test_an_end_waits_for_a_redis_that_is_away(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    made = await chain(bench, 1)
    last = await asked(bench, user("now"), made[-1]["id"])
    with monkeypatch.context() as patch:
        patch.setattr(bench.core.chains, "messages", AsyncMock(side_effect=ConnectionError("away")))
        with pytest.raises(Unavailable):
            await bench.broker.cancel(last["id"], ANN)
    assert (await bench.broker.cancel(last["id"], ANN)).status is Status.CANCELLED


async def test_what_is_deleted_as_something_goes_on_from_it_is_hidden(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner's DELETE has looked, and before it deletes, somebody goes on from it, for less long than it is kept anyway."""
    (first,) = await chain(bench, 1)
    assert await bench.redis.pttl(keys.log(first["id"])) > 10_000
    kept = False

    async def slow(*given: Any) -> Any:
        nonlocal kept
        seen = await watch(*given)
        if not kept:
            kept = True
            assert await bench.core.chains.keep(ANN.tenant, first["id"], 10_000) == [first["id"]]
        return seen

    with monkeypatch.context() as patch:
        patch.setattr("shared.store.transaction.watch", slow)
        await bench.log.delete(first["id"], ANN.tenant)
    assert kept
    with pytest.raises(NotFound):
        await bench.broker.find(first["id"], ANN)
    last = await asked(bench, user("now"), first["id"])
    assert [message["content"] for message in await prompt(bench, last, [])] == said(1)


async def test_what_is_gone_before_it_could_be_kept_is_missing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """It expires, or is deleted, between the look and the longer life."""
    (first,) = await chain(bench, 1)
    await bench.redis.pexpire(keys.log(first["id"]), 50_000)

    async def late(pipe: Any) -> Any:
        await bench.redis.delete(keys.log(first["id"]))
        return await commit(pipe)

    monkeypatch.setattr("shared.log.removal.commit", late)
    with pytest.raises(NotFound):
        await bench.core.chains.keep(ANN.tenant, first["id"], KEPT_MS)


async def test_a_fork_knows_its_own_past_alone(bench: Bench) -> None:
    made = await chain(bench, 3)
    fork = await asked(bench, user("other"), made[0]["id"])
    assert [message["content"] for message in await prompt(bench, fork, user("other"))] == ["q0", "a0", "other"]


async def test_instructions_hold_for_their_own_response(bench: Bench) -> None:
    first = await asked(bench, [{"role": "system", "content": "be brief"}, *user("q")], terms={"instructions": True})
    await bench.say(first, answer("a"))
    body: dict[str, Any] = {
        "messages": [{"role": "system", "content": "be long"}, *user("now")],
        "responses": {"instructions": True},
    }
    second = await asked(bench, body["messages"], first["id"], terms=body["responses"])
    before, new = await bench.core.outcomes.transcripts.messages(second, body)
    assert [message["content"] for message in [*before, *new]] == ["be long", "q", "a", "now"]
    assert new == user("now")


async def test_reasoning_goes_back_to_the_same_model_while_tools_are_called(bench: Bench) -> None:
    call = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}, "signed": "x"}
    thought = {"role": "assistant", "reasoning_content": "why", "tool_calls": [call]}
    output = [{"role": "tool", "tool_call_id": "c", "content": "7"}]
    first = await asked(bench, user("q"))
    await bench.say(first, thought, finish="tool_calls")
    second = await asked(bench, output, first["id"])
    assert (await prompt(bench, second, output))[1]["reasoning_content"] == "why"
    assert (await prompt(bench, second, output))[1]["tool_calls"][0]["signed"] == "x"
    await bench.say(second, answer("so"))
    third = await asked(bench, user("and"), second["id"])
    plain = (await prompt(bench, third, user("and")))[1]
    assert plain == {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
    }
    other = await asked(bench, output, first["id"], model="fake/other")
    assert "reasoning_content" not in (await prompt(bench, other, output))[1]


async def test_a_call_that_was_cut_is_none(bench: Bench) -> None:
    calls = [
        {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}},
        {"index": 1, "id": "d", "type": "function", "function": {"name": "g", "arguments": '{"x"'}},
    ]
    first = await asked(bench, user("q"))
    await bench.say(first, {"role": "assistant", "content": "well", "tool_calls": calls}, finish="length")
    (_, message) = await prompt(bench, await asked(bench, [], first["id"]), [])
    assert [one["id"] for one in message["tool_calls"]] == ["c"]
    bare = await asked(bench, user("q"))
    await bench.say(bare, {"role": "assistant", "tool_calls": calls[1:]}, finish="length")
    assert await prompt(bench, await asked(bench, [], bare["id"]), []) == user("q")
