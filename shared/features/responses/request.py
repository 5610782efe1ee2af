"""What a Responses request may look like, and the canonical chat request that it is.

Hidden here: how each field is called on the other side (`text.format` is `response_format`, tools are nested), and which
fields a chat cannot carry. The rule is the chat's own: unknown fields are passed on, and what would be missed later is
refused now, by the name of its field.

What an answer repeats of its request is read from the chat request again (`echoed`); the little that has no place there
stands beside it as `terms`, which no provider gets to see:

    instructions          whether the first message is the request's `instructions`
    summary               `reasoning.summary`: reasoning is shown as a summary
    native                the request as it came, for a provider that speaks this API; the messages are then what of it a chat
                          can say
    own                   how many of the messages are its own input's
    namespaces            of tools, see namespaces.py
    and, as they came: reasoning_context, max_tool_calls, include, previous_response_id, store, conversation
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import Field, StringConstraints, Tag, model_validator

from shared.chat.checking import Lenient, check, either, wrong
from shared.chat.request import ChatRequest, Metadata, WebhookRequest
from shared.errors import BadRequest
from shared.features.responses.items import Calls, Item, Message, as_items, to_messages
from shared.features.responses.namespaces import NAMESPACES, flattened, grouped, own_names, with_flat_name
from shared.features.responses.tools import add_text, flat_choice, flat_text, flat_tool, nested_choice, nested_tool
from shared.log.records import Header

TERMS = "responses"
"""The field of a chat request in which the terms stand. It is one of EXTENSION_FIELDS."""

SAME = (
    "model stream temperature top_p top_logprobs metadata parallel_tool_calls service_tier user safety_identifier "
    "prompt_cache_key on_interruption on_disconnect max_tokens_per_s background webhook store_reasoning"
).split()
"""Fields that are called the same on both sides."""

_REFUSED = {
    "messages": "it is called input here",
    "max_tokens": "it is called max_output_tokens here",
    "max_completion_tokens": "it is called max_output_tokens here",
    "response_format": "it is called text.format here",
    "reasoning_effort": "it is called reasoning.effort here",
    "verbosity": "it is called text.verbosity here",
    "functions": "it is called tools here",
    "function_call": "it is called tool_choice here",
    "n": "a response has one answer",
    "prompt": "this server keeps no prompt templates; send instructions and input",
    "context_management": "this server does not compact what it is sent; send what the model shall see",
    "session_id": "continue with previous_response_id here",
    "modalities": "a response is text",
    "audio": "a response is text",
}
"""Fields that mean something elsewhere, and what to do instead."""

NOTHING_NEW = {"role": "user", "content": ""}
"""For checking a request that goes on without saying anything; it is not sent."""

_INCLUDED = {
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
    "message.input_image.image_url",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
}


class Named(Lenient):
    name: Annotated[str, StringConstraints(min_length=1)]


class Tool(Lenient):
    """A function, a custom tool, or a namespace of them. Hosted tools run at OpenAI, and nowhere else."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    format: dict[str, Any] | None = None
    tools: list[Tool] | None = None

    @model_validator(mode="after")
    def _can_be_carried(self) -> Self:
        if self.type not in ("function", "custom", "namespace"):
            raise wrong(
                "type",
                "This server carries function and custom tools, and namespaces of them; hosted tools run at their maker's "
                'only. Switch them off in the client (Codex: web_search = "disabled")',
            )
        if self.type == "namespace" and not self.tools:
            raise wrong("tools", "Input is required: the tools of the namespace")
        if self.type == "namespace" and any(tool.type == "namespace" for tool in self.tools or ()):
            raise wrong("tools", "A namespace holds function and custom tools")
        if not self.name:
            raise wrong("name", "Input is required: the name of the tool")
        return self


class Choice(Lenient):
    type: str
    name: str | None = None
    mode: Literal["auto", "required"] | None = None
    tools: list[dict[str, Any]] | None = None

    @model_validator(mode="after")
    def _can_be_carried(self) -> Self:
        if self.type not in ("function", "custom", "allowed_tools"):
            raise wrong("type", "Input should be function, custom or allowed_tools")
        if self.type == "allowed_tools":
            if self.mode is None or self.tools is None:
                raise wrong("tools", "Input is required beside mode: the tools that are allowed")
            for tool in self.tools:
                if tool.get("type") not in ("function", "custom") or not isinstance(tool.get("name"), str):
                    raise wrong("tools", "Each should be a function or custom tool with its name")
        elif not self.name:
            raise wrong("name", "Input is required: the name of the tool")
        return self


class Format(Lenient):
    """`text`, `json_object`, or `json_schema` with its fields beside the type."""

    type: Literal["text", "json_object", "json_schema"]
    name: Annotated[str, StringConstraints(min_length=1, max_length=64)] | None = None
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _is_whole(self) -> Self:
        if self.type == "json_schema" and self.name is None:
            raise wrong("name", "Input is required: a name for the schema")
        if self.type == "json_schema" and self.schema_ is None:
            raise wrong("schema", "Input is required: a JSON schema")
        return self


