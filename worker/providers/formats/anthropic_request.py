"""A chat request said in Anthropic's words (platform.claude.com/docs/en/api/messages). Pure functions.

Hidden here: how OpenAI's messages, tools and limits are said as Anthropic's blocks; anthropic.py reads the answer.

- An answer has a limit always; without the client's own it is 8192 tokens, and as much more as the thinking may take.
- `response_format` json_schema is `output_config.format`, with what of the schema Claude can be held to (schemas.py);
  json_object is refused, since there is nothing like it.
- Thinking is left out where Claude could not go on with it: in a loop of tool calls that began without, and where a call is
  forced. With thinking, and from Claude 4.7 on always, `temperature`, `top_p` and `top_k` are left out: they are refused.
- A request of nothing but instructions is what the user says: Claude answers turns, and there is no other.
- OpenAI's hints to itself (seed, store, prediction, prompt_cache_key, tiers other than Anthropic's) are left out: they
  change no answer's meaning. So is `metadata`, which labels the generation, but for the `user_id` Anthropic knows.
- `betas`, as in Anthropic's SDKs, becomes the header `anthropic-beta`.
"""

from __future__ import annotations

import re
from base64 import b64decode
from typing import Any

from worker.providers import history, parts, schemas
from worker.providers.accepts import FORMATS, Accepts
from worker.providers.dialect import Call
from worker.providers.parts import wrong
from worker.providers.registry import Provider

VERSION = "2023-06-01"
_ANSWER_TOKENS = 8192
_LEAST_BUDGET = 1024
_BUDGETS = {"minimal": 1024, "low": 2048, "medium": 8192, "high": 16384, "xhigh": 32768, "max": 32768}
_EFFORTS = {"minimal": "low"}
_THOUGHTS = ("thinking", "redacted_thinking")
_ACCEPTS = FORMATS["anthropic"]
_BETA = re.compile(r"[\w.-]{1,100}")

# From Claude 4.6 on the model itself decides how much to think, and a budget is deprecated, later refused. Older models, and
# other vendors' models that speak the format, have budgets.
# What stands behind the version is a date, or a cloud's or gateway's own (`-v1:0`, `:beta`, `-thinking`).
_HAS_BUDGET = re.compile(
    r"^(?!.*claude)|claude-3|claude-(opus|sonnet|haiku)-4([.-][0-5](?!\d)|(?!\d|[.-]\d{1,2}(?!\d)))"
)

# platform.claude.com/docs/en/about-claude/models/migration-guide: from 4.7 on, models have no sampling options; from 4.1 on,
# temperature or top_p, not both.
_SAMPLES_NOT = re.compile(r"claude-[a-z]+-(4[.-][7-9](?!\d)|[5-9]|\d\d)|claude-mythos")
_SAMPLES_ONCE = re.compile(r"claude-[a-z]+-4[.-][1-6](?!\d)")
_THINKS_NOT = re.compile(r"claude-(instant|2|3-(opus|sonnet|haiku|5))")
"""Thinking began with Claude 3.7; an effort is a wish, and those before refuse it."""
_LEAST_TOP_P = 0.95  # with thinking

_UNKNOWN = (
    "n logprobs top_logprobs logit_bias frequency_penalty presence_penalty modalities verbosity functions function_call"
    " web_search_options"
).split()


def call(provider: Provider, body: dict[str, Any], model: str) -> Call:
    headers = {"anthropic-version": VERSION}
    if provider.api_key is not None:
        headers["x-api-key"] = provider.api_key
    if betas := body.get("betas"):
        if not isinstance(betas, list) or not all(isinstance(beta, str) and _BETA.fullmatch(beta) for beta in betas):
            raise wrong("betas", "must be a list of names.")
        headers["anthropic-beta"] = ",".join(betas)
    return Call("/messages", build_request(body, model, provider.accepts), headers)


