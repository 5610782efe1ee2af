"""Embeddings in the formats of those who have one of their own: what is sent, and OpenAI's object of what comes back."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any, NamedTuple

import pytest

from shared.errors import BadRequest, UpstreamInvalid
from worker.providers.dialect import Call
from worker.providers.formats import dialect_of
from worker.providers.registry import Provider


class Form(NamedTuple):
    """A request of two texts, as it is sent, and its answer, which counts 7 tokens."""

    kind: str
    path: str
    body: dict[str, Any]
    headers: dict[str, str]
    answer: dict[str, Any]


BEARER = {"authorization": "Bearer key"}
VECTORS = [[0.5, -1.0], [0.25, 2.0]]


def part(text: str) -> dict[str, Any]:
    return {"model": "models/m", "content": {"parts": [{"text": text}]}, "outputDimensionality": 2}


FORMS = [
    Form(
        "gemini",
        "/models/m:batchEmbedContents",
        {"requests": [part("one"), part("two")]},
        {"x-goog-api-key": "key"},
        {"embeddings": [{"values": vector} for vector in VECTORS], "usageMetadata": {"promptTokenCount": 7}},
    ),
    Form(
        "cohere",
        "/embed",
        {
            "model": "m",
            "texts": ["one", "two"],
            "input_type": "search_document",
            "embedding_types": ["float"],
            "output_dimension": 2,
        },
        BEARER,
        {"id": "x", "embeddings": {"float": VECTORS}, "meta": {"billed_units": {"input_tokens": 7}}},
    ),
    Form(
        "ollama",
        "/embed",
        {"model": "m", "input": ["one", "two"], "dimensions": 2},
        BEARER,
        {"model": "m", "embeddings": VECTORS, "prompt_eval_count": 7},
    ),
]


def whole(**fields: Any) -> dict[str, Any]:
    return {"path": "/embeddings", "body": {"model": "acme/m", "input": ["one", "two"], "dimensions": 2, **fields}}


def call(kind: str, asked: dict[str, Any]) -> Call:
    provider = Provider("acme", kind, "http://localhost", api_key="key")
    return dialect_of(provider, asked).call(provider, {"whole": asked}, "m")


def answered(kind: str, asked: dict[str, Any], answer: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's object."""
    dialect = dialect_of(Provider("acme", kind, "http://localhost"), asked)
    assert dialect.translator is not None
    decoder = dialect.decoder(10_000)
    assert decoder.feed(json.dumps(answer).encode()) == []
    (event,) = decoder.close()
    translator = dialect.translator()
    chunk, usage = translator.feed(event.event, json.loads(event.data))
    assert translator.done
    found: dict[str, Any] = chunk["whole_answer"]
    assert usage["usage"] == found["usage"]
    return found


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.kind)
def test_it_is_asked_in_its_own_words(form: Form) -> None:
    sent = call(form.kind, whole())
    assert (sent.path, sent.body) == (form.path, form.body)
    assert sent.headers.items() >= form.headers.items()


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.kind)
def test_the_answer_is_openais_object(form: Form) -> None:
    found = answered(form.kind, whole(encoding_format="float"), form.answer)
    assert (found["object"], found["model"]) == ("list", "acme/m")
    assert found["data"] == [
        {"object": "embedding", "index": at, "embedding": vector} for at, vector in enumerate(VECTORS)
    ]
    assert found["usage"] == {"prompt_tokens": 7, "total_tokens": 7}


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.kind)
def test_vectors_are_written_as_the_client_wants_them(form: Form) -> None:
    found = answered(form.kind, whole(encoding_format="base64"), form.answer)
    decoded = [list(struct.unpack("<2f", base64.b64decode(one["embedding"]))) for one in found["data"]]
    assert decoded == VECTORS


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.kind)
def test_one_text_is_asked_for_as_a_list_and_tokens_are_refused(form: Form) -> None:
    assert "one" in json.dumps(call(form.kind, whole(input="one")).body)
    for tokens in ([1, 2], [[1, 2]]):
        with pytest.raises(BadRequest) as refused:
            call(form.kind, whole(input=tokens))
        assert refused.value.param == "input"


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.kind)
@pytest.mark.parametrize("answer", [{}, {"embeddings": None}, {"embeddings": []}, {"embeddings": {"float": ["x", 1]}}])
def test_an_answer_without_a_vector_for_each_text_is_none(form: Form, answer: dict[str, Any]) -> None:
    with pytest.raises(UpstreamInvalid):
        answered(form.kind, whole(), answer)


def test_where_nobody_counts_the_characters_are_counted() -> None:
    answer = {"embeddings": [{"values": [1.0]}]}
    assert answered("gemini", whole(input="123456789"), answer)["usage"]["prompt_tokens"] == 3


def test_each_has_options_of_its_own() -> None:
    asked = whole(task_type="RETRIEVAL_QUERY", input_type="search_query", truncate="END", keep_alive="5m", user="x")
    assert call("gemini", asked).body["requests"][0]["taskType"] == "RETRIEVAL_QUERY"
    cohere, ollama = call("cohere", asked).body, call("ollama", asked).body
    assert (cohere["input_type"], cohere["truncate"]) == ("search_query", "END")
    assert (ollama["keep_alive"], ollama["truncate"]) == ("5m", "END")
    assert not any("user" in body for body in (cohere, ollama))


def test_a_provider_without_embeddings_says_so() -> None:
    with pytest.raises(BadRequest) as refused:
        call("anthropic", whole())
    assert refused.value.param == "model"


@pytest.mark.parametrize("value", [{}, {"data": None}, {"status": "pending"}, {"object": "list", "usage": {"x": 1}}])
@pytest.mark.parametrize("path", ["/embeddings", "/moderations"])
def test_k2_an_object_without_an_answer_in_it_is_none(path: str, value: dict[str, Any]) -> None:
    asked = {"path": path, "body": {"input": "one"}}
    translator = dialect_of(Provider("acme", "openai", "http://localhost"), asked).translator
    assert translator is not None
    with pytest.raises(UpstreamInvalid):
        translator().feed("", value)
