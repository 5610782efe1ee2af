"""What a program with the official OpenAI SDK for Python does, run by any version of it."""

import asyncio
import base64
import hmac
import json
import time
from collections.abc import Callable, Iterable
from typing import Any

import harness
import openai
from harness import ANSWER, CALLS, MESSAGES, TEXT, THOUGHT, TOOLS, raises
from openai.types.chat import ChatCompletion, ChatCompletionChunk


def create(client: openai.OpenAI, model: str = "fake/echo", **options: Any) -> Any:
    return client.chat.completions.create(model=model, messages=MESSAGES, **options)


def said(chunks: Iterable[Any]) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def view(client: openai.OpenAI, path: str, params: dict[str, Any] | None = None, last: str = "") -> Any:
    """A GET view, read with the SDK's own parser of event streams. The SDK asks for JSON unless told otherwise."""
    options: Any = {
        "params": params or {},
        "headers": {"Accept": "text/event-stream", **({"Last-Event-ID": last} if last else {})},
    }
    kinds: Any = {"cast_to": ChatCompletionChunk, "stream_cls": openai.Stream[ChatCompletionChunk]}
    return client.get(path, stream=True, options=options, **kinds)


def check_whole(client: openai.OpenAI) -> None:
    answer = create(client)
    assert answer.choices[0].message.content == "one two three"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage.completion_tokens == 3


def check_stream(client: openai.OpenAI) -> None:
    chunks = list(create(client, stream=True))
    assert said(chunks) == "one two three"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert len({chunk.id for chunk in chunks}) == 1


def check_stream_with_usage(client: openai.OpenAI) -> None:
    chunks = list(create(client, stream=True, stream_options={"include_usage": True}))
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].choices == []


def check_stream_with_keepalives(client: openai.OpenAI) -> None:
    assert said(create(client, "scripted/client-slow", stream=True)) == TEXT


def check_stream_with_ids_and_keepalives(client: openai.OpenAI) -> None:
    stream = create(client, "scripted/client-slow", stream=True, extra_headers={"X-Stream-Ids": "1"})
    assert said(stream) == TEXT


def check_stream_helper(client: openai.OpenAI) -> None:
    helper = getattr(client.chat.completions, "stream", None) or client.beta.chat.completions.stream
    with helper(model="scripted/client-slow", messages=MESSAGES) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_completion()
    assert "content.delta" in kinds
    assert final.choices[0].message.content == TEXT
    assert final.choices[0].message.role == "assistant"


def check_tool_calls(client: openai.OpenAI) -> None:
    helper = getattr(client.chat.completions, "stream", None) or client.beta.chat.completions.stream
    with helper(model="scripted/client-tools", messages=MESSAGES, tools=TOOLS) as stream:
        streamed: Any = stream.get_final_completion()
    for answer in (streamed, create(client, "scripted/client-tools")):
        calls = answer.choices[0].message.tool_calls
        assert [(call.id, call.function.name, json.loads(call.function.arguments)) for call in calls] == CALLS


def check_reasoning(client: openai.OpenAI) -> None:
    """The SDK knows no such field, and hands it on."""
    deltas = [chunk.choices[0].delta for chunk in create(client, "scripted/client-thinks", stream=True)]
    assert "".join(getattr(delta, "reasoning_content", "") for delta in deltas) == THOUGHT
    assert "".join(delta.content or "" for delta in deltas) == ANSWER
    whole = create(client, "scripted/client-thinks").choices[0].message
    assert (whole.reasoning_content, whole.content) == (THOUGHT, ANSWER)


def check_raw_response_names_the_stream(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="fake/echo", messages=MESSAGES)
    assert raw.headers["x-stream-id"] == raw.parse().id
    assert raw.headers["location"] == "/v1/streams/" + raw.parse().id


def check_resume(client: openai.OpenAI) -> None:
    """Counting chunks is enough to go on, on the view with ids, with keep-alives in between."""
    got = []
    with create(client, "scripted/client-slow", stream=True) as stream:
        for chunk in stream:
            got.append(chunk)
            if len(got) == 3:
                break
    rest = view(client, f"/chat/completions/{got[0].id}", {"stream": "true", "starting_after": len(got)})
    got += rest
    assert said(got) == TEXT
    assert got == list(view(client, f"/streams/{got[0].id}"))


def check_resume_by_header(client: openai.OpenAI) -> None:
    with create(client, "scripted/client-slow", stream=True) as stream:
        first = next(iter(stream))
    rest = view(client, f"/streams/{first.id}", last="1-1")
    assert said(rest) == TEXT


def check_retrieve(client: openai.OpenAI) -> None:
    answer = create(client)
    again = client.get(f"/chat/completions/{answer.id}", cast_to=ChatCompletion)
    assert again.choices[0].message.content == "one two three"


