"""What a chat request may look like: OpenAI's contract, as wide as the providers behind it.

Hidden here: which types and ranges there are; checking.py names the first wrong field. The rule is to refuse what every
provider would refuse, with a better message and at once, and nothing that one of them accepts. So unknown fields pass;
where a known provider goes further than OpenAI (platform.openai.com/docs/api-reference/chat/create), its range holds,
and the comment beside the field says whose. What is left, a provider refuses by itself, and its own words are passed on.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    Tag,
    model_validator,
)

from shared.chat.checking import Lenient, check, either, wrong
from shared.config.settings import MAX_TOKENS_PER_S

# OpenAI: 64 of letters, digits, `_` and `-`. Anthropic takes 128 of them, Gemini dots and colons, too.
_FUNCTION_NAME = re.compile(r"[a-zA-Z0-9_.:-]{1,128}", re.ASCII)

_PART_CONTENT: dict[str, tuple[type, ...]] = {
    "text": (str,),
    "refusal": (str,),
    "image_url": (dict, str),  # Mistral takes the bare URL
    "input_audio": (dict,),
    "file": (dict,),
}
"""Known types of parts, and what stands in the field of the same name."""

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}

# ---- messages


class Part(Lenient):
    """One part of a message's content. Unknown types pass (`video_url`, `document`, …)."""

    type: str

    @model_validator(mode="after")
    def _has_content(self) -> Self:
        wanted = _PART_CONTENT.get(self.type)
        value = (self.model_extra or {}).get(self.type)
        # Only text must be there: vLLM knows an image by its `uuid` alone.
        if wanted and not isinstance(value, wanted) and (value is not None or str in wanted[:1]):
            kind = "a string" if str in wanted[:1] else "an object"
            raise wrong(self.type, f"Input should be {kind} in a part of this type")
        return self


Content = Annotated[
    Annotated[str, Tag("<string>")] | Annotated[list[Part], Tag("<array>")], either("a string or an array of parts")
]


def _typed(call: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(call.get("type"), str | None):
        raise wrong("type", "Input should be a string: function or custom")
    return call


Call = Annotated[dict[str, Any], AfterValidator(_typed)]
"""Of a tool, in an earlier answer. What else is wrong with it, its format refuses, or mends (worker/providers/history.py)."""


class Message(Lenient):
    role: Literal["developer", "system", "user", "assistant", "tool", "function"]
    content: Content | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[Call] | None = None
    function_call: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.content is None:
            # An assistant's may be missing beside tool calls, a refusal, audio, or some provider's reasoning.
            other = any(value is not None for name, value in self if name not in ("role", "name"))
            if self.role == "function":
                pass  # null there is a result: nothing
            elif self.role != "assistant":
                raise wrong("content", "Input should be a string or an array of parts; send an empty string for none")
            elif not other:
                raise wrong("content", "Input is required unless the assistant's message has tool_calls")
        if self.role == "tool" and self.tool_call_id is None:
            raise wrong("tool_call_id", "Input is required in a tool message: the id of the call it answers")
        return self


# ---- tools


class Named(Lenient):
    name: Annotated[str, StringConstraints(min_length=1)]


class Function(Named):
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Lenient):
    """`function` and `custom` are OpenAI's; types of others pass (Z.ai's `web_search`, Moonshot's `builtin_function`)."""

    type: str | None = None  # Mistral: "function" if it is missing
    function: Function | None = None
    custom: Named | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.type is None and self.function is None:
            raise wrong("type", "Input is required: function or custom")
        if self.type in (None, "function"):
            if self.function is None:
                raise wrong("function", "Input is required: an object with name and parameters")
            _check_name(self.function, "function.name")
        if self.type == "custom" and self.custom is None:
            raise wrong("custom", "Input is required: an object with name")
        return self


class LegacyFunction(Function):
    """A member of `functions`, which `tools` replaced."""

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        _check_name(self, "name")
        return self


def _check_name(function: Function, field: str) -> None:
    if not _FUNCTION_NAME.fullmatch(function.name):
        raise wrong(field, "Input should be letters, digits, `_` and `-`, 64 at most for OpenAI and 128 for anybody")


class ChosenTool(Lenient):
    """`{type: function, function: {name}}`, `{type: custom, custom: {name}}`, `{type: allowed_tools, allowed_tools}`."""

    type: str | None = None  # vLLM: "function" if it is missing
    function: Named | None = None
    custom: Named | None = None
    allowed_tools: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.type is None and self.function is None:
            raise wrong("type", "Input is required: function, custom or allowed_tools")
        for kind in ("function", "custom", "allowed_tools"):
            if self.type == kind and getattr(self, kind) is None:
                raise wrong(kind, "Input is required: an object that says which")
        return self


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required", "any"], Tag("<string>")]  # `any`: Mistral
    | Annotated[ChosenTool, Tag("<object>")],
    either("none, auto, required, or an object that names a tool"),
]
FunctionChoice = Annotated[
    Annotated[Literal["none", "auto"], Tag("<string>")] | Annotated[Named, Tag("<object>")],
    either("none, auto, or an object that names a function"),
]


# ---- the rest of the request


