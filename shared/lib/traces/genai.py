"""OpenTelemetry's names for generative AI, as of version 0.1.0 of the conventions: attributes of spans, and metrics.

Hidden here: every one of those strings, since they are still changed from version to version. As Prometheus has them, the dots
are underscores, and the unit comes last. The metrics exist only in a process that `begin` was called in
(STREAMSPOOL_METRICS=genai): beside our own names they are the same observations a second time.

Source: github.com/open-telemetry/semantic-conventions-genai, tag v0.1.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shared.lib.metrics import Counter, Histogram
from shared.lib.telemetry import SECONDS

OPERATION, CHAT = "gen_ai.operation.name", "chat"
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
CONVERSATION = "gen_ai.conversation.id"
FINISH_REASONS = "gen_ai.response.finish_reasons"
INPUT_TOKENS, OUTPUT_TOKENS = "gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens"
CACHED_TOKENS = "gen_ai.usage.cache_read.input_tokens"
REASONING_TOKENS = "gen_ai.usage.reasoning.output_tokens"
ERROR = "error.type"

_PROVIDERS = {
    "azure": "azure.ai.openai",
    "gemini": "gcp.gemini",
    "mistral": "mistral_ai",
    "xai": "x_ai",
}
"""Those that the conventions spell otherwise than we do."""

_LABELS = ("gen_ai_operation_name", "gen_ai_provider_name", "gen_ai_request_model")
_USAGE = {"prompt": "input", "cached": "cache_read_input", "completion": "output", "reasoning": "reasoning_output"}


class _Metrics:
    def __init__(self) -> None:
        inference = "gen_ai_client_inference"
        self.duration = Histogram(
            f"{inference}_duration_seconds", "An attempt, from claim to seal", [*_LABELS, "error_type"], buckets=SECONDS
        )
        self.first = Histogram(
            f"{inference}_time_to_first_chunk_seconds", "To the first chunk", _LABELS, buckets=SECONDS
        )
        self.chunk = Histogram(
            f"{inference}_time_per_output_chunk_seconds",
            "From one chunk to the next, as the mean of each answer",
            _LABELS,
            buckets=SECONDS,
        )
        self.tokens = {
            ours: Counter(f"{inference}_usage_{theirs}_tokens", f"Tokens: {ours}", _LABELS)
            for ours, theirs in _USAGE.items()
        }


_metrics: _Metrics | None = None


def begin() -> None:
    """Once for each process."""
    global _metrics
    _metrics = _metrics or _Metrics()


def provider_name(provider: str) -> str:
    return _PROVIDERS.get(provider, provider)


def observe(labels: Mapping[str, str], *, first_s: float | None = None, chunk_s: float | None = None) -> None:
    """`labels` are our `provider` and `model`."""
    if _metrics is not None:
        if first_s is not None:
            _metrics.first.labels(*_values(labels)).observe(first_s)
        if chunk_s is not None:
            _metrics.chunk.labels(*_values(labels)).observe(chunk_s)


def ended(labels: Mapping[str, str], took_s: float, error: str) -> None:
    """`error` is a code from a short list; empty: there was none."""
    if _metrics is not None:
        _metrics.duration.labels(*_values(labels), error).observe(took_s)


def count(labels: Mapping[str, str], kind: str, amount: int) -> None:
    """Tokens of a `kind` as `streamspool_tokens_total` has it in its label `type`."""
    if _metrics is not None:
        _metrics.tokens[kind].labels(*_values(labels)).inc(amount)


def usage(figures: Mapping[str, Any] | None) -> dict[str, int]:
    """A span's attributes, of OpenAI's usage object. A provider may have said anything in it."""
    found = {}
    for name, *path in (
        (INPUT_TOKENS, "prompt_tokens"),
        (OUTPUT_TOKENS, "completion_tokens"),
        (CACHED_TOKENS, "prompt_tokens_details", "cached_tokens"),
        (REASONING_TOKENS, "completion_tokens_details", "reasoning_tokens"),
    ):
        value: Any = figures
        for step in path:
            value = value.get(step) if isinstance(value, Mapping) else None
        if isinstance(value, int) and 0 < value < 2**53:
            found[name] = value
    return found


def _values(labels: Mapping[str, str]) -> tuple[str, str, str]:
    return CHAT, provider_name(labels["provider"]), labels["model"].partition("/")[2] or labels["model"]