def check_stored_completions(client: openai.OpenAI) -> None:
    """What the SDK has of it: 1.40 has no such methods, so it asks as it would for any path."""
    import uuid

    run = uuid.uuid4().hex
    bodies = [{"store": True, "metadata": {"run": run, "n": str(n)}} for n in range(3)]
    ids = [create(client, extra_body=body).id for body in bodies]
    completions = client.chat.completions
    if not hasattr(completions, "list"):
        from openai.types.chat import ChatCompletion

        options: Any = {"params": {"metadata[run]": run, "limit": 2}}
        page: Any = client.get("/chat/completions", cast_to=object, options=options)
        assert [found["id"] for found in page["data"]] == ids[:2]
        updated = client.post(f"/chat/completions/{ids[0]}", body={"metadata": {"a": "b"}}, cast_to=ChatCompletion)
        assert updated.metadata == {"a": "b"}
        for found in ids:
            gone: Any = client.delete(f"/chat/completions/{found}", cast_to=object)
            assert gone["deleted"] is True
        return
    assert [found.id for found in completions.list(metadata={"run": run})] == ids
    assert [found.id for found in completions.list(metadata={"run": run}, limit=1)] == ids, "page by page"
    assert [found.id for found in completions.list(metadata={"run": run}, order="desc")] == ids[::-1]
    assert [found.id for found in completions.list(metadata={"run": run, "n": "1"}, model="fake/echo")] == ids[1:2]
    assert list(completions.list(metadata={"run": run}, model="fake/lorem")) == []
    assert completions.list(metadata={"run": run}, after=ids[1]).data[0].id == ids[2]
    assert completions.retrieve(ids[0]).choices[0].message.content == "one two three"
    updated = completions.update(ids[0], metadata={"run": run, "a": "b"})
    assert updated.metadata == completions.retrieve(ids[0]).metadata == {"run": run, "a": "b"}
    (message,) = completions.messages.list(ids[0])
    assert (message.id, message.role, message.content) == (f"{ids[0]}-0", "user", "one two three")
    assert message.content_parts is None
    for found in ids:
        deleted = completions.delete(found)
        assert (deleted.id, deleted.deleted, deleted.object) == (found, True, "chat.completion.deleted")
    assert list(completions.list(metadata={"run": run})) == []
    with raises(openai.NotFoundError, code="not_found"):
        completions.retrieve(ids[0])


def check_unknown_model(client: openai.OpenAI) -> None:
    for stream in (False, True):
        with raises(openai.NotFoundError, code="model_not_found", param="model"):
            create(client, "nobody/x", stream=stream)


def check_bad_parameter(client: openai.OpenAI) -> None:
    with raises(openai.BadRequestError, param="n", type="invalid_request_error"):
        create(client, n=0)


def check_wrong_key(client: openai.OpenAI) -> None:
    with raises(openai.AuthenticationError, code="invalid_api_key"):
        create(client.with_options(api_key="wrong"))


def check_refusal(client: openai.OpenAI) -> None:
    with raises(openai.BadRequestError, code="no_such_thing", param="thing"):
        create(client, "scripted/client-refuses")


def check_rate_limit(client: openai.OpenAI) -> None:
    """One that does not pass is not to be tried again: the SDK must not wait."""
    with raises(openai.RateLimitError, code="insufficient_quota"):
        create(client.with_options(max_retries=2), "scripted/client-limit")


def check_error_in_the_middle(client: openai.OpenAI) -> None:
    for headers in ({}, {"X-Stream-Ids": "1"}):
        got = []
        with raises(openai.APIError, code="fire"):
            for chunk in create(client, "scripted/client-broken", stream=True, extra_headers=headers):
                got.append(chunk)
        assert said(got) == "w0 w1 "


def check_error_in_the_middle_of_a_whole_answer(client: openai.OpenAI) -> None:
    with raises(openai.APIStatusError, status_code=502):
        create(client, "scripted/client-broken")


def check_cut(client: openai.OpenAI) -> None:
    with raises(openai.APIError, code="upstream_incomplete"):
        list(create(client, "fake/lorem?cut=3", stream=True))


def check_models(client: openai.OpenAI) -> None:
    assert "fake/echo" in [model.id for model in client.models.list()]
    assert client.models.retrieve("fake/echo").id == "fake/echo"
    with raises(openai.NotFoundError, code="model_not_found"):
        client.models.retrieve("nobody/x")


def check_two_choices(client: openai.OpenAI) -> None:
    chunks = list(create(client, "fake/lorem?tokens=2", n=2, stream=True))
    assert {choice.index for chunk in chunks for choice in chunk.choices} == {0, 1}
    assert [choice.message.content for choice in create(client, "fake/lorem?tokens=2", n=2).choices] == [
        "lorem ipsum "
    ] * 2


