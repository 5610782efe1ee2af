"""Streamspool in fifteen tests: the first place to look. Read them from the top down; each has one idea.

One sentence has the rest in it: *an answer is a log, and everything else is a reader or a writer of it.* A client's request
makes a log in Redis. A worker appends what the provider says. Viewers read, as many as there are, from wherever they stopped.
An outcome seals it, and what follows from that (a session's turn, the ledger) happens once.

    1-2     what a log is              shared/log/entry.py, PROTOCOL.md beside it
    3-4     who reads it               api/live/
    5-7     who may write it           shared/log/streamlog.py, shared/log/writer.py, worker/generate.py
    8       how it is stored           shared/log/envelope.py
    9-10    what a client may do       shared/generations/broker.py
    11-13   what follows from an end   shared/generations/settlement.py, shared/features/
    14      what if Redis forgets      shared/generations/outcome.py
    15      the same, by the thousand  worker/batches/

All parts are real, the Valkey too; the fixtures are in the `conftest.py` beside this file. `desk` is both ends by hand: what
the API does with a request (`ask`), what a worker does with it (`attempt`, then `append`), what a reader finds (`entries`).
What can go wrong with each idea, and all that is left out here, is in the other folders of tests: CONTRIBUTING.md lists them.

    .venv/bin/pytest -n 0 -p no:randomly -v tests/fundamentals
"""

from __future__ import annotations

import asyncio

import pytest

from shared.errors import Damaged, Fenced, KeyReused, Sealed, Taken
from shared.log.decoding import by_name
from shared.log.entry import SEAL, Kind, Position, Status
from tests.fundamentals.conftest import ANN, BOB, DAY, Desk, completed, word
from tests.harness.records import error_in, outcome_with
from tests.harness.upstream import ScriptedUpstream, ending, words
from tests.support.batch_lab import Lab, few
from tests.support.live import COMPLETED
from tests.support.live import Bench as Hub
from tests.support.names import keys
from tests.worker.test_generate import WORD
from tests.worker.test_generate import Bench as Worker


async def test_01_an_answer_is_a_log(desk: Desk) -> None:
    """The request, an attempt, its chunks, the outcome. No second key says what state the answer is in: the log does."""
    header = await desk.ask("hello")
    assert (await desk.core.broker.find(header["id"], ANN)).status is Status.QUEUED

    writer = await desk.attempt(header)
    await writer.append([word("Good "), word("day.", finish="stop")])
    assert (await desk.core.broker.find(header["id"], ANN)).status is Status.IN_PROGRESS

    await desk.log.seal(header["id"], completed())
    assert (await desk.core.broker.find(header["id"], ANN)).status is Status.COMPLETED

    stored, body = await desk.log.request(header["id"])
    assert stored == header
    assert b"hello" in body.data
    kinds = [entry.kind for entry in await desk.entries(header)]
    assert kinds == [Kind.ATTEMPT, Kind.CHUNK, Kind.CHUNK, Kind.OUTCOME]


async def test_02_a_position_names_an_entry(desk: Desk) -> None:
    """`1-2` is the second chunk of the first attempt. It is the entry's id in Redis, and the `id:` of the event in SSE."""
    header = await desk.ask()
    writer = await desk.attempt(header)
    last = await writer.append([word("one "), word("two "), word("three ")])
    assert last == Position(1, 3) == Position.parse("1-3")

    assert [str(entry.position) for entry in await desk.entries(header)] == ["1-0", "1-1", "1-2", "1-3"]
    in_redis = await desk.redis.xrange(keys.log(header["id"]))
    assert [entry_id for entry_id, _ in in_redis] == [b"0-1", b"0-2", b"1-0", b"1-1", b"1-2", b"1-3"]

    (following,) = await desk.log.read(header["id"], Position(1, 2), 1)
    assert following.data == word("three ").payload


async def test_03_a_second_viewer_sees_the_same_bytes(hub: Hub) -> None:
    """Early, late, or after the end: what a viewer is sent is made of the log, not of what the others were sent."""
    writer = await hub.log_of()
    early = hub.watch(writer)
    await hub.say(writer, 1, 2)
    await early.until(b"w2")
    late = hub.watch(writer)
    await hub.say(writer, 3)
    await hub.log.seal(writer.generation_id, COMPLETED)
    await hub.end(early, late)
    afterwards = hub.watch(writer)
    await hub.end(afterwards)

    assert early.words == ["w1", "w2", "w3"]
    assert early.body == late.body == afterwards.body


