"""Anthropic's Messages format (platform.claude.com/docs/en/api/messages). Pure functions.

Hidden here: how its blocks and their deltas become OpenAI's chunks. For example, `content_block_start` of a tool_use is the
opening of a tool call, and its `input_json_delta`s are that call's arguments.

- Thinking is `reasoning_content` while it is thought, and once more as a whole in `thinking_blocks` with its signature:
  an assistant message that has it is sent back the way Anthropic wants it (anthropic_request.py).
- Blocks that OpenAI has nothing like (web searches, code, compaction …) are `anthropic_blocks`, whole, and go back, too.
  Their place among the text is not kept: they stand before it.
- An input of which nothing came, or a part, may be where the answer was cut: what follows tells. Cut off, a call has no
  arguments, and another block is left out.
- Citations are `annotations`; one that is not of a web page has Anthropic's own type, and so stands in `other_annotations`.
- A message that comes whole is read as the events it would have been.
"""

from __future__ import annotations

from typing import Any

from shared.lib import json
from worker.providers import usage
from worker.providers.dialect import Dialect
from worker.providers.errors import readable, text_in
from worker.providers.finish import ending
from worker.providers.formats.anthropic_request import call
from worker.providers.tool_calls import text_of


class _Answer:
    """One message. Blocks come one after the other, each with its start, its deltas and its stop."""

    def __init__(self) -> None:
        self.done = False
        self._blocks: dict[int, _Block] = {}
        self._newest: _Block | None = None
        self._doubtful: _Block | None = None  # ended, perhaps by the cut of the answer
        self._usage: dict[str, Any] = {}
        self._counts: dict[str, int] = {}
        self._reason: str | None = None  # one that stands in the message's start, where no other follows
        self._length = 0  # of the content so far, in characters: what an annotation's place is counted in

    def feed(self, event: str, value: dict[str, Any]) -> list[dict[str, Any]]:
        with readable():
            kind = value.get("type") or event
            if kind in ("message", "") and isinstance(value.get("content"), list | str):
                return self._whole(value)
            if kind == "content_block_start":
                before = self._blocks.pop(_index(value), None)  # some leave out the stop, or the index
                block = self._blocks[_index(value)] = _Block(value["content_block"], self._length)
                ended = self._stopped(before) if before else []
                return [*ended, *self._settled(cut=False), *self._said(self._start(block))]
            if kind == "content_block_delta":
                if not value.get("delta"):
                    return []
                block = self._blocks.get(_index(value)) or self._unopened(value)
                return self._said(self._delta(block, value["delta"]))
            if kind == "content_block_stop":
                before = self._blocks.pop(_index(value), None)
                return self._stopped(before) if before else []  # some say it twice
            if kind == "message_start":
                # Nothing is handed out yet: an overload that follows can still be met by asking another target.
                message = value.get("message") or {}
                self._count(value.get("usage"))
                self._count(message.get("usage"))
                self._reason = message.get("stop_reason")
                return [chunk for raw in message.get("content") or () for chunk in self._block(raw)]
            elif kind == "message_delta":
                return self._finish(value)
            elif kind == "message_stop":
                self.done = True
                return self._last(value)
        return []  # pings, and what Anthropic may add: "your code should handle unknown event types gracefully"

    def _whole(self, message: dict[str, Any]) -> list[dict[str, Any]]:
        self._count(message.get("usage"))
        chunks, content = [], message["content"]
        for raw in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            chunks += self._block(raw)
        about = {key: message.get(key) for key in ("stop_reason", "stop_sequence", "stop_details", "container")}
        self.done = True
        return [*chunks, *self._finish({"type": "message_delta", "delta": about})]

    def _block(self, raw: dict[str, Any]) -> list[dict[str, Any]]:
        """A block that comes whole."""
        block = _Block(raw, self._length)
        return [*self._settled(cut=False), *self._said(self._start(block)), *self._stopped(block)]

    def _unopened(self, value: dict[str, Any]) -> _Block:
        """A block whose start never came, by the type of its deltas. Raises KeyError for one that cannot be known by it."""
        kind = {"text_delta": "text", "thinking_delta": "thinking"}[value["delta"]["type"]]
        block = self._newest = self._blocks[_index(value)] = _Block({"type": kind, kind: ""}, self._length)
        return block

    def _last(self, value: dict[str, Any]) -> list[dict[str, Any]]:
        """Figures that came with no `message_delta`, or stand in the last event (Amazon's, under names of its own)."""
        told = value.get("usage") or {}
        metrics = value.get("amazon-bedrock-invocationMetrics") or {}
        names = {"input_tokens": "inputTokenCount", "output_tokens": "outputTokenCount"}
        self._count({name: metrics.get(other) for name, other in names.items() if not self._usage.get(name)} | told)
        chunks = [*self._all_stopped(), *self._settled(cut=_cuts(self._reason))]
        if self._reason:
            chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": text_in(self._reason)}]})
        return [*chunks, {"choices": [], "usage": _usage(self._usage)}] if self._usage else chunks

    def _said(self, delta: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}] if delta else []

    def _next(self, name: str) -> int:
        """Lists of a delta have an index from 0 without gaps: OpenAI's SDK for Python takes it for the place."""
        self._counts[name] = self._counts.get(name, -1) + 1
        return self._counts[name]

    def _start(self, block: _Block) -> dict[str, Any]:
        self._newest = block
        if block.type == "tool_use":
            block.place = self._next("tool_calls")
            function = {"name": text_in(block.raw["name"]), "arguments": ""}
            opening = {"index": block.place, "id": block.raw.get("id"), "type": "function", "function": function}
            return {"tool_calls": [opening]}
        if block.type in ("text", "thinking") and block.raw.get(block.type):
            return self._text(block, text_in(block.raw[block.type]))
        return {}

    def _delta(self, block: _Block, delta: dict[str, Any]) -> dict[str, Any]:
        kind = delta.get("type")
        if kind == "text_delta":
            return self._text(block, _words(delta["text"]))
        if kind == "thinking_delta":
            block.grow("thinking", _words(delta["thinking"]))
            return self._text(block, _words(delta["thinking"]))
        if kind == "input_json_delta":
            if piece := text_of(delta["partial_json"]):
                block.json.append(piece)
                if block.type == "tool_use":
                    return _arguments(block, piece)
        elif kind == "citations_delta":
            block.citations.append(dict(delta["citation"]))
        else:
            block.add(delta)
        return {}

    def _text(self, block: _Block, text: str) -> dict[str, Any]:
        if block.type == "thinking":
            return {"reasoning_content": text}
        self._length += len(text)
        return {"content": text}

    def _all_stopped(self) -> list[dict[str, Any]]:
        open_, self._blocks = self._blocks, {}
        return [chunk for block in open_.values() for chunk in self._stopped(block)]

    def _stopped(self, block: _Block) -> list[dict[str, Any]]:
        """What a block amounts to at its end, or that is still to be seen."""
        before = self._settled(cut=False)
        if block.has_input() or (block is not self._newest and not block.json):
            return [*before, *self._said(self._stop(block))]
        self._doubtful = block
        return before

    def _settled(self, *, cut: bool) -> list[dict[str, Any]]:
        """Of a block with nothing, or with a part, for its input: `cut` says whether the answer ended there for want of
        room. Raises ValueError for a part that nothing has cut."""
        block, self._doubtful = self._doubtful, None
        if block is None or cut:
            return []
        if block.json:
            raise ValueError
        return self._said(self._stop(block))

    def _stop(self, block: _Block) -> dict[str, Any]:
        if block.type == "text":
            annotations = [self._annotation(block, citation) for citation in block.citations]
            return {"annotations": annotations} if annotations else {}
        if block.type == "tool_use":
            # Nothing said is no argument, but not JSON: clients parse it.
            return {} if block.json else _arguments(block, json.dumps(block.raw.get("input") or {}).decode())
        name = "thinking_blocks" if block.type in ("thinking", "redacted_thinking") else "anthropic_blocks"
        return {name: [{**block.whole(), "index": self._next(name)}]}

    def _annotation(self, block: _Block, citation: dict[str, Any]) -> dict[str, Any]:
        own = citation.pop("type", "citation")
        kind = "url_citation" if citation.get("url") else text_in(own)
        place = {"start_index": block.start, "end_index": self._length}
        return {"index": self._next("annotations"), "type": kind, kind: {**citation, **place}}

    def _finish(self, value: dict[str, Any]) -> list[dict[str, Any]]:
        """Figures are cumulative, and those of the start stay where they are not given again."""
        delta = dict(value.get("delta") or {})
        self._count(value.get("usage") or delta.pop("usage", None))
        reason, sequence = delta.pop("stop_reason", None), delta.pop("stop_sequence", None)
        more = {**value, **delta}
        more = {key: item for key, item in more.items() if item and key not in ("type", "delta", "usage")}
        chunks = self._all_stopped()
        if reason is not None or self.done:
            chunks += self._settled(cut=_cuts(reason))
        if reason is None:
            return [*chunks, {"choices": [], "usage": _usage(self._usage)}]
        self._reason = None
        choice = {"index": 0, "delta": {}, "finish_reason": text_in(reason)}
        if sequence is not None:
            choice["stop_sequence"] = sequence
        if more:
            choice["anthropic"] = more
        return [*chunks, {"choices": [choice], "usage": _usage(self._usage)}]

    def _count(self, told: dict[str, Any] | None) -> None:
        """The later figure counts, which may be less (after a compaction), but is not none: some gateways end with zeros.

        Kimi and Qwen tell the whole prompt as `input_tokens` first, and what of it came from the cache at the end: what is
        beside it then is the rest, be it none.
        """
        told = told or {}
        split = any(usage.figure_in(told.get(name)) and not self._usage.get(name) for name in _CACHED)
        for name, told_figure in told.items():
            key, figure = _OTHER_NAMES.get(name, name), told_figure
            if key in _FIGURES:
                figure = usage.figure_in(told_figure)
            if figure is not None and (figure or not self._usage.get(key) or (split and key == "input_tokens")):
                self._usage[key] = figure


