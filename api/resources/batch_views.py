"""A batch as OpenAI's batch object."""

from __future__ import annotations

from typing import Any

from shared.features.batch_head import BatchHead

_TIMES = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")


def batch(head: BatchHead, delivery: dict[str, Any] | None) -> dict[str, Any]:
    """To the field (platform.openai.com/docs/api-reference/batch/object), and `webhook`. Times are Unix seconds."""
    times = {f"{name}_at": _seconds(head["at"].get(name)) for name in _TIMES}
    return {
        "id": head["id"],
        "object": "batch",
        "endpoint": head["endpoint"],
        "model": head["model"],
        "errors": {"object": "list", "data": head["errors"]} if head["errors"] else None,
        "input_file_id": head["input_file_id"],
        "completion_window": head["completion_window"],
        "status": head["status"],
        "output_file_id": head["output_file_id"],
        "error_file_id": head["error_file_id"],
        "created_at": _seconds(head["at"]["created"]),
        "expires_at": _seconds(head["expires_at_ms"]),
        **times,
        "request_counts": {name: head[name] for name in ("total", "completed", "failed")},
        "usage": _usage(head["usage"]),
        "metadata": head["metadata"],
        "webhook": delivery,
    }


def _seconds(ms: int | None) -> int | None:
    return None if ms is None else ms // 1000


def _usage(figures: dict[str, int]) -> dict[str, Any]:
    return {
        "input_tokens": figures["input_tokens"],
        "input_tokens_details": {"cached_tokens": figures["cached_tokens"]},
        "output_tokens": figures["output_tokens"],
        "output_tokens_details": {"reasoning_tokens": figures["reasoning_tokens"]},
        "total_tokens": figures["total_tokens"],
    }