async def test_04_resuming_misses_nothing_and_repeats_nothing(hub: Hub) -> None:
    """Wherever the connection broke: what was received, and what comes after its last `id:`, are the whole."""
    writer = await hub.log_of(1, 2, 3, 4)
    viewers = {cut: hub.watch(writer, cursor=Position(1, cut)) for cut in (1, 2, 3, 4)}
    await hub.say(writer, 5, 6)
    await hub.log.seal(writer.generation_id, COMPLETED)
    whole = hub.watch(writer)
    await hub.end(whole, *viewers.values())

    for cut, resumed in viewers.items():
        received, rest = whole.body[: -len(resumed.body)], resumed.body
        assert received + rest == whole.body
        assert received.endswith(b"\n\n")
        assert received.rpartition(b"id: ")[2].startswith(b"1-%d\n" % cut)
        assert resumed.words == [f"w{number}" for number in range(cut + 1, 7)]


async def test_05_the_seal_ends_it_and_nothing_can_follow(desk: Desk) -> None:
    """The outcome has the largest id there is, so Redis itself refuses what any writer adds later. The first one wins."""
    header = await desk.ask()
    writer = await desk.attempt(header)
    await writer.append([word("all", finish="stop")])
    await desk.log.seal(header["id"], completed())
    before = await desk.entries(header)

    with pytest.raises(Sealed):
        await writer.append([word("more")])
    with pytest.raises(Sealed):
        await desk.attempt(header, 2)
    with pytest.raises(Sealed) as refused:
        await desk.log.seal(header["id"], outcome_with(status="cancelled"))
    assert refused.value.outcome == completed()
    assert await desk.entries(header) == before
    assert before[-1].position == SEAL


async def test_06_a_newer_attempt_shuts_out_an_older_writer(desk: Desk) -> None:
    """A fence without a lock: `1-2` is smaller than `2-0`, and a Redis stream takes no id that is smaller than its last."""
    header = await desk.ask()
    old = await desk.attempt(header, 1)
    await old.append([word("old ")])
    new = await desk.attempt(header, 2)

    with pytest.raises(Fenced):
        await old.append([word("too late ")])
    with pytest.raises(Fenced):
        await desk.log.seal(header["id"], completed(), epoch=1)
    with pytest.raises(Taken):
        await desk.attempt(header, 1)
    await new.append([word("new ")])
    assert [str(entry.position) for entry in await desk.entries(header)] == ["1-0", "1-1", "2-0", "2-1"]


async def test_07_a_dead_workers_answer_is_taken_over_or_ends_with_an_error(
    worker: Worker, upstream: ScriptedUpstream
) -> None:
    """If it had said nothing, another worker asks again. If it had, asking again would say something else: the end says so."""
    script = upstream.script("fundamentals", [*words(2), *ending()])
    silent = await worker.request("fundamentals")
    await worker.attempt(silent, 1)
    await worker.generator.run(silent, 2)
    assert (await worker.summary(silent)).status is Status.COMPLETED
    assert await worker.text(silent) == "w0 w1 "

    speaking = await worker.request("fundamentals")
    await worker.attempt(speaking, 1, WORD)
    await worker.generator.run(speaking, 2)
    ended = await worker.summary(speaking)
    assert ended.status is Status.FAILED
    assert error_in(ended.outcome)["code"] == "generation_interrupted"
    assert await worker.text(speaking) == "word", "what was said is kept"
    assert len(script.calls) == 1, "the provider was asked for the silent one only"


async def test_08_pieces_are_stored_small_and_read_whole(desk: Desk) -> None:
    """Chunks differ in a word; the rest, the envelope, is stored with the first two. Readers get what was appended, whole."""
    header = await desk.ask()
    writer = await desk.attempt(header)
    chunks = [word(text) for text in "Once upon a time there was a log that forgot nothing".split()]
    await writer.append(chunks)

    stored = [by_name(fields) for _, fields in await desk.redis.xrange(keys.log(header["id"]), "1-1", "+")]
    assert [fields.get(b"d") for fields in stored[2:]] == b"a time there was a log that forgot nothing".split()
    assert [len(fields[b"c"]) for fields in stored[:2]] == [len(chunk.payload) for chunk in chunks[:2]]

    read = [entry.data for entry in await desk.entries(header) if entry.kind is Kind.CHUNK]
    assert read == [chunk.payload for chunk in chunks]


async def test_09_one_request_made_twice_is_one_generation(desk: Desk) -> None:
    """With an Idempotency-Key, a client that lost the reply sends the request again, and joins what it began."""
    submitted = await asyncio.gather(*(desk.submit("hello", key="k") for _ in range(5)))
    assert len({one.header["id"] for one in submitted}) == 1
    assert sorted(one.replayed for one in submitted) == [False, True, True, True, True]
    assert len(await desk.log.open_ids()) == 1

    with pytest.raises(KeyReused):
        await desk.submit("something else", key="k")
    assert not (await desk.submit("hello", BOB, key="k")).replayed, "a key is its tenant's"