class _Block:
    """A content block that has begun, from `raw` on; what has come since is put in at the end, in one go."""

    def __init__(self, raw: dict[str, Any], start: int) -> None:
        self.raw = dict(raw)
        self.type = text_in(raw["type"])
        self.start = start
        self.place = 0
        self.json: list[str] = []
        self._grown: dict[str, list[str]] = {}
        self.citations = [dict(citation) for citation in self.raw.pop("citations", None) or []]

    def has_input(self) -> bool:
        """False for a block whose input is still nothing, or no JSON, at its end. Puts into `raw` what came of it in pieces,
        but for a call's, which are passed on as they come."""
        if self.json and self.type not in ("text", "tool_use"):
            try:
                self.raw["input"] = json.loads("".join(self.json).encode())
            except ValueError:
                return False
        return bool(self.json or self.raw.get("input")) or not self.type.endswith("tool_use")

    def add(self, delta: dict[str, Any]) -> None:
        """A delta of a kind that only this type of block has: text is joined."""
        for key, value in delta.items():
            if key != "type":
                self.grow(key, value)

    def grow(self, key: str, value: Any) -> None:
        if isinstance(value, str):
            old = self.raw.get(key)
            self._grown.setdefault(key, [old] if isinstance(old, str) else []).append(value)
        else:
            self._grown.pop(key, None)
            self.raw[key] = value

    def whole(self) -> dict[str, Any]:
        return {**self.raw, **{key: "".join(pieces) for key, pieces in self._grown.items()}}