class Text(Lenient):
    format: Format | None = None
    verbosity: str | None = None


class Reasoning(Lenient):
    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None


class StreamOptions(Lenient):
    include_obfuscation: bool | None = None


class ConversationId(Lenient):
    id: str


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<string>")] | Annotated[Choice, Tag("<object>")],
    either("none, auto, required, or an object that names a tool"),
]
Conversation = Annotated[
    Annotated[str, Tag("<string>")] | Annotated[ConversationId, Tag("<object>")],
    either("the id of a conversation, or an object that has it"),
]


class ResponsesRequest(Lenient):
    """Body of POST /v1/responses (platform.openai.com/docs/api-reference/responses/create), and our extensions at the end."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$")]
    input: str | list[dict[str, Any]] | None = None
    instructions: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    background: bool | None = None
    store: bool | None = None
    previous_response_id: str | None = None
    conversation: Conversation | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: Annotated[int, Field(ge=1)] | None = None
    text: Text | None = None
    reasoning: Reasoning | None = None
    include: list[str] | None = None
    temperature: Annotated[float, Field(ge=0)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: Metadata | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    service_tier: str | None = None
    client_metadata: dict[str, Any] | None = None
    on_interruption: Literal["fail", "restart"] | None = None
    on_disconnect: Literal["continue", "cancel"] | None = None
    max_tokens_per_s: float | None = None
    store_reasoning: bool | None = None
    webhook: WebhookRequest | None = None

    @model_validator(mode="after")
    def _can_be_carried(self) -> Self:
        for field, instead in _REFUSED.items():
            if (self.model_extra or {}).get(field):
                raise wrong(field, f"Not a field of this API: {instead}")
        if isinstance(self.tool_choice, Choice) and not self.tools:
            raise wrong("tool_choice", "Names a tool, but there are no tools")
        if self.truncation == "auto" and self.conversation is None:
            raise wrong(
                "truncation", "`auto` needs the size of the model's context, which is not known here; send disabled"
            )
        if self.conversation is not None and self.previous_response_id is not None:
            raise wrong("conversation", "Not allowed with previous_response_id: a response goes on from one of them")
        for name in self.include or ():
            if name not in _INCLUDED:
                raise wrong("include", f"Input should be among {', '.join(sorted(_INCLUDED))}")
        if self.background and self.on_disconnect == "cancel":
            raise wrong("on_disconnect", "Not allowed with background, which nobody has to watch")
        return self

    @classmethod
    def check(cls, body: object) -> Self:
        """Raises BadRequest naming the first wrong field: `tools[0].type`, or `input[2].content` from its items."""
        if isinstance(body, dict) and not isinstance(body.get("input"), str | None):
            as_items(body["input"])
        return check(cls, body)

    @property
    def items(self) -> list[Item]:
        """The items of `input`."""
        return as_items(self.input if self.input is not None else [])

    @property
    def conversation_id(self) -> str | None:
        found = self.conversation
        return found.id if isinstance(found, ConversationId) else found


class Asked(NamedTuple):
    """A request in both forms: as it is checked, and as it is stored."""

    request: ChatRequest
    body: dict[str, Any]


def to_chat(
    given: dict[str, Any],
    request: ResponsesRequest,
    items: Sequence[Item],
    *,
    calls: Calls | None = None,
    thoughts: Mapping[str, Message] | None = None,
) -> Asked:
    """The chat request of a Responses request: `given` as it came, with `items` for its input; `calls` and `thoughts` as for
    `to_messages`.

    Raises BadRequest naming the field that cannot be carried.
    """
    keep = bool(request.store_reasoning)
    messages = to_messages(list(map(with_flat_name, items)), keep_reasoning=keep, calls=calls, thoughts=thoughts)
    if not (messages or request.previous_response_id or request.conversation_id):
        raise BadRequest("input: Input is required: a string, or items.", param="input")
    if request.instructions is not None:
        messages.insert(0, {"role": "system", "content": request.instructions})
    known = ResponsesRequest.model_fields.keys() | _REFUSED.keys()
    body = {field: value for field, value in given.items() if field not in known and value is not None}
    body |= {field: given[field] for field in SAME if given.get(field) is not None}
    body["messages"] = messages
    if request.max_output_tokens is not None:
        body["max_completion_tokens"] = request.max_output_tokens
    tools, spaces = flattened(given.get("tools") or ())
    if tools:
        _check_names(given["tools"], tools, spaces)
        body["tools"] = [nested_tool(tool) for tool in tools]
        if request.tool_choice is not None:
            body["tool_choice"] = nested_choice(given["tool_choice"])
    else:
        body.pop("parallel_tool_calls", None)  # OpenAI refuses it without tools, and agents send it all the same
    if request.text is not None:
        add_text(body, given["text"])
    if request.reasoning is not None and request.reasoning.effort is not None:
        body["reasoning_effort"] = request.reasoning.effort
    if request.top_logprobs or "message.output_text.logprobs" in (request.include or ()):
        body["logprobs"] = True
    body[TERMS] = _terms(given, request) | ({NAMESPACES: spaces} if spaces else {})
    if request.conversation_id is not None:
        body |= session_terms(request)
    try:
        checked = ChatRequest.check(body if messages else {**body, "messages": [NOTHING_NEW]})
    except BadRequest as error:
        raise BadRequest(f"As a chat request, which it becomes here: {error}", param=error.param) from None
    # How long it is kept here; in the body, it would be the provider's to keep.
    checked.store = request.store is not False
    return Asked(checked, body)


def _check_names(
    given: Sequence[dict[str, Any]], tools: Sequence[dict[str, Any]], spaces: Mapping[str, dict[str, Any]]
) -> None:
    """Where there are namespaces, no two tools may have one name in the chat, nor two namespaces one: a call names its tool by
    both. Raises BadRequest."""
    if not spaces:
        return
    groups = [tool["name"] for tool in given if tool["type"] == "namespace"]
    for what, names in (("namespaces", groups), ("tools", [tool["name"] for tool in tools])):
        name, count = Counter(names).most_common(1)[0]
        if count > 1:
            raise BadRequest(f"tools: Two {what} are called {name[:64]} in a chat; rename one.", param="tools")


def session_terms(request: ResponsesRequest) -> dict[str, Any]:
    """A conversation as the session whose turn this is. Reasoning is kept for the model that calls tools, and not shown."""
    trim = {"session_trim": "oldest"} if request.truncation == "auto" else {}
    return {"session_id": request.conversation_id, "session_policy": "reject", "store_reasoning": True, **trim}


def _terms(given: dict[str, Any], request: ResponsesRequest) -> dict[str, Any]:
    reasoning = request.reasoning or Reasoning()
    terms = {
        "instructions": True if request.instructions is not None else None,
        "summary": reasoning.summary or reasoning.generate_summary,
        "reasoning_context": (reasoning.model_extra or {}).get("context"),
        "tool_choice": given.get("tool_choice") if not request.tools else None,
        "max_tool_calls": request.max_tool_calls,
        "include": request.include or None,
        "previous_response_id": request.previous_response_id,
        "conversation": request.conversation_id,
        "parallel_tool_calls": request.parallel_tool_calls if not request.tools else None,
        "store": request.store,
    }
    return {name: value for name, value in terms.items() if value is not None}


def echoed(header: Header, body: dict[str, Any]) -> dict[str, Any]:
    """What the response object repeats of its request, by the log's header and the chat request that is stored there. What was
    not asked for is shown as what OpenAI does then, where Open Responses wants a value (openresponses.org/specification)."""
    terms = body[TERMS]
    if (native := terms.get("native")) is not None:
        plain = echoed(header, {**body, TERMS: {name: value for name, value in terms.items() if name != "native"}})
        ours = ("model", "previous_response_id", "metadata")
        told = {name: native[name] for name in plain.keys() & native.keys() - set(ours) if native[name] is not None}
        return {**plain, **told, "reasoning": {**plain["reasoning"], **(told.get("reasoning") or {})}}
    conversation = terms.get("conversation")
    reasoning = {"effort": body.get("reasoning_effort"), "summary": terms.get("summary")}
    if terms.get("reasoning_context") is not None:
        reasoning["context"] = terms["reasoning_context"]
    tools, spaces = body.get("tools") or (), terms.get(NAMESPACES) or {}
    names = own_names(spaces)
    return {
        "background": bool(header.get("background")),
        "conversation": {"id": conversation} if conversation else None,
        "frequency_penalty": body.get("frequency_penalty", 0.0),
        "instructions": body["messages"][0]["content"] if terms.get("instructions") else None,
        "max_output_tokens": body.get("max_completion_tokens"),
        "max_tool_calls": terms.get("max_tool_calls"),
        "metadata": body.get("metadata") or {},
        "model": header["model"],
        "parallel_tool_calls": body.get("parallel_tool_calls", terms.get("parallel_tool_calls", True)),
        "presence_penalty": body.get("presence_penalty", 0.0),
        "previous_response_id": terms.get("previous_response_id"),
        "prompt_cache_key": body.get("prompt_cache_key"),
        "reasoning": reasoning,
        "safety_identifier": body.get("safety_identifier"),
        "service_tier": body.get("service_tier", "default"),
        "store": terms.get("store", True),
        "temperature": body.get("temperature", 1.0),
        "text": flat_text(body),
        "tool_choice": flat_choice(body.get("tool_choice") or terms.get("tool_choice") or "auto", names),
        "tools": grouped([flat_tool(tool) for tool in tools], spaces),
        "top_logprobs": body.get("top_logprobs", 0),
        "top_p": body.get("top_p", 1.0),
        "truncation": "auto" if body.get("session_trim") == "oldest" else "disabled",
        "user": body.get("user"),
    }