async def test_10_cancelling_keeps_what_was_said(desk: Desk) -> None:
    """To cancel is to seal: the text so far stays, what it used is counted, and the worker finds that it may not go on."""
    header = await desk.ask("twelve chars")
    writer = await desk.attempt(header)
    await writer.append([word("eight ch")])
    summary = await desk.core.broker.cancel(header["id"], ANN)

    assert summary.status is Status.CANCELLED
    assert summary.position == Position(1, 1)
    assert summary.outcome
    assert summary.outcome["usage"] == {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    with pytest.raises(Sealed):
        await writer.append([word("aracters")])
    chunks, _ = await desk.core.broker.chunks(header, 1)
    assert chunks == [word("eight ch").payload]


async def test_11_settlement_happens_once(desk: Desk) -> None:
    """What follows from an outcome survives the process that sealed it, and is not done twice by those that come after."""
    header = await desk.ask()
    await desk.attempt(header)
    await desk.log.seal(header["id"], completed())  # and here the worker died
    assert await desk.core.ledger.read("ann", DAY, DAY) == []

    await asyncio.gather(*(desk.core.settlement.settle_left_over() for _ in range(5)))
    await desk.core.settlement.settle(header["id"])
    (row,) = await desk.core.ledger.read("ann", DAY, DAY)
    assert row["requests"] == 1


async def test_12_a_turn_of_a_session(desk: Desk) -> None:
    """The session puts what was said before in front of the next request. It learns of an answer when that is settled."""
    first = await desk.ask("My name is Ann.", session_id="s")
    writer = await desk.attempt(first)
    await writer.append([word("Hello Ann.", finish="stop")])
    await desk.core.outcomes.conclude(first["id"], 1, Status.COMPLETED)

    second = await desk.ask("What is my name?", session_id="s")
    assert [one["session"]["turn"] for one in (first, second) if one["session"]] == [1, 2]
    history, _ = await desk.core.outcomes.transcripts.messages(second, {})
    assert [message["content"] for message in history] == ["My name is Ann.", "Hello Ann."]


async def test_13_the_ledger_adds_up_what_was_used(desk: Desk) -> None:
    """A row for each tenant, day and model; a generation is added when it is settled."""
    for caller, tokens in ((ANN, 10), (ANN, 20), (BOB, 5)):
        header = await desk.ask("hello", caller)
        await desk.attempt(header)
        await desk.core.outcomes.seal(header, completed(tokens), attempt=1)

    (anns,) = await desk.core.ledger.read("ann", DAY, DAY)
    assert (anns["model"], anns["requests"], anns["completed_requests"], anns["total_tokens"]) == (
        "fake/echo",
        2,
        2,
        30,
    )
    (bobs,) = await desk.core.ledger.read("bob", DAY, DAY)
    assert bobs["total_tokens"] == 5


async def test_14_a_hole_is_never_an_answer(desk: Desk) -> None:
    """A server comes back without an entry it had. Positions have no gaps, so every reader notices, and no end hides it."""
    header = await desk.ask(session_id="s")
    writer = await desk.attempt(header)
    await writer.append([word("Do "), word("not "), word("press it.", finish="stop")])
    assert await desk.redis.xdel(keys.log(header["id"]), "1-2") == 1

    with pytest.raises(Damaged):
        await desk.entries(header)
    assert await desk.core.outcomes.conclude(header["id"], 1, Status.COMPLETED) is Status.FAILED
    summary = await desk.core.broker.find(header["id"], ANN)
    assert error_in(summary.outcome)["code"] == "stream_lost"
    assert await desk.core.sessions.messages("s", ANN) == [], "no session remembers half an answer"


async def test_15_a_line_of_a_batch_is_a_generation(lab: Lab) -> None:
    """A batch hands out its lines: each is a log as above, answered by whichever worker is there, and its result is a line."""
    lab.answering.clear()
    batch_id = await lab.start(few(3))
    async with lab.running(batch_id):
        await lab.until_open(3)
        headers = [(await lab.log.request(generation_id))[0] for generation_id, _ in await lab.log.open_ids()]
        assert {header["batch"]["id"] for header in headers if header["batch"]} == {batch_id}
        lab.answering.set()
        ended = await lab.ended(batch_id)

    assert ended["status"] == "completed"
    results = await lab.results(ended["output_file_id"])
    assert sorted(results) == ["line-0", "line-1", "line-2"]
    assert results["line-1"]["response"]["body"]["choices"][0]["message"]["content"] == "line 1"