class JsonSchema(Lenient):
    name: Annotated[str, StringConstraints(min_length=1, max_length=64)]
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Lenient):
    """`text`, `json_object`, `json_schema`; types of others pass (Fireworks' `grammar`, vLLM's `structural_tag`)."""

    type: str
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        # llama.cpp and Together take the schema itself, as `schema`.
        if self.type == "json_schema" and self.json_schema is None and not (self.model_extra or {}).get("schema"):
            raise wrong("json_schema", "Input is required: an object with name and schema")
        return self


class StreamOptions(Lenient):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class Prediction(Lenient):
    type: str
    content: Content


def _tokens(value: int) -> int:
    if value < 1 and value != -1:  # LM Studio, llama.cpp: -1 is "no limit"
        raise ValueError("Input should be greater than or equal to 1")
    return value


TokenLimit = Annotated[int, AfterValidator(_tokens)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
Metadata = Annotated[
    dict[Annotated[str, StringConstraints(max_length=64)], Annotated[str, StringConstraints(max_length=512)]],
    Field(max_length=16),
]
Stop = Annotated[
    # OpenAI takes 4, DeepSeek 16, Anthropic and vLLM any number.
    Annotated[str, Tag("<string>")] | Annotated[list[str], Tag("<array>")],
    either("a string or an array of strings"),
]
LogitBias = Annotated[
    # llama.cpp: false bans the token; and an array of pairs.
    Annotated[dict[str, float | Literal[False]], Tag("<object>")] | Annotated[list[Any], Tag("<array>")],
    either("an object of token ids and numbers"),
]


class WebhookRequest(BaseModel):
    """Where the event is sent when the generation has ended. Strict: a misspelt field would be noticed only when no webhook
    arrives."""

    model_config = ConfigDict(extra="forbid", strict=True)

    url: str


class ChatRequest(Lenient):
    """Body of POST /v1/chat/completions. What the broker acts on is at the end."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$")]
    messages: Annotated[list[Message], Field(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None  # OpenAI: up to 2; vLLM, Ollama: no end
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    max_tokens: TokenLimit | None = None
    max_completion_tokens: TokenLimit | None = None
    stop: Stop | None = None
    seed: int | None = None
    logprobs: bool | Annotated[int, Field(ge=0, le=20)] | None = None  # a number: Together, Fireworks
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    logit_bias: LogitBias | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: str | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: list[LegacyFunction] | None = None
    function_call: FunctionChoice | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: str | None = None  # every provider has values of its own
    verbosity: str | None = None
    modalities: list[str] | None = None
    audio: dict[str, Any] | None = None
    prediction: Prediction | None = None
    web_search_options: dict[str, Any] | None = None
    metadata: Metadata | None = None
    store: bool | None = None
    on_interruption: Literal["fail", "restart"] | None = None
    on_disconnect: Literal["continue", "cancel"] | None = None
    max_tokens_per_s: Annotated[float, Field(gt=0, le=MAX_TOKENS_PER_S)] | None = None
    session_id: str | None = None
    session_policy: Literal["reject", "enqueue", "interrupt"] | None = None
    session_trim: Literal["none", "oldest"] | None = None
    session_max_tokens: Annotated[int, Field(ge=1)] | None = None
    session_keep_partial: bool | None = None
    store_reasoning: bool | None = None
    reasoning_summary: bool | None = None
    background: bool | None = None
    webhook: WebhookRequest | None = None

    @property
    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise wrong("stream_options", "Only allowed when stream is true")
        if self.top_logprobs and not self.logprobs:
            raise wrong("top_logprobs", "Only allowed when logprobs is true")
        if self.background and self.on_disconnect == "cancel":
            raise wrong("on_disconnect", "Not allowed with background, which nobody has to watch")
        return self

    @classmethod
    def check(cls, body: object) -> ChatRequest:
        """Raises BadRequest naming the first wrong field the way OpenAI does: `messages[0].role`."""
        return check(cls, body)


class MetadataUpdate(BaseModel):
    """Body of POST /v1/chat/completions/{id}: the metadata that replace the old ones; null for none."""

    model_config = ConfigDict(extra="forbid", strict=True)

    metadata: Metadata | None

    @classmethod
    def check(cls, body: object) -> MetadataUpdate:
        """Raises BadRequest naming the first wrong field."""
        return check(cls, body)


class Life(BaseModel):
    """How long a file is kept, from its creation on."""

    model_config = ConfigDict(extra="forbid", strict=True)

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3600, le=2_592_000)]


class BatchRequest(BaseModel):
    """Body of POST /v1/batches (platform.openai.com/docs/api-reference/batch/create).

    OpenAI knows one `completion_window`, 24h; here it is a number of seconds, minutes, hours or days, up to a week.
    """

    model_config = ConfigDict(extra="forbid", strict=True)

    input_file_id: str
    endpoint: Literal["/v1/chat/completions", "/v1/responses", "/v1/embeddings", "/v1/completions", "/v1/moderations"]
    completion_window: Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,5}[smhd]$")]
    metadata: Metadata | None = None
    output_expires_after: Life | None = None
    webhook: WebhookRequest | None = None

    @property
    def window_s(self) -> int:
        return int(self.completion_window[:-1]) * _UNITS_S[self.completion_window[-1]]

    @model_validator(mode="after")
    def _within_a_week(self) -> Self:
        if self.window_s > _UNITS_S["d"] * 7:
            raise wrong("completion_window", "Input should be 7d at most")
        return self

    @classmethod
    def check(cls, body: object) -> BatchRequest:
        """Raises BadRequest naming the first wrong field."""
        return check(cls, body)
