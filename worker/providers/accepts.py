"""What a provider accepts of a request in OpenAI's format, where providers differ: data, no code.

Hidden here: which wire format wants what of everyone who speaks it, and what it costs nothing to assume of a server nobody
knows. What a certain vendor accepts is its row's in registry.py; who acts on it is history.py and the formats. Where a value
has no source beside it, it is the vendor's API reference or SDK (mistralai 3.7, groq 1.x, cerebras-cloud-sdk, anthropic 2.14).
"""

from __future__ import annotations

import string
from dataclasses import dataclass
from typing import Literal, NamedTuple

REASONING_TEXTS = ("reasoning_content", "reasoning", "thinking")
"""Fields of an assistant's message with its reasoning as text, in the order in which they are looked for."""


class CallIds(NamedTuple):
    """The ids of tool calls that a provider takes: of these characters (empty: of any), so many of them."""

    alphabet: str = ""
    least: int = 1
    most: int = 1000


@dataclass(frozen=True, slots=True)
class Accepts:
    """The defaults are those of a server that speaks OpenAI's format and is otherwise unknown."""

    strict: bool = False
    """A field it does not know, in a message, a part or a tool, is an error. Others skip it."""
    message_fields: tuple[str, ...] = ()
    """Fields of messages that it wants though OpenAI has none such; to a strict one nothing else goes."""
    reasoning: tuple[str, ...] = (*REASONING_TEXTS, "reasoning_details")
    """Under which names it takes reasoning back; under the first, where a message has it under another. None: it does not."""
    no_reasoning: str | None = None
    """What stands for reasoning in an assistant's message that has none, where the field has to be there."""
    thinking_parts: Literal["list", "signed", "text"] | None = None
    """Reasoning may be a part of the content, with text (Cohere), a list of texts (Mistral), or signed (Claude)."""
    developer: bool = False
    """It knows the role `developer`; for others that is `system`."""
    names: bool = True
    """Messages may have a `name`."""
    text_parts: bool = True
    """Text may come in parts; for others, parts that are text and nothing else are one string."""
    blank_text: bool = True
    """Text of white space alone is allowed."""
    empty_answers: bool = False
    """An assistant's message may say nothing at all; for others it is left out."""
    raw_arguments: bool = False
    """Arguments of earlier calls may be any text; for others they are an object, as JSON."""
    call_ids: CallIds = CallIds()
    lone_results: bool = False
    """A tool's result may stand without its call, which the provider keeps; for others the user tells it."""
    unlimited: bool = False
    """A token limit of -1 is none; for others it is left out, which is the same."""
    most_stops: int | None = None
    """So many stop sequences; more are refused by us, with words."""
    efforts: tuple[str, ...] = ()
    """Of OpenAI's values of `reasoning_effort` those that it knows; the nearest is sent. Empty: it is passed on as it is."""
    leaves_out: tuple[str, ...] = ()
    """Request fields that it refuses, and that change no answer's meaning."""
    renames: tuple[tuple[str, str], ...] = ()
    """Request fields with another name there."""
    user_after_tool: bool = True
    """What the user says may follow a tool's result. Mistral refuses that (400, code 3230, "Unexpected role 'user' after role
    'tool'"): for it the assistant says "OK." between them."""
    prefill_field: str | None = None
    """It goes on with an assistant's message at the end where this field of it is true, and refuses it without."""


_WORD = string.ascii_letters + string.digits
HINTS = ("user", "safety_identifier", "prompt_cache_key", "prompt_cache_options", "prompt_cache_retention")
"""Who asks, and what the cache is told."""

OPENAI = Accepts(
    strict=True,
    reasoning=(),
    developer=True,
    empty_answers=True,
    raw_arguments=True,
    call_ids=CallIds(most=40),
    most_stops=4,
)

FORMATS: dict[str, Accepts] = {
    "openai": Accepts(),
    # platform.claude.com/docs/en/api/messages; ids longer than 64 are refused where Claude is Amazon's.
    "anthropic": Accepts(call_ids=CallIds(_WORD + "_-", 1, 64), blank_text=False, thinking_parts="signed"),
    "gemini": Accepts(most_stops=5),
    "cohere": Accepts(most_stops=5, thinking_parts="text"),
    "ollama": Accepts(reasoning=("thinking",), text_parts=False),
    # The call may stand in the response that `previous_response_id` names.
    "responses": Accepts(developer=True, raw_arguments=True, call_ids=CallIds(most=64), lone_results=True),
}
"""What each wire format means for everyone who speaks it, by its name in shared/config/formats.py."""

DEEPSEEK = Accepts(
    reasoning=("reasoning_content",),
    no_reasoning="",  # api-docs.deepseek.com/guides/thinking_mode: it has to come back, be it empty
    text_parts=False,
    most_stops=16,
)
GROQ = Accepts(
    strict=True,
    reasoning=(),  # `reasoning` is for some of its models, an error to the others
    names=False,
    most_stops=4,
    efforts=("none", "low", "medium", "high"),
    leaves_out=(*HINTS[1:], "prediction", "verbosity"),
)
MISTRAL = Accepts(
    strict=True,
    message_fields=("prefix", "name"),
    reasoning=(),
    thinking_parts="list",
    names=False,
    text_parts=False,
    call_ids=CallIds(_WORD, 9, 9),
    leaves_out=(*HINTS, "service_tier", "stream_options", "verbosity"),
    renames=(("seed", "random_seed"),),
    user_after_tool=False,
    prefill_field="prefix",
)
CEREBRAS = Accepts(
    strict=True,
    message_fields=("name",),
    reasoning=("reasoning",),
    developer=True,
    most_stops=4,
    efforts=("none", "low", "medium", "high"),
    leaves_out=(*HINTS[1:2], *HINTS[3:], "verbosity"),
)
MOONSHOT = Accepts(
    message_fields=("partial",),
    reasoning=("reasoning_content",),
    no_reasoning=" ",  # beside tool calls it has to be there, and not empty
    text_parts=False,
    prefill_field="partial",
)
