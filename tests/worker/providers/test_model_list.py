"""A list of models as each provider has it, and what is made of it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from worker.providers import model_list
from worker.providers.registry import Provider


def provider(
    name: str = "acme", kind: str = "openai", base_url: str = "http://h/v1", key: str | None = "k"
) -> Provider:
    return Provider(name=name, kind=kind, base_url=base_url, api_key=key)


def base(id: str, owned_by: str = "", created: int = 0, **more: Any) -> dict[str, Any]:
    return {"id": id, "object": "model", "created": created, "owned_by": owned_by, **more}


SEES = {"input_modalities": ["text", "image"], "output_modalities": ["text"]}
SHAPES: dict[str, tuple[Provider, Any, list[dict[str, Any]]]] = {
    "OpenAI": (
        provider(),
        {"object": "list", "data": [{"id": "gpt-5", "object": "model", "created": 1754425777, "owned_by": "system"}]},
        [base("gpt-5", "system", 1754425777)],
    ),
    "OpenRouter": (
        provider(),
        {
            "data": [
                {
                    "id": "anthropic/claude-x:beta",
                    "name": "Anthropic: Claude X",
                    "created": 1741818122,
                    "description": "long " * 100,
                    "architecture": {"modality": "text+image->text", **SEES, "tokenizer": "Other"},
                    "pricing": {"prompt": "0.000003", "completion": "0.000015", "request": "0"},
                    "top_provider": {"context_length": 200000, "max_completion_tokens": 8192, "is_moderated": False},
                    "context_length": 1000000,
                    "supported_parameters": ["max_tokens", "tools", "reasoning"],
                },
                {"id": "paint/er", "architecture": {"input_modalities": ["text"], "output_modalities": ["image"]}},
            ]
        },
        [
            base(
                "anthropic/claude-x:beta",
                created=1741818122,
                name="Anthropic: Claude X",
                context_length=1000000,
                max_completion_tokens=8192,
                architecture=SEES,
                supported_parameters=["max_tokens", "tools", "reasoning"],
                pricing={"prompt": "0.000003", "completion": "0.000015"},
            )
        ],
    ),
    "vLLM": (
        provider("vllm"),
        {
            "object": "list",
            "data": [
                {
                    "id": "Qwen/Qwen3-8B",
                    "object": "model",
                    "created": 1750000000,
                    "owned_by": "vllm",
                    "root": "Qwen/Qwen3-8B",
                    "parent": None,
                    "max_model_len": 40960,
                    "permission": [{"id": "modelperm-1", "object": "model_permission"}],
                }
            ],
        },
        [base("Qwen/Qwen3-8B", "vllm", 1750000000, context_length=40960)],
    ),
    "llama.cpp": (
        provider("llamacpp"),
        {
            "models": [{"name": "m.gguf", "model": "m.gguf", "capabilities": ["completion"]}],
            "object": "list",
            "data": [
                {"id": "m.gguf", "object": "model", "created": 1, "owned_by": "llamacpp", "meta": {"n_ctx_train": 8192}}
            ],
        },
        [base("m.gguf", "llamacpp", 1, context_length=8192)],
    ),
    "Anthropic": (
        provider(kind="anthropic"),
        {
            "data": [
                {
                    "type": "model",
                    "id": "claude-opus-4-6",
                    "display_name": "Claude Opus 4.6",
                    "created_at": "2026-02-04T00:00:00Z",
                    "max_input_tokens": 200000,
                    "max_tokens": 128000,
                    "capabilities": {"image_input": {"supported": True}, "thinking": {"supported": True}},
                }
            ],
            "has_more": False,
            "first_id": "claude-opus-4-6",
            "last_id": "claude-opus-4-6",
        },
        [
            base(
                "claude-opus-4-6",
                created=1770163200,
                name="Claude Opus 4.6",
                context_length=200000,
                max_completion_tokens=128000,
                architecture=SEES,
                supported_parameters=["reasoning"],
            )
        ],
    ),
    "Gemini": (
        provider(kind="gemini"),
        {
            "models": [
                {
                    "name": "models/gemini-2.5-pro",
                    "version": "2.5",
                    "displayName": "Gemini 2.5 Pro",
                    "inputTokenLimit": 1048576,
                    "outputTokenLimit": 65536,
                    "supportedGenerationMethods": ["generateContent", "countTokens"],
                    "thinking": True,
                },
                {"name": "models/embedding-001", "supportedGenerationMethods": ["embedContent"]},
            ]
        },
        [
            base(
                "gemini-2.5-pro",
                name="Gemini 2.5 Pro",
                context_length=1048576,
                max_completion_tokens=65536,
                supported_parameters=["reasoning"],
            )
        ],
    ),
    "Cohere": (
        provider(kind="cohere", base_url="http://h/v2"),
        {
            "models": [
                {
                    "name": "command-a-03-2025",
                    "endpoints": ["generate", "chat"],
                    "context_length": 256000,
                    "features": ["tools", "json_mode"],
                    "supports_vision": True,
                },
                {"name": "embed-v4.0", "endpoints": ["embed"]},
            ]
        },
        [
            base(
                "command-a-03-2025",
                context_length=256000,
                architecture=SEES,
                supported_parameters=["tools", "tool_choice"],
            )
        ],
    ),
    "Ollama": (
        provider(kind="ollama", base_url="http://h/api"),
        {
            "models": [
                {
                    "name": "llama3.2:latest",
                    "model": "llama3.2:latest",
                    "modified_at": "2025-05-04T17:37:44.706015396-07:00",
                    "size": 2019393189,
                    "details": {"family": "llama", "parameter_size": "3.2B", "quantization_level": "Q4_K_M"},
                }
            ]
        },
        [base("llama3.2:latest", created=1746405464)],
    ),
    "LM Studio": (
        provider("lmstudio"),
        {
            "object": "list",
            "data": [
                {
                    "id": "qwen2-vl-7b-instruct",
                    "object": "model",
                    "type": "vlm",
                    "publisher": "mlx-community",
                    "arch": "qwen2_vl",
                    "state": "not-loaded",
                    "max_context_length": 32768,
                    "capabilities": ["tool_use"],
                },
                {"id": "text-embedding-nomic", "object": "model", "type": "embeddings", "publisher": "nomic-ai"},
            ],
        },
        [
            base(
                "qwen2-vl-7b-instruct",
                "mlx-community",
                context_length=32768,
                architecture=SEES,
                supported_parameters=["tools", "tool_choice"],
            )
        ],
    ),
    "Mistral": (
        provider("mistral"),
        {
            "data": [
                {
                    "id": "mistral-large-latest",
                    "created": 1,
                    "owned_by": "mistralai",
                    "capabilities": {"completion_chat": True, "function_calling": True, "vision": True},
                    "max_context_length": 131072,
                },
                {"id": "mistral-ocr", "capabilities": {"completion_chat": False}},
            ]
        },
        [
            base(
                "mistral-large-latest",
                "mistralai",
                1,
                context_length=131072,
                architecture=SEES,
                supported_parameters=["tools", "tool_choice"],
            )
        ],
    ),
    "Groq": (
        provider("groq"),
        {
            "data": [
                {
                    "id": "a",
                    "owned_by": "Meta",
                    "active": True,
                    "context_window": 131072,
                    "max_completion_tokens": 32768,
                },
                {"id": "gone", "active": False},
            ]
        },
        [base("a", "Meta", context_length=131072, max_completion_tokens=32768)],
    ),
    "Together, a bare list": (
        provider("together"),
        [
            {"id": "a/b", "type": "chat", "organization": "A", "context_length": 8, "pricing": {"input": 0.2}},
            {"id": "a/e", "type": "embedding"},
        ],
        [base("a/b", "A", context_length=8)],
    ),
    "Fireworks": (
        provider("fireworks"),
        {
            "data": [
                {"id": "accounts/f/models/x", "supports_chat": True, "supports_tools": True},
                {"id": "y", "supports_chat": False},
            ]
        },
        [base("accounts/f/models/x", supported_parameters=["tools", "tool_choice"])],
    ),
    "Hugging Face": (
        provider("huggingface"),
        {"data": [{"id": "o/m", "providers": [{"provider": "p"}, {"provider": "q", "context_length": 16000}]}]},
        [base("o/m", context_length=16000)],
    ),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_list_in_each_shape(shape: str) -> None:
    asked, value, expected = SHAPES[shape]
    assert model_list.models(asked, value) == expected


def test_openais_own_list_is_told_apart_by_names() -> None:
    """And nobody else's: what is called like that elsewhere may be anything."""
    names = [
        "gpt-5",
        "text-embedding-3-large",
        "whisper-1",
        "tts-1-hd",
        "dall-e-3",
        "gpt-4o-realtime-preview",
        "sora-2",
    ]
    value = {"data": [{"id": name} for name in names]}
    own = provider("openai", base_url="https://api.openai.com/v1")
    assert [model["id"] for model in model_list.models(own, value) or ()] == ["gpt-5"]
    moved = provider("openai", base_url="http://proxy/v1")
    assert [model["id"] for model in model_list.models(moved, value) or ()] == names