def build_request(body: dict[str, Any], model: str, accepts: Accepts = _ACCEPTS) -> dict[str, Any]:
    """The body to send. Raises BadRequest for what Anthropic has no words for."""
    parts.refuse(body, "Anthropic", *_UNKNOWN)
    system, turns = _conversation(body, accepts)
    tools, own = _tools(body), body.get("thinking")
    forced = tools.get("tool_choice", {}).get("type") in ("any", "tool")
    if forced and _is_thinking(own):
        raise wrong("tool_choice", "Claude cannot think and be forced to call a tool. Leave one of the two out.")
    thinks = not (forced or _THINKS_NOT.search(model) or _is_in_loop_without_thought(turns, model))
    request: dict[str, Any] = {"model": model, "messages": turns, "stream": True, **_limit(body, model, thinks=thinks)}
    if system:
        plain = all(block.keys() == {"type", "text"} for block in system)
        request["system"] = "\n\n".join(block["text"] for block in system) if plain else system
    request |= _sampling(body, model, thinking=thinks and _is_thinking(request.get("thinking", own)))
    if stops := _stops(body, accepts):
        request["stop_sequences"] = stops
    if user := (body.get("metadata") or {}).get("user_id") or body.get("user") or body.get("safety_identifier"):
        request["metadata"] = {"user_id": user}
    if tier := {"auto": "auto", "default": "standard_only", "standard_only": "standard_only"}.get(
        str(body.get("service_tier"))
    ):
        request["service_tier"] = tier
    kind, schema = parts.response_schema(body)
    if kind == "json_object":
        raise wrong("response_format", "Anthropic needs to know the schema. Send one as json_schema.")
    if schema is not None:
        request["output_config"] = {
            **request.get("output_config", {}),
            "format": {"type": "json_schema", "schema": schemas.for_claude(schema)},
        }
    return parts.add_own(request | tools, body, without=("betas", "top_k", *(() if thinks else ("thinking",))))


def _stops(body: dict[str, Any], accepts: Accepts) -> list[str]:
    stops = parts.stops(body, accepts)
    if not all(stop.strip() for stop in stops):
        raise wrong("stop", "Anthropic cannot stop at white space. Leave it out, or ask another model.")
    return stops


def _is_thinking(thinking: Any) -> bool:
    return isinstance(thinking, dict) and thinking.get("type") in ("enabled", "adaptive")


def _is_in_loop_without_thought(turns: list[dict[str, Any]], model: str) -> bool:
    """Whether tools are being used in an answer that did not begin with a thought: a model with a budget of them cannot begin
    to think in the middle (platform.claude.com/docs/en/build-with-claude/extended-thinking, on tool use). Clients of OpenAI's
    format keep no thoughts, so theirs all are. Models that decide by themselves may begin at any time."""
    if not _HAS_BUDGET.search(model):
        return False
    begun = len(turns)
    while begun and (turns[begun - 1]["role"] == "assistant" or _has_results(turns[begun - 1])):
        begun -= 1
    answers = [turn for turn in turns[begun:] if turn["role"] == "assistant"]
    return bool(answers) and answers[0]["content"][0].get("type") not in _THOUGHTS


def _has_results(turn: dict[str, Any]) -> bool:
    return any(block["type"] == "tool_result" for block in turn["content"])


def _sampling(body: dict[str, Any], model: str, *, thinking: bool) -> dict[str, Any]:
    """`temperature`, `top_p` and `top_k`, as far as the model takes them. They are wishes, and the answer the request."""
    wanted = {field: body[field] for field in ("temperature", "top_p", "top_k") if body.get(field) is not None}
    if _SAMPLES_NOT.search(model):
        return {}
    if thinking:
        return {"top_p": wanted["top_p"]} if wanted.get("top_p", 0) >= _LEAST_TOP_P else {}
    if "temperature" in wanted:
        wanted["temperature"] = min(wanted["temperature"], 1)  # OpenAI's goes up to 2
        if _SAMPLES_ONCE.search(model):
            wanted.pop("top_p", None)
    return wanted