_CACHED = ("cache_read_input_tokens", "cache_creation_input_tokens")
_FIGURES = ("input_tokens", "output_tokens", *_CACHED)
_OTHER_NAMES = {"prompt_tokens": "input_tokens", "completion_tokens": "output_tokens"}
"""What gateways to other vendors' models say."""


def _cuts(reason: Any) -> bool:
    """Whether this ends an answer before the model did."""
    return reason is not None and ending("anthropic", text_in(reason)).status != "completed"


def _index(value: dict[str, Any]) -> int:
    index: int | None = value.get("index")
    return 0 if index is None else index


def _words(value: Any) -> str:
    """Null is no text, and not another shape."""
    return "" if value is None else text_in(value)


def _arguments(block: _Block, text: str) -> dict[str, Any]:
    return {"tool_calls": [{"index": block.place, "function": {"arguments": text}}]}


def _usage(told: dict[str, Any]) -> dict[str, Any]:
    """Anthropic counts what came from its cache beside the input, OpenAI within. Figures of its own are kept."""
    read, written = told.get("cache_read_input_tokens") or 0, told.get("cache_creation_input_tokens") or 0
    prompt, completion = (told.get("input_tokens") or 0) + read + written, told.get("output_tokens") or 0
    figures = {
        key: value for key, value in told.items() if key not in ("input_tokens", "output_tokens", "total_tokens")
    }
    figures |= {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": read, "cache_write_tokens": written},
    }
    if details := told.get("output_tokens_details"):
        figures["completion_tokens_details"] = {"reasoning_tokens": details.get("thinking_tokens")}
    return figures


DIALECT = Dialect(call, _Answer, wire_format="anthropic", summarises=True)