def test_where_each_is_asked() -> None:
    def urls(**fields: Any) -> list[str]:
        return [question.url for question in model_list.questions(provider(**fields))]

    assert urls() == ["http://h/v1/models"]
    assert urls(kind="responses") == ["http://h/v1/models"]
    assert urls(kind="anthropic") == ["http://h/v1/models?limit=1000"]
    assert urls(kind="gemini", base_url="http://h/v1beta") == ["http://h/v1beta/models?pageSize=1000"]
    assert urls(kind="cohere", base_url="http://h/v2") == ["http://h/v1/models?page_size=1000&endpoint=chat"]
    assert urls(kind="ollama", base_url="http://h/api") == ["http://h/api/tags"]
    assert urls(name="lmstudio") == ["http://h/api/v0/models", "http://h/v1/models"]
    assert urls(name="azure") == urls(name="fake", kind="fake") == []


def test_the_key_goes_where_the_format_wants_it() -> None:
    headers = {
        kind: model_list.questions(provider(kind=kind))[0].headers
        for kind in ("openai", "anthropic", "gemini", "cohere")
    }
    assert headers["openai"] == headers["cohere"] == {"authorization": "Bearer k"}
    assert headers["anthropic"]["x-api-key"] == headers["gemini"]["x-goog-api-key"] == "k"
    assert all("k" not in model_list.questions(provider(kind=kind, key=None))[0].headers.values() for kind in headers)


