"""Resuming: whatever was received before a cut, and whatever comes after it, are the whole, frame by frame."""

from __future__ import annotations

import json
import uuid
from contextlib import ExitStack
from typing import Any

import pytest

from shared.log.decoding import decode
from shared.log.entry import Kind
from shared.log.envelope import Envelopes
from tests.harness.processes import wait_until
from tests.harness.store import Store
from tests.harness.upstream import Pause, ending, words
from tests.support.names import keys
from tests.support.wire import DONE_FRAME, SEAL_ID, Client, Register, end_error, frames, position, refused

VIEWS = {"native": "/v1/streams/{}", "openai": "/v1/chat/completions/{}?stream=true"}


def request(cursor: str, form: str) -> dict[str, Any]:
    """A cursor as request options."""
    return {"headers": {"last-event-id": cursor}} if form == "header" else {"params": {form: cursor}}


def resume(client: Client, generation_id: str, cursor: str, form: str, view: str = "native") -> bytes:
    options = request(cursor, form)
    if view == "openai" and "params" in options:
        options["params"] |= {"stream": "true"}
    response = client.get(VIEWS[view].format(generation_id), **options)
    assert response.status_code in (200, 204), response.text
    assert bool(response.content) == (response.status_code == 200)
    return response.content


FORMS = ["header", "last_event_id", "starting_after"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("include_usage", [False, True])
def test_every_cut_of_a_finished_stream(client: Client, view: str, form: str, include_usage: bool) -> None:
    options = {"include_usage": include_usage}
    posted = client.stream("fake/lorem?tokens=4", stream_options=options, ids=True)
    generation_id, whole = posted.headers["x-stream-id"], frames(posted.content)
    for n in range(len(whole) + 1):
        rest = b"".join(whole[n:])
        assert resume(client, generation_id, str(n), form, view) == rest
        at = position(whole[n - 1]) if n else "1-0"
        assert resume(client, generation_id, at, form, view) == rest


def test_every_cut_of_a_failed_stream(client: Client) -> None:
    posted = client.stream("fake/lorem?tokens=9&cut=3", ids=True)
    generation_id, whole = posted.headers["x-stream-id"], frames(posted.content)
    for n in range(len(whole) + 1):
        assert resume(client, generation_id, str(n), "header") == b"".join(whole[n:])
    for n, frame in enumerate(whole[:-2], 1):
        assert resume(client, generation_id, position(frame), "header") == b"".join(whole[n:])
    assert resume(client, generation_id, SEAL_ID, "header") == b""


def test_every_cut_of_a_running_stream(client: Client, scripted: Register) -> None:
    pause = Pause()
    model = scripted([*words(4), pause, *words(3)[1:], *ending()]).model
    with ExitStack() as stack, client.streaming(model) as first:
        said = first.take(5)
        viewers = []
        for n in range(len(said) + 1):
            for cursor in (str(n), f"1-{n}"):
                for form in FORMS:
                    viewer = stack.enter_context(client.watching(first.id, **request(cursor, form)))
                    viewers.append((n, viewer))
        assert len(viewers) == 36
        pause.go()
        tails = [(n, viewer.rest()) for n, viewer in viewers]
    whole = frames(client.whole(first.id))
    assert len(whole) == 10
    for n, tail in tails:
        assert tail == b"".join(whole[n:])


def test_a_client_that_counted_goes_on_without_ids(client: Client, scripted: Register) -> None:
    """The plain POST has no ids; a count is enough, keep-alives or not, cut wherever it was."""
    pause = Pause()
    with client.streaming(scripted([*words(6), pause, *ending()]).model) as first:
        got = first.take(4)
        first.close()
        pause.go()
        rest = frames(client.whole(first.id, params={"starting_after": str(len(got))}))
    plain = [frame.partition(b"\n")[2] for frame in rest]
    whole = [frame.partition(b"\n")[2] for frame in frames(client.whole(first.id))]
    assert got + plain == whole
    assert plain[-1] == DONE_FRAME


def test_resuming_again_and_again(client: Client) -> None:
    """One frame a connection, by position, from the first to the 204."""
    generation_id = client.stream("fake/lorem?tokens=5").headers["x-stream-id"]
    whole = frames(client.whole(generation_id))
    got: list[bytes] = []
    while True:
        options = {"headers": {"last-event-id": position(got[-1])}} if got else {}
        with client.view("GET", f"/v1/streams/{generation_id}", **options) as viewer:
            if viewer.response.status_code == 204:
                break
            got += viewer.take(1)
    assert got == whole


@pytest.mark.parametrize("form", FORMS)
def test_the_end_is_204(client: Client, form: str) -> None:
    generation_id = client.stream("fake/echo").headers["x-stream-id"]
    response = client.get(f"/v1/streams/{generation_id}", **request(SEAL_ID, form))
    assert response.status_code == 204
    assert response.content == b""
    assert response.headers["x-request-id"]


def test_the_header_beats_the_query(client: Client) -> None:
    generation_id = client.stream("fake/echo").headers["x-stream-id"]
    whole = frames(client.whole(generation_id))
    for query in ("starting_after", "last_event_id"):
        rest = client.whole(generation_id, headers={"last-event-id": "1-2"}, params={query: "1"})
        assert rest == b"".join(whole[2:])


@pytest.mark.parametrize(
    "query",
    ["last_event_id=1&starting_after=2", "starting_after=1&starting_after=2", "last_event_id=1-1&last_event_id=2"],
)
def test_two_cursors_that_disagree_are_refused(client: Client, query: str) -> None:
    generation_id = client.stream("fake/echo").headers["x-stream-id"]
    refused(client.get(f"/v1/streams/{generation_id}?{query}"), 400, "invalid_cursor")
    assert client.get(f"/v1/streams/{generation_id}?last_event_id=1&starting_after=1").status_code == 200


MALFORMED = {
    "empty": "",
    "word": "abc",
    "dollar": "$",
    "star": "*",
    "newest": "+",
    "negative": "-1",
    "negative sequence": "1--1",
    "no sequence": "1-",
    "no epoch": "-1-1",
    "three parts": "1-2-3",
    "leading zero": "01",
    "leading zero in a position": "1-01",
    "signed": "+1",
    "fraction": "1.0",
    "exponent": "1e3",
    "hexadecimal": "0x1",
    "underscore": "1_0",
    "comma": "1,2",
    "many digits": "9" * 400,
    "large": "1" * 10_000,
    "large garbage": "x" * 10_000,
    "json": '{"position": "1-1"}',
    "redis injection": "1-1\\r\\nFLUSHALL",
}


@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.parametrize("form", FORMS)
def test_a_malformed_cursor_is_refused(client: Client, name: str, form: str) -> None:
    generation_id = client.stream("fake/echo").headers["x-stream-id"]
    response = client.get(f"/v1/streams/{generation_id}", **request(MALFORMED[name], form))
    error = refused(response, 400, "invalid_cursor")
    assert len(error["message"]) < 300


@pytest.mark.parametrize("cursor", ["١", "1١", "1-١", "1-1١", "１", "²", "1\n", "1-1\n", " 1", "1 ", "1\0", "1-1\0"])
def test_a_cursor_of_other_characters_is_refused(client: Client, cursor: str) -> None:
    generation_id = client.stream("fake/lorem?tokens=20").headers["x-stream-id"]
    response = client.get(f"/v1/streams/{generation_id}", params={"starting_after": cursor})
    refused(response, 400, "invalid_cursor")


def test_a_malformed_cursor_on_the_openai_view(client: Client) -> None:
    generation_id = client.stream("fake/echo").headers["x-stream-id"]
    response = client.get(f"/v1/chat/completions/{generation_id}?stream=true&starting_after=x")
    refused(response, 400, "invalid_cursor")


AHEAD = ["1-99", "2-0", "2-1", "7", "99", "999999999", "9007199254740991-1", "9999999999999999-0"]


@pytest.mark.parametrize("cursor", AHEAD)
def test_ahead_of_a_finished_stream(client: Client, cursor: str) -> None:
    generation_id = client.stream("fake/echo").headers["x-stream-id"]
    refused(client.get(f"/v1/streams/{generation_id}", **request(cursor, "header")), 400, "cursor_ahead")


def test_ahead_of_a_running_stream_is_refused_at_once(client: Client, scripted: Register) -> None:
    pause = Pause()
    with client.streaming(scripted([*words(2), pause, *ending()]).model) as first:
        first.take(3)
        for cursor in [*AHEAD, "4", "1-4", SEAL_ID]:
            response = client.get(f"/v1/streams/{first.id}", **request(cursor, "header"))
            refused(response, 400, "cursor_ahead")


@pytest.mark.parametrize("generation_id", ["chatcmpl-" + "0" * 32, "nobody", "chatcmpl-*", "%2e%2e", "a" * 5000])
@pytest.mark.parametrize("cursor", ["", "1", "1-1", "x"])
def test_an_unknown_stream_is_not_found(client: Client, generation_id: str, cursor: str) -> None:
    headers = {"last-event-id": cursor} if cursor else {}
    refused(client.get(f"/v1/streams/{generation_id}", headers=headers), 404, "not_found")
    refused(client.get(f"/v1/chat/completions/{generation_id}?stream=true", headers=headers), 404, "not_found")


# ---- logs that were damaged behind the broker's back


def store_whole(store: Store, generation_id: str) -> None:
    """Makes the log one of version 1, without pieces."""
    key = keys.log(generation_id)
    entries = decode(store.xrange(key), None, Envelopes())
    with store.pipeline() as pipe:
        pipe.delete(key)
        for entry in entries:
            pipe.xadd(key, {entry.kind: entry.data}, id=str(entry.position))
        pipe.expire(key, 60)
        pipe.execute()


def streamed(client: Client) -> tuple[str, list[bytes]]:
    """A finished stream and the frames of its view. A replay would leave it at hand, and nobody would notice damage."""
    first = client.stream("fake/lorem?tokens=6")
    *said, done = frames(first.content)
    numbered = (b"id: 1-%d\n%b" % (seq, frame) for seq, frame in enumerate(said, 1))
    wait_until(lambda: not client.state(first.headers["x-stream-id"])["viewers"])
    return first.headers["x-stream-id"], [*numbered, b"id: %b\n%b" % (SEAL_ID.encode(), done)]


def test_below_what_is_kept_is_gone_with_the_floor(client: Client, store: Store) -> None:
    generation_id, whole = streamed(client)
    store_whole(store, generation_id)
    assert store.xdel(keys.log(generation_id), "1-1", "1-2", "1-3") == 3
    for cursor in ("0", "1", "2", "1-0", "1-1", "1-2"):
        error = refused(client.get(f"/v1/streams/{generation_id}", **request(cursor, "header")), 410, "cursor_expired")
        assert error["floor"] == "1-3"
    refused(client.get(f"/v1/streams/{generation_id}"), 410, "cursor_expired")
    for cursor in ("1-3", "3", "1-5"):
        rest = whole[int(cursor[-1]) :]
        assert resume(client, generation_id, cursor, "header") == b"".join(rest)


def test_pieces_of_what_is_not_kept_are_not_kept_either(client: Client, store: Store) -> None:
    """What can be shown of the attempt begins with the next chunk that is stored whole."""
    generation_id, whole = streamed(client)
    assert store.xdel(keys.log(generation_id), "1-1", "1-2") == 2
    pieces = [entry.position.seq for entry in decode(store.xrange(keys.log(generation_id))) if entry.kind is Kind.PIECE]
    assert pieces[0] == 3
    floor = f"1-{pieces[-1]}"
    for cursor in ("0", "1-0", "1-2", "1-3"):
        error = refused(client.get(f"/v1/streams/{generation_id}", **request(cursor, "header")), 410, "cursor_expired")
        assert error["floor"] == floor
    assert resume(client, generation_id, floor, "header") == b"".join(whole[pieces[-1] :])


@pytest.mark.parametrize("lost", [2, 4, 6])
def test_what_stands_before_a_hole_is_shown_and_then_that_the_rest_is_lost(
    client: Client, store: Store, lost: int
) -> None:
    generation_id, whole = streamed(client)
    assert store.xdel(keys.log(generation_id), f"1-{lost}") == 1
    *shown, error, done = frames(client.get(f"/v1/streams/{generation_id}").content)
    assert shown == whole[: lost - 1]
    assert b'"stream_lost"' in error
    assert b"[DONE]" in done
    for cursor in (f"1-{lost - 1}", f"1-{lost}", f"1-{lost + 1}"):
        rest = frames(client.get(f"/v1/streams/{generation_id}", **request(cursor, "header")).content)
        assert len(rest) == 2, "nothing is shown of what stands behind it"
        assert b'"stream_lost"' in rest[0]


def test_a_list_tells_which_answer_lost_a_part(client: Client, store: Store) -> None:
    """And shows the others as they are."""
    kept, lost = (
        client.stream("fake/lorem?tokens=6", store=True, metadata={"of": "holes"}).headers["x-stream-id"]
        for _ in range(2)
    )
    wait_until(lambda: not client.state(lost)["viewers"])
    store.xdel(keys.log(lost), "1-3")
    found = {one["id"]: one for one in client.get("/v1/chat/completions?metadata[of]=holes").json()["data"]}
    assert (found[kept]["status"], "error" in found[kept]) == ("completed", False)
    assert (found[lost]["status"], found[lost]["error"]["code"]) == ("failed", "stream_lost")
    texts = [found[one]["choices"][0]["message"]["content"] for one in (kept, lost)]
    assert texts[0].startswith(texts[1])
    assert len(texts[1]) < len(texts[0])


def test_a_damaged_log_is_not_passed_off_as_an_answer(client: Client, store: Store) -> None:
    generation_id = client.stream("fake/lorem?tokens=6").headers["x-stream-id"]
    wait_until(lambda: not client.state(generation_id)["viewers"])
    store.xdel(keys.log(generation_id), "1-2")
    response = client.get(f"/v1/chat/completions/{generation_id}")
    assert response.status_code >= 400
    assert response.json()["error"]["code"] != "internal_error", "a known condition, not a bug of ours"


def test_a_damaged_log_can_be_cancelled_and_deleted(client: Client, store: Store, scripted: Register) -> None:
    pause = Pause()
    with client.streaming(scripted([*words(4), pause, *ending()]).model) as first:
        first.take(5)
        store.xdel(keys.log(first.id), "1-2")
        assert client.cancel(first.id).status_code == 200
        first.rest()
    assert client.http.delete(f"/v1/streams/{first.id}").status_code == 200


def test_a_log_that_goes_away_ends_its_views_with_an_error(client: Client, store: Store, scripted: Register) -> None:
    """Lost while it runs: nobody tells the viewers, yet none of them waits for ever or takes it for the end."""
    pause = Pause()
    with (
        client.streaming(scripted([*words(2), pause, *ending()]).model) as lost,
        client.streaming(scripted([*words(2), pause, *ending()]).model) as expired,
        client.watching(lost.id) as viewer,
    ):
        for watched in (lost, expired, viewer):
            watched.take(3)
        store.delete(keys.log(lost.id))
        store.pexpire(keys.log(expired.id), 1)
        for watched in (lost, expired, viewer):
            assert end_error(watched.rest())["code"] == "stream_lost"
    for view in VIEWS.values():
        refused(client.get(view.format(lost.id)), 404)


def test_deleting_ends_the_views(client: Client, scripted: Register) -> None:
    pause = Pause()
    with client.streaming(scripted([*words(2), pause, *ending()]).model) as first, client.watching(first.id) as viewer:
        first.take(3)
        viewer.take(3)
        assert client.http.delete(f"/v1/streams/{first.id}").json()["deleted"]
        for watched in (first, viewer):
            assert end_error(watched.rest())["code"] in ("generation_cancelled", "stream_gone")


# ---- logs with more than one attempt that spoke


@pytest.fixture
def replaced(client: Client, store: Store) -> str:
    """A finished log whose first attempt said something before the second one began, written by hand."""
    generation_id = f"chatcmpl-{uuid.uuid4().hex}"
    key = keys.log(generation_id)

    def add(at: str, kind: str, value: dict[str, Any]) -> None:
        store.xadd(key, {kind: json.dumps(value)}, id=at)

    header = {"id": generation_id, "owner": "local", "model": "fake/echo", "created_at_ms": 1, "n": 1}
    add("0-1", "r", {"v": 1, **header, "include_usage": False, "on_interruption": "fail", "metadata": None})
    add("0-2", "b", {})
    for attempt in (1, 2):
        add(f"{attempt}-0", "a", {"worker": "w", "at_ms": 1000, "token": "t", "reason": "queued"})
        for seq in (1, 2, 3):
            delta = {"content": f"{attempt}-{seq} "}
            add(f"{attempt}-{seq}", "c", {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
    figures = {"usage": None, "usage_source": None, "finish_reasons": ["stop"]}
    add(SEAL_ID, "o", {"status": "completed", "ended_at_ms": 2000, "by": "w", "error": None, **figures})
    store.expire(key, 60)
    return generation_id


def test_a_new_viewer_sees_the_last_attempt_only(client: Client, replaced: str) -> None:
    for view in VIEWS.values():
        assert [position(frame) for frame in frames(client.get(view.format(replaced)).content)] == [
            "2-1",
            "2-2",
            "2-3",
            SEAL_ID,
        ]
    answer = client.get(f"/v1/chat/completions/{replaced}").json()
    assert answer["choices"][0]["message"]["content"] == "2-1 2-2 2-3 "


@pytest.mark.parametrize("cursor", ["1-0", "1-1", "1-3"])
def test_a_native_viewer_of_a_replaced_attempt_is_told_to_start_again(
    client: Client, replaced: str, cursor: str
) -> None:
    marker, *rest = frames(client.whole(replaced, headers={"last-event-id": cursor}))
    assert marker == b'id: 2-0\nevent: attempt\ndata: {"attempt":2}\n\n'
    assert [position(frame) for frame in rest] == ["2-1", "2-2", "2-3", SEAL_ID]


def test_an_openai_viewer_of_a_replaced_attempt_gets_an_error(client: Client, replaced: str) -> None:
    """Never two attempts spliced into one text."""
    response = client.get(f"/v1/chat/completions/{replaced}?stream=true&starting_after=1-2")
    error = end_error(response.content)
    assert error["code"] == "generation_interrupted"
    assert "by its id" in error["message"]  # another POST would start, and pay for, a second answer
    assert len(frames(response.content)) == 2


def test_frames_counted_in_a_replaced_attempt_count_for_nothing(client: Client, replaced: str) -> None:
    response = client.get(f"/v1/streams/{replaced}?starting_after=2")
    error = refused(response, 409, "attempt_replaced")
    assert response.headers["x-should-retry"] == "false"
    rest = frames(client.whole(replaced, params={"starting_after": error["restart_from"]}))
    assert [position(frame) for frame in rest] == ["2-1", "2-2", "2-3", SEAL_ID]


def test_resuming_within_the_last_attempt(client: Client, replaced: str) -> None:
    for seq in (0, 1, 2, 3):
        rest = frames(client.whole(replaced, headers={"last-event-id": f"2-{seq}"}))
        assert [position(frame) for frame in rest] == [*(f"2-{i}" for i in range(seq + 1, 4)), SEAL_ID]