def _limit(body: dict[str, Any], model: str, *, thinks: bool) -> dict[str, Any]:
    """The limit and, where it can be, `thinking`. OpenAI's limit includes thinking, and so does Anthropic's: half of it may be
    thought, and it is raised only where it is below the least that Anthropic lets a model think (1024 tokens)."""
    limit, effort = parts.token_limit(body), parts.effort(body)
    if effort is None or effort == "none":
        own = body.get("thinking")
        budget = own.get("budget_tokens") if isinstance(own, dict) else None
        request: dict[str, Any] = {"max_tokens": limit or _ANSWER_TOKENS + (budget if type(budget) is int else 0)}
        if effort:
            request["thinking"] = {"type": "disabled"}
        return request
    budget = _BUDGETS[effort]
    if not _HAS_BUDGET.search(model):
        thinking = {"thinking": {"type": "adaptive", "display": "summarized"}} if thinks else {}
        effort = _EFFORTS.get(effort, effort)
        return {"max_tokens": limit or _ANSWER_TOKENS + budget, **thinking, "output_config": {"effort": effort}}
    if not thinks:
        return {"max_tokens": limit or _ANSWER_TOKENS}
    if limit is None:
        limit = _ANSWER_TOKENS + budget
    else:
        budget = max(_LEAST_BUDGET, min(budget, limit // 2))
        limit = limit if limit > budget else limit + budget
    return {"max_tokens": limit, "thinking": {"type": "enabled", "budget_tokens": budget}}


def _conversation(body: dict[str, Any], accepts: Accepts) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The system's blocks, and the turns. Messages of one side that follow each other are one turn, in which results come
    first (platform.claude.com/docs/en/agents-and-tools/tool-use/implement-tool-use, on parallel results)."""
    system: list[dict[str, Any]] = []
    turns: list[dict[str, Any]] = []
    for message, param in parts.messages(body, "Anthropic", accepts):
        role = message["role"]
        if role in ("system", "developer"):
            parts.plain_text(message, param, "A system message")
            system += _blocks(message, param)
            continue
        if role == "assistant":
            blocks = _assistant(message, param)
        elif role == "tool":
            role, blocks = "user", [_tool_result(message, param)]
        else:
            blocks = _blocks(message, param)
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        elif blocks:
            turns.append({"role": role, "content": blocks})
    for turn in turns:
        turn["content"].sort(key=lambda block: turn["role"] == "user" and block.get("type") != "tool_result")
    if not turns and system:
        return [], [{"role": "user", "content": system}]
    if not turns:
        raise wrong("messages", "nobody says anything. Add what the user says.")
    if turns[0]["role"] == "assistant":  # a conversation whose beginning was cut off
        turns.insert(0, {"role": "user", "content": [{"type": "text", "text": history.BEGINNING}]})
    if turns[-1]["role"] == "assistant" and (last := turns[-1]["content"][-1]).get("type") == "text":
        turns[-1]["content"][-1] = {
            **last,
            "text": last["text"].rstrip(),
        }  # what is gone on with may not end with a space
    return system, turns


def _assistant(message: dict[str, Any], param: str) -> list[dict[str, Any]]:
    """Thinking comes first: Anthropic wants it where it was, before what followed from it."""
    if message.get("audio"):
        raise wrong(f"{param}.audio", "Anthropic cannot hear. Send what was said as text.")
    blocks = []
    for thought, where in parts.items(message.get("thinking_blocks"), f"{param}.thinking_blocks"):
        if thought.get("type") not in _THOUGHTS:
            raise wrong(where, "must be of the type thinking or redacted_thinking.")
        if thought.get("signature") or thought.get("data"):  # without one it is not Claude's, and would be refused
            blocks.append(parts.unplaced(thought))
    for block, _ in parts.items(message.get("anthropic_blocks"), f"{param}.anthropic_blocks"):
        blocks.append(parts.unplaced(block))
    blocks += _blocks(message, param)
    for call in parts.tool_calls(message, param):
        blocks.append({"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments})
    return blocks


def _tool_result(message: dict[str, Any], param: str) -> dict[str, Any]:
    block: dict[str, Any] = {"type": "tool_result"}
    block["tool_use_id"] = parts.string(message.get("tool_call_id"), f"{param}.tool_call_id")
    block |= {field: message[field] for field in ("is_error", "cache_control") if field in message}
    if isinstance(message.get("content"), str):
        block |= {"content": message["content"]} if message["content"].strip() else {}
    elif blocks := _blocks(message, param):
        block["content"] = blocks
    return block


def _blocks(message: dict[str, Any], param: str) -> list[dict[str, Any]]:
    """The content of a message. Parts with a type that is not OpenAI's are Anthropic's own, and stay as they are."""
    blocks = []
    for part, where in parts.content(message, param, blank=_ACCEPTS.blank_text):
        kind = part.get("type")
        if kind == "image_url":
            block = {"type": "image", "source": _source(parts.image_url(part, where), where)}
        elif kind == "file":
            block = _document(parts.mapping(part.get("file"), f"{where}.file"), f"{where}.file")
        elif kind == "refusal":
            block = {"type": "text", "text": parts.string(part.get("refusal"), f"{where}.refusal")}
        elif kind == "input_audio":
            raise wrong(where, "Anthropic cannot hear. Send what was said as text.")
        else:
            blocks.append({**part, "type": parts.string(kind, f"{where}.type")})
            continue
        if "cache_control" in part:
            block["cache_control"] = part["cache_control"]
        blocks.append(block)
    return blocks


def _source(url: str, param: str) -> dict[str, Any]:
    if data := parts.data_url(url, param):
        return {"type": "base64", "media_type": data[0], "data": data[1]}
    if not url.startswith(("https://", "http://")):
        raise wrong(param, "must be an http:, https: or data: URL.")
    return {"type": "url", "url": url}


def _document(file: dict[str, Any], param: str) -> dict[str, Any]:
    block: dict[str, Any] = {"type": "document"}
    if file.get("filename"):
        block["title"] = file["filename"]
    if file_id := file.get("file_id"):
        return {**block, "source": {"type": "file", "file_id": parts.string(file_id, f"{param}.file_id")}}
    source = _source(parts.string(file.get("file_data"), f"{param}.file_data"), f"{param}.file_data")
    if source.get("media_type") == "text/plain":
        try:
            source = {**source, "type": "text", "data": b64decode(source["data"], validate=True).decode()}
        except ValueError:
            raise wrong(f"{param}.file_data", "must be text in UTF-8, in base64.") from None
    return {**block, "source": source}


def _tools(body: dict[str, Any]) -> dict[str, Any]:
    functions, tools = parts.tools(body)
    for function in functions:
        described = {} if function.description is None else {"description": function.description}
        more = {key: value for key, value in function.more.items() if value is not None}
        schema = schemas.of_object(function.parameters)
        if more.get("strict") is True:
            schema = schemas.for_claude(schema)
        tools.append({"name": function.name, **described, "input_schema": schema, **more})
    choice = body.get("tool_choice")
    if not (isinstance(choice, dict) and choice.get("type") in ("auto", "any", "tool", "none")):
        mode, name = parts.tool_choice(body)
        choice = {"type": {"required": "any", "function": "tool"}.get(mode, mode), **({"name": name} if name else {})}
    if body.get("parallel_tool_calls") is False and choice["type"] != "none":
        choice = {**choice, "disable_parallel_tool_use": True}
    if not tools:
        if choice["type"] in ("any", "tool"):
            raise wrong("tool_choice", "there are no tools to choose from.")
        return {}
    return {"tools": tools} if choice == {"type": "auto"} else {"tools": tools, "tool_choice": choice}