@pytest.mark.parametrize(
    ("value", "goes_on"),
    [
        ({"has_more": True, "last_id": "m 1"}, "http://h?limit=9&after_id=m%201"),
        ({"nextPageToken": "a/b"}, "http://h?limit=9&pageToken=a%2Fb"),
        ({"next_page_token": "x"}, "http://h?limit=9&page_token=x"),
        ({"has_more": False, "last_id": "m"}, None),
        ({"nextPageToken": ""}, None),
        ([], None),
    ],
)
def test_pages(value: Any, goes_on: str | None) -> None:
    first = model_list.Question("http://h?limit=9", {})
    second = model_list.next_page(first, value)
    assert (second and second.url) == goes_on
    if second is not None:
        assert model_list.next_page(second, value) == second, "the newest token replaces the one before"


def test_details_of_ollamas() -> None:
    asked = provider(kind="ollama", base_url="http://h/api")
    model = base("qwen3:8b", created=5)
    question = model_list.details(asked, model)
    assert question is not None
    assert (question.url, question.body) == ("http://h/api/show", {"model": "qwen3:8b"})
    told = {
        "capabilities": ["completion", "tools", "vision", "thinking"],
        "model_info": {"general.architecture": "qwen3", "qwen3.context_length": 40960},
    }
    assert model_list.with_details(model, told) == base(
        "qwen3:8b",
        created=5,
        context_length=40960,
        architecture=SEES,
        supported_parameters=["tools", "tool_choice", "reasoning"],
    )
    assert model_list.with_details(model, {"capabilities": ["embedding"]}) is None
    for nothing in (None, {}, {"capabilities": 7, "model_info": 8}):
        assert model_list.with_details(model, nothing) == model
    assert model_list.details(provider(), model) is None


@pytest.mark.parametrize("value", [None, "text", 7, {}, {"data": {}}, {"error": {"message": "m"}}])
def test_what_is_no_list_is_told_apart_from_an_empty_one(value: Any) -> None:
    assert model_list.models(provider(), value) is None
    assert model_list.models(provider(), {"data": []}) == []


ODD: list[Any] = [
    None,
    7,
    {},
    {"id": ""},
    {"id": None},
    {"id": 7},
    {"id": "a\nb"},
    {"id": "x" * 201},
    {"id": ["x"]},
]
ODD_VALUES: list[Any] = [None, -1, 1.5, 2**80, True, "x\ny", "y" * 5000, [], [[]], [None], {}, {"a": {"b": []}}]
ODD_FIELDS: list[dict[str, Any]] = [
    {field: value}
    for field in (
        *(
            "created",
            "created_at",
            "owned_by",
            "name",
            "context_length",
            "max_tokens",
            "architecture",
            "pricing",
            "type",
        ),
        *(
            "capabilities",
            "supported_parameters",
            "providers",
            "meta",
            "top_provider",
            "features",
            "details",
            "modified_at",
        ),
    )
    for value in ODD_VALUES
]


def test_one_odd_entry_does_not_hide_the_others() -> None:
    good = {"id": "good"}
    assert model_list.models(provider(), {"data": [*ODD, good]}) == [base("good")]
    for fields in ODD_FIELDS:
        value: Any = {"data": [{"id": "m", **fields}]}
        (read,) = model_list.models(provider(), value) or [base("m")]
        assert read["id"] == "m"
        assert len(json.dumps(read)) < 400, fields


def test_a_list_is_bounded() -> None:
    many = [base(f"m{number:05}", context_length=1) for number in range(5000)]
    kept = model_list.bounded([*many, *many])
    assert [model["id"] for model in kept] == [f"m{number:05}" for number in range(model_list.MAX_MODELS)]
    long = [
        base(f"{number}" + "x" * 190, name="n" * 200, supported_parameters=["p" * 60] * 60) for number in range(1000)
    ]
    kept = model_list.bounded(long)
    assert len(kept) == 1000
    assert len(json.dumps(kept)) <= model_list.MAX_BYTES
    assert "name" not in kept[0], "details go first"


def test_patterns() -> None:
    found = [base(name) for name in ("gpt-5", "gpt-5-mini", "o3", "meta/llama:free")]

    def left(only: list[str], without: list[str]) -> list[str]:
        return [model["id"] for model in model_list.chosen(lambda name: f"acme/{name}", found, only, without)]

    assert left([], []) == [model["id"] for model in found]
    assert left(["acme/gpt-*"], ["*/*-mini"]) == ["gpt-5"]
    assert left([], ["acme/*:free"]) == ["gpt-5", "gpt-5-mini", "o3"]
    assert left(["other/*"], []) == left([], ["acme/*"]) == []