def check_async(client: openai.OpenAI) -> None:
    async def run() -> list[Any]:
        async with openai.AsyncOpenAI(base_url=client.base_url, api_key=client.api_key, max_retries=0) as other:
            stream = await other.chat.completions.create(model="scripted/client-slow", messages=MESSAGES, stream=True)
            return [chunk async for chunk in stream]

    assert said(asyncio.run(run())) == TEXT


def check_hang_up(client: openai.OpenAI) -> None:
    with create(client, "scripted/client-waits", stream=True) as stream:
        for chunk in stream:
            if chunk.choices[0].delta.content == "w1 ":
                break


def check_files(client: openai.OpenAI) -> None:
    """Up, found, down in whole and in part, gone."""
    file = client.files.create(file=("in.jsonl", b"0123456789"), purpose="batch")
    assert (file.bytes, file.filename, file.purpose, file.object) == (10, "in.jsonl", "batch", "file")
    assert client.files.retrieve(file.id) == file
    assert file.id in [one.id for one in client.files.list(purpose="batch")]
    assert client.files.content(file.id).read() == b"0123456789"
    assert client.files.content(file.id, extra_headers={"Range": "bytes=2-3"}).read() == b"23"
    assert client.files.delete(file.id).deleted
    with raises(openai.NotFoundError, code="not_found"):
        client.files.retrieve(file.id)


def check_batch(client: openai.OpenAI) -> None:
    """The whole life of a batch."""
    body = {"model": "fake/echo", "messages": MESSAGES}
    lines = [{"custom_id": f"id-{n}", "method": "POST", "url": "/v1/chat/completions", "body": body} for n in range(5)]
    lines[4]["body"] = {**body, "model": "fake/echo?error=400"}
    content = "\n".join(map(json.dumps, lines)).encode()
    file = client.files.create(file=("in.jsonl", content), purpose="batch")
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"a": "b"}
    )
    assert batch.id in [one.id for one in client.batches.list(limit=5)]
    while batch.status not in ("completed", "failed"):
        time.sleep(0.05)
        batch = client.batches.retrieve(batch.id)
    assert batch.request_counts
    assert (batch.status, batch.request_counts.completed, batch.request_counts.failed) == ("completed", 4, 1)
    assert batch.output_file_id
    assert batch.error_file_id
    output = [json.loads(text) for text in client.files.content(batch.output_file_id).text.splitlines()]
    assert {one["custom_id"] for one in output} == {"id-0", "id-1", "id-2", "id-3"}
    for one in output:
        assert ChatCompletion(**one["response"]["body"]).choices[0].message.content == "one two three"
    (failed,) = client.files.content(batch.error_file_id).text.splitlines()
    assert json.loads(failed)["response"]["status_code"] == 400
    with raises(openai.BadRequestError, code="batch_not_cancellable"):
        client.batches.cancel(batch.id)


def check_batch_cancelled(client: openai.OpenAI) -> None:
    body = {"model": "fake/lorem?tokens=1000&rate=10", "messages": MESSAGES}
    line = {"custom_id": "slow", "method": "POST", "url": "/v1/chat/completions", "body": body}
    file = client.files.create(file=("in.jsonl", json.dumps(line).encode()), purpose="batch")
    batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
    assert client.batches.cancel(batch.id).status == "cancelling"
    while batch.status != "cancelled":
        time.sleep(0.05)
        batch = client.batches.retrieve(batch.id)
    assert batch.request_counts
    assert batch.request_counts.completed == 0


def check_a8_an_unknown_webhook_event_has_the_class_of_another(client: openai.OpenAI) -> None:
    """Its type is right: that is what to go by."""
    if not hasattr(client, "webhooks"):
        return  # the oldest has none
    payload = json.dumps({"id": "evt_1", "object": "event", "type": "chat.completion.completed", "data": {"id": "a"}})
    key, now = b"k" * 32, str(int(time.time()))
    signed = hmac.digest(key, f"msg_1.{now}.{payload}".encode(), "sha256")
    headers = {
        "webhook-id": "msg_1",
        "webhook-timestamp": now,
        "webhook-signature": f"v1,{base64.b64encode(signed).decode()}",
    }
    event: Any = client.webhooks.unwrap(payload, headers, secret=f"whsec_{base64.b64encode(key).decode()}")
    assert event.type == "chat.completion.completed"
    assert event.data.id == "a"
    assert "Completion" not in type(event).__name__


def with_client(check: Callable[[openai.OpenAI], None]) -> Callable[[str, str], None]:
    def run(base_url: str, key: str) -> None:
        with openai.OpenAI(base_url=base_url, api_key=key, max_retries=0, timeout=60) as client:
            check(client)

    return run


if __name__ == "__main__":
    checks = {name: with_client(value) for name, value in globals().items() if name.startswith("check_")}
    harness.run(checks, openai.__version__)
