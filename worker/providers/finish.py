"""What a provider's word for the end of an answer means: one table for every wire format. Pure.

Hidden here: that six formats and their imitators end an answer with some eighty words, and that OpenAI's clients refuse all
but five. For example, Gemini's `MAX_TOKENS` makes an answer `incomplete`, and clients read `length`; Mistral's `error` ends
it as `failed`. The provider's own word stands beside as `native_finish_reason`.

A word that no format has is no proof of a good end: the answer is `incomplete`, and clients read `length`. docs/PROVIDERS.md
shows the table.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple

from shared.errors import UpstreamIncomplete

FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "function_call"]
"""OpenAI's, all of them (platform.openai.com/docs/api-reference/chat/object): its clients' models have no other."""


class Ending(NamedTuple):
    """What a word means."""

    status: Literal["completed", "incomplete", "failed"]
    reason: FinishReason | None
    """What clients read; None for an end that is an error."""
    http_status: int = 502
    """Of the error, where it is one."""
    known: bool = True


_STOP = Ending("completed", "stop")
_CALLS = Ending("completed", "tool_calls")
_LENGTH = Ending("incomplete", "length")
_FILTER = Ending("incomplete", "content_filter")
_ERROR = Ending("failed", None)
_UNKNOWN = Ending("incomplete", "length", known=False)


def _words(**endings: str) -> Iterator[tuple[str, Ending]]:
    named = {"stop": _STOP, "calls": _CALLS, "length": _LENGTH, "filter": _FILTER, "error": _ERROR}
    for name, words in endings.items():
        yield from ((word, named[name]) for word in words.split())


WITHOUT_ANSWER = frozenset(("load", "unload"))
"""Ollama's words for a model that was loaded, or unloaded: where nothing was said before, nothing was answered."""


class Words(NamedTuple):
    """One format's words, and the page they are from."""

    source: str
    endings: dict[str, Ending]


FORMATS = {
    "openai": Words(
        "platform.openai.com/docs/api-reference/chat/object",
        dict(_words(stop="stop", calls="tool_calls", length="length", filter="content_filter"))
        | {"function_call": Ending("completed", "function_call")},
    ),
    "anthropic": Words(
        "platform.claude.com/docs/en/build-with-claude/handling-stop-reasons",
        dict(
            _words(
                stop="end_turn stop_sequence pause_turn",
                calls="tool_use",
                length="max_tokens model_context_window_exceeded compaction",
                filter="refusal",
            )
        ),
    ),
    "gemini": Words(
        "ai.google.dev/api/generate-content#FinishReason",
        dict(
            _words(
                stop="STOP",
                length="MAX_TOKENS CONTINUATION FINISH_REASON_UNSPECIFIED OTHER NO_IMAGE IMAGE_OTHER",
                filter=(
                    "SAFETY RECITATION LANGUAGE BLOCKLIST PROHIBITED_CONTENT SPII MODEL_ARMOR JAILBREAK ESCALATION"
                    " PUP_LIMITED_DISABLED IMAGE_SAFETY IMAGE_PROHIBITED_CONTENT IMAGE_RECITATION"
                ),
                error="MALFORMED_FUNCTION_CALL MALFORMED_RESPONSE UNEXPECTED_TOOL_CALL TOO_MANY_TOOL_CALLS",
            )
        )
        | {"MISSING_THOUGHT_SIGNATURE": Ending("failed", None, 400)},
    ),
    "cohere": Words(
        "docs.cohere.com/v2/reference/chat-stream",
        dict(
            _words(
                stop="COMPLETE STOP_SEQUENCE",
                calls="TOOL_CALL",
                length="MAX_TOKENS ERROR_LIMIT",
                filter="ERROR_TOXIC",
                error="ERROR USER_CANCEL",
            )
        )
        | {"TIMEOUT": Ending("failed", None, 504)},
    ),
    "ollama": Words(
        "github.com/ollama/ollama/blob/main/llm/server.go",
        dict(_words(stop="stop load unload", length="length")),
    ),
    "responses": Words(
        "platform.openai.com/docs/api-reference/responses/object",
        dict(
            _words(
                stop="completed",
                length="max_output_tokens incomplete in_progress queued",
                filter="content_filter",
                error="failed cancelled",
            )
        ),
    ),
    "others in OpenAI's format": Words(
        "docs.mistral.ai/api, openrouter.ai/docs/api/reference/overview, api-docs.deepseek.com/api/create-chat-completion,"
        " docs.bigmodel.cn/api-reference, docs.vllm.ai, huggingface.co/docs/text-generation-inference,"
        " docs.together.ai/reference/chat-completions-1,"
        " docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_Converse.html",
        dict(
            _words(
                stop="eos eos_token end_of_text end_of_turn",
                calls="tool_call function_calls",
                length="model_length max_length max_new_tokens token_limit context_length_exceeded repetition",
                filter="sensitive content_filtered guardrail_intervened guardrails moderation blocked",
                error=(
                    "error network_error abort aborted canceled user_cancelled timeout server_error internal_error"
                    " malformed_model_output malformed_tool_use"
                ),
            )
        )
        | {"insufficient_system_resource": Ending("failed", None, 503)},
    ),
}
"""By wire format: vendors that imitate OpenAI's say their own words in it, and aggregators those of whom they ask."""


def ending(wire_format: str, word: str) -> Ending:
    """What a word means in a format; another format's word means there what it does in its own. Upper and lower case are
    one, as are `max_tokens` and `maxTokens`: Gemini's `STOP` comes through aggregators as `stop`."""
    own = FORMATS[wire_format].endings.get(word)
    if own is not None:
        return own
    last = word.strip().rpartition(".")[2]  # FinishReason.STOP, as some print an enum
    spelled = _spelled(last)
    found = _ANY.get(spelled) or _ANY.get(spelled.removeprefix("finishreason"))
    if found is None and (spelled.startswith("error") or spelled.endswith("error")):
        return _ERROR
    return found or _UNKNOWN


def check_silence(ends: Iterable[tuple[str | None, str | None]], *, spent: bool) -> None:
    """Of an answer that said nothing: `ends` has for each choice its word, if no format has it, and its word; `spent` says that
    it ended, or that tokens were counted. Raises UpstreamIncomplete where it was no answer."""
    if word := next((unknown or word for unknown, word in ends if unknown or word in WITHOUT_ANSWER), None):
        raise UpstreamIncomplete(f"The provider said nothing, and ended with `{word[:100]}`.")
    if not spent:
        raise UpstreamIncomplete("The provider's stream ended without an answer in it.")


def word_in(value: Any) -> str | None:
    """The word of a finish reason as providers send it; None where it says nothing: `""`, or `null` in so many letters
    (DashScope's own format, in every chunk). Some send an object that names it (`{"type": "stop"}`)."""
    if isinstance(value, dict):
        value = value.get("type") or value.get("reason") or value.get("finish_reason")
    if isinstance(value, list):
        value = value[0] if value else None
    if value is None or isinstance(value, bool):
        return None
    word = str(value).strip()
    return None if word.lower() in ("", "null", "none", "0") else word


def _spelled(word: str) -> str:
    return "".join(letter for letter in word.lower() if letter not in "_- ")


def _any() -> dict[str, Ending]:
    found: dict[str, Ending] = {}
    for words in FORMATS.values():
        for word, meaning in words.endings.items():
            found.setdefault(_spelled(word), meaning)
    return found


_ANY = _any()
