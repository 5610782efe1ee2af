"""The table of docs/PROVIDERS.md: what of each provider is tested, and on what. Every cell that is not empty names tests.

What recordings show is counted in their index, so a row cannot claim what no recording has.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from tests.support.recordings import recordings

FEATURES = ("text", "tools", "images", "reasoning", "usage", "errors", "cancel", "prefill")

RECORDED_BY = (
    "tests/worker/providers/test_recordings.py",
    "tests/worker/providers/test_dialect_recordings.py",
    "tests/worker/providers/test_native_formats.py",
)


class Row(NamedTuple):
    """A provider: under which names its recordings stand, in which formats, and what else is tested how."""

    name: str
    recorded: tuple[str, ...] = ()
    formats: tuple[str, ...] = ("chat",)
    others: dict[str, tuple[str, str]] = {}
    """Feature → (`server`, `model` or `written`, the test file)."""


_SCRIPTED = {
    "text": ("server", "tests/worker/upstream/test_upstream.py"),
    "tools": ("server", "tests/api/resources/test_sessions.py"),
    "reasoning": ("server", "tests/api/resources/test_sessions.py"),
    "usage": ("server", "tests/api/resources/test_usage.py"),
    "errors": ("server", "tests/chaos/test_upstream_faults.py"),
    "cancel": ("server", "tests/chaos/test_cancel.py"),
}
_NATIVE = "tests/worker/upstream/test_native_formats.py"
_UPSTREAMS = "tests/worker/upstream/test_native_upstreams.py"
_LIVE = "tests/live/test_contract.py"

ROWS = (
    Row("any server with OpenAI's format", others=_SCRIPTED),
    Row(
        "`local` (llama.cpp's server)",
        others={
            "text": ("model", _LIVE),
            "tools": ("model", _LIVE),
            "usage": ("model", _LIVE),
            "errors": ("model", "tests/live/test_faults.py"),
            "cancel": ("model", "tests/live/test_faults.py"),
            "prefill": ("model", _LIVE),
        },
    ),
    Row("OpenAI", ("openai",)),
    Row(
        'OpenAI\'s Responses format (`kind = "responses"`)',
        ("openai", "azure", "xai", "deepseek", "bedrock-mantle", "lmstudio", "llamacpp"),
        ("responses",),
        {"images": ("written", "tests/worker/providers/test_responses_format.py"), "errors": ("server", _UPSTREAMS)},
    ),
    Row(
        "Anthropic",
        ("anthropic",),
        ("anthropic",),
        {"images": ("written", "tests/worker/providers/test_anthropic.py"), "errors": ("server", _NATIVE)},
    ),
    Row(
        "Gemini",
        ("google", "google-vertex"),
        ("gemini",),
        {"images": ("written", "tests/worker/providers/test_gemini.py"), "errors": ("server", _NATIVE)},
    ),
    Row(
        "Cohere",
        ("cohere",),
        ("cohere",),
        {
            "tools": ("written", "tests/worker/providers/test_cohere_format.py"),
            "images": ("written", "tests/worker/providers/test_cohere_format.py"),
            "errors": ("server", _UPSTREAMS),
        },
    ),
    Row(
        "Ollama",
        (),
        (),
        {
            "text": ("server", _UPSTREAMS),
            "tools": ("written", "tests/worker/providers/test_ollama_format.py"),
            "images": ("written", "tests/worker/providers/test_ollama_format.py"),
            "reasoning": ("written", "tests/worker/providers/test_ollama_format.py"),
            "usage": ("server", _UPSTREAMS),
            "errors": ("server", _UPSTREAMS),
        },
    ),
    Row("Ollama, by OpenAI's format", ("ollama",)),
    Row("Azure OpenAI", ("azure",)),
    Row("DeepSeek", ("deepseek",)),
    Row("OpenRouter", ("openrouter",)),
    Row("Groq", ("groq",)),
    Row("Mistral", ("mistral",)),
    Row("xAI", ("xai",)),
    Row("Alibaba", ("alibaba",)),
    Row("Hugging Face", ("huggingface",)),
    Row("Perplexity", ("perplexity",)),
    Row("vLLM", ("vllm",)),
    Row("llama.cpp", ("llamacpp",)),
    Row("Writer", ("writer",)),
    Row("Snowflake", ("snowflake",)),
    Row("GPUStack", ("gpustack",)),
    *map(
        Row,
        (
            "Together",
            "Fireworks",
            "Cerebras",
            "SambaNova",
            "MiniMax",
            "Moonshot",
            "Z.ai",
            "Zhipu",
            "LM Studio",
        ),
    ),
)


def recorded(row: Row) -> dict[str, int]:
    """How many recordings of the row's show each feature; under `all`, how many there are."""
    counts = dict.fromkeys(("all", *FEATURES), 0)
    for recording in recordings(*row.formats):
        if recording["provider"] in row.recorded:
            counts["all"] += 1
            for feature in _shown(recording):
                counts[feature] += 1
    return counts


def _shown(recording: dict[str, Any]) -> Iterator[str]:
    expected, features = recording["expected"] or {}, set(recording["features"])
    choices = list((expected.get("choices") or {}).values())
    if not choices or any(choice["content_len"] for choice in choices):
        yield "text"
    if "tools" in features or any(choice["tools"] for choice in choices):
        yield "tools"
    if features & {"thinking", "reasoning"} or any(choice["reasoning_len"] for choice in choices):
        yield "reasoning"
    if "usage" in features or expected.get("usage"):
        yield "usage"
    if "error" in features or expected.get("error"):
        yield "errors"


def table_rows() -> Iterator[tuple[str, ...]]:
    for row in ROWS:
        counts = recorded(row) if row.recorded else {}
        cells = []
        for feature in FEATURES:
            kinds = [f"recording ({counts[feature]})"] if counts.get(feature) else []
            kinds += [row.others[feature][0]] if feature in row.others else []
            cells.append(", ".join(kinds) or "–")
        yield (row.name, *cells)
