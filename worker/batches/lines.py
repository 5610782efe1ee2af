"""The lines of a batch: read from its input, checked, and written to its output.

Hidden here: where one line ends and the next begins in a file that is read in pieces, what a line must look like, and
OpenAI's words for each way in which it may not (platform.openai.com/docs/guides/batch).
"""

from __future__ import annotations

import asyncio
import hashlib
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from shared.chat.request import ChatRequest
from shared.errors import BadRequest, NotFound
from shared.features.batch_head import LineError
from shared.features.batches import MAX_LINES
from shared.lib import json
from shared.lib.telemetry import get_logger
from worker.batches import endpoints

logger = get_logger(__name__)

MAX_LINE_BYTES = 50 * 1024 * 1024
_BOM = b"\xef\xbb\xbf"
_FIELDS = frozenset({"custom_id", "method", "url", "body"})
_LONGEST_ID = 512
_MOST_ERRORS = 100
IN_THREAD_BYTES = 1024 * 1024
"""A line that is larger is not parsed on the event loop."""


class Raw(NamedTuple):
    """A line as it stands in the file: numbers are from 1. `data` is None for one that is too long to be read."""

    number: int
    offset: int
    length: int
    data: bytes | None


class Asked(NamedTuple):
    """A line that was understood."""

    custom_id: str
    body: dict[str, Any]
    request: ChatRequest


class LineWrong(Exception):
    """A line that cannot be run; the arguments are OpenAI's `code`, `message` and `param`."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param = code, message, param

    def at(self, number: int | None) -> LineError:
        """As it stands in the batch's `errors.data`."""
        return {"code": self.code, "message": self.message, "param": self.param, "line": number}


async def read_lines(pieces: AsyncIterator[bytes], number: int = 1, offset: int = 0) -> AsyncIterator[Raw]:
    """The lines of a file whose bytes from `offset` on, where line `number` begins, are these. The last one may lack
    its line break."""
    kept: list[bytes] = []
    length = 0
    async for piece in pieces:
        start = 0
        while (end := piece.find(b"\n", start)) >= 0:
            length += end - start
            if length <= MAX_LINE_BYTES:
                kept.append(piece[start:end])
            yield Raw(number, offset, length, b"".join(kept) if length <= MAX_LINE_BYTES else None)
            number, offset, start = number + 1, offset + length + 1, end + 1
            kept, length = [], 0
        length += len(piece) - start
        if length <= MAX_LINE_BYTES:
            kept.append(piece[start:])
        else:
            kept = []
    if length:
        yield Raw(number, offset, length, b"".join(kept) if length <= MAX_LINE_BYTES else None)


def check_line(line: Raw, endpoint: str) -> Asked:
    """Raises LineWrong."""
    if line.data is None:
        raise LineWrong("line_too_large", f"A line may have {MAX_LINE_BYTES} bytes.")
    if line.data.startswith(_BOM):
        raise LineWrong("invalid_json_line", "The file begins with a byte order mark. Save it as UTF-8 without one.")
    if not line.data.strip():
        raise LineWrong("invalid_json_line", "This line is blank. Each line must be a JSON object.")
    try:
        value = json.loads_strict(line.data)
    except ValueError:
        raise LineWrong("invalid_json_line", "This line is not parseable as valid JSON.") from None
    if not isinstance(value, dict):
        raise LineWrong("invalid_json_line", "Each line must be a JSON object.")
    return _check_request(value, endpoint)


def _check_request(value: dict[str, Any], endpoint: str) -> Asked:
    for name in ("custom_id", "method", "url", "body"):
        if value.get(name) is None:
            raise LineWrong("missing_required_parameter", f"The field {name} is missing.", name)
    if unknown := sorted(value.keys() - _FIELDS):
        raise LineWrong(
            "unknown_parameter", f"A line has {', '.join(sorted(_FIELDS))}, and nothing else.", unknown[0][:64]
        )
    custom_id = value["custom_id"]
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= _LONGEST_ID:
        raise LineWrong(
            "invalid_custom_id", f"custom_id must be a string of 1 to {_LONGEST_ID} characters.", "custom_id"
        )
    if value["method"] != "POST":
        raise LineWrong("invalid_method", "method must be POST.", "method")
    if value["url"] != endpoint:
        raise LineWrong("invalid_url", f"url must be {endpoint}, the batch's endpoint.", "url")
    body = value["body"]
    if not isinstance(body, dict):
        raise LineWrong("invalid_request", "body must be a JSON object.", "body")
    if body.get("stream"):
        raise LineWrong("streaming_unsupported", "A line cannot be streamed. Leave `stream` out.", "body.stream")
    for name in ("session_id", "background", "webhook"):
        if body.get(name):
            raise LineWrong("unsupported_parameter", f"A line cannot have `{name}`.", f"body.{name}")
    if body.get("on_disconnect") == "cancel":
        raise LineWrong("unsupported_parameter", "A line has no viewers that could leave.", "body.on_disconnect")
    try:
        request, body = endpoints.read(endpoint, body)
    except BadRequest as error:
        raise LineWrong("invalid_request", error.message, f"body.{error.param}" if error.param else "body") from None
    except Exception as error:
        # What no check foresaw is this line's error: a batch has thousands of others. The text may be the client's.
        at = traceback.extract_tb(error.__traceback__)[-1]
        logger.error("line broke", error=type(error).__name__, at=f"{at.filename}:{at.lineno}")
        told = "The check of this line broke on our side. Send it to its API alone, or leave it out."
        raise LineWrong("internal_error", told, "body") from None
    return Asked(custom_id, body, request)


# ---- the whole input


@dataclass(slots=True)
class Found:
    """What is in an input: how many lines, of which models, and what is wrong with them, as `errors.data` has it."""

    total: int = 0
    models: set[str] = field(default_factory=set)
    errors: list[LineError] = field(default_factory=list)


async def check_input(
    lines: AsyncIterator[Raw],
    endpoint: str,
    check_model: Callable[[str], Awaitable[None]],
    breathe: Callable[[int], Awaitable[None]],
) -> Found:
    """Looks at every line, until enough are wrong. `check_model` raises NotFound for one that no provider has; `breathe` is
    called with the number of each line and lets others go on now and then."""
    found, seen = Found(), set[bytes]()
    async for line in lines:
        found.total += 1
        if found.total > MAX_LINES:
            found.errors = [LineWrong("too_many_lines", f"A batch has {MAX_LINES} lines at most.").at(None)]
            break
        if len(found.errors) >= _MOST_ERRORS:
            break
        await breathe(line.number)
        try:
            is_large = line.length > IN_THREAD_BYTES
            asked = await asyncio.to_thread(check_line, line, endpoint) if is_large else check_line(line, endpoint)
            _note_id(asked.custom_id, line.number, seen)
            if asked.request.model not in found.models:
                await check_model(asked.request.model)
                found.models.add(asked.request.model)
        except LineWrong as wrong:
            found.errors.append(wrong.at(line.number))
        except NotFound as error:
            found.errors.append(LineWrong("model_not_found", error.message, "body.model").at(line.number))
    if not found.total:
        found.errors.append(LineWrong("empty_file", "The input file has no lines.", "input_file_id").at(None))
    return found


def _note_id(custom_id: str, number: int, seen: set[bytes]) -> None:
    key = custom_id.encode("utf-8", "surrogatepass")  # a third of the memory of the string
    if key in seen:
        raise LineWrong("duplicate_custom_id", f"The custom_id of line {number} was used before.", "custom_id")
    seen.add(key)


# ---- what is written


def line_id(batch_id: str, number: int, tries: int) -> str:
    """The generation of a line: always the same one, so that a worker that goes on with a batch finds what was begun. One that
    is put back is asked again as the next try."""
    return "chatcmpl-" + hashlib.sha256(f"{batch_id}:{number}:{tries}".encode()).hexdigest()[:32]


def answer_line(
    batch_id: str, number: int, custom_id: str | None, status: int, request_id: str, body: dict[str, Any]
) -> bytes:
    """A line that was run: of the output if `status` is 200, else of the errors."""
    response = {"status_code": status, "request_id": request_id, "body": body}
    return _dump(batch_id, number, custom_id, response, None)


def skipped_line(batch_id: str, number: int, custom_id: str | None, code: str) -> bytes:
    """A line that was not run to its end because the batch ended before it."""
    why = {
        "batch_cancelled": "This request was not executed because the batch was cancelled.",
        "batch_expired": "This request could not be executed before the completion window expired.",
        "batch_given_up": "This request was not executed because the batch was given up.",
        "input_file_gone": "This request was not executed because the input file was deleted.",
    }
    return _dump(batch_id, number, custom_id, None, {"code": code, "message": why[code]})


def wrong_line(batch_id: str, number: int, custom_id: str | None, code: str, message: str) -> bytes:
    """A line that could not be run. Its `custom_id` is null if not even that can be read."""
    return _dump(batch_id, number, custom_id, None, {"code": code, "message": message})


def _dump(
    batch_id: str, number: int, custom_id: str | None, response: dict[str, Any] | None, error: dict[str, str] | None
) -> bytes:
    own = hashlib.sha256(f"{batch_id}:{number}".encode()).hexdigest()[:32]
    line = {"id": f"batch_req_{own}", "custom_id": custom_id, "response": response, "error": error}
    return json.dumps(line) + b"\n"


def add_usage(total: dict[str, int], usage: dict[str, Any] | None) -> None:
    """Adds a generation's usage to a batch's. Providers may send anything; whole numbers are added."""
    usage = usage or {}
    figures = {
        "input_tokens": usage.get("prompt_tokens"),
        "cached_tokens": _inside(usage, "prompt_tokens_details", "cached_tokens"),
        "output_tokens": usage.get("completion_tokens"),
        "reasoning_tokens": _inside(usage, "completion_tokens_details", "reasoning_tokens"),
        "total_tokens": usage.get("total_tokens"),
    }
    for name, value in figures.items():
        if isinstance(value, int | float) and 0 < value < 2**53:
            total[name] += int(value)


def _inside(usage: dict[str, Any], field: str, name: str) -> Any:
    details = usage.get(field)
    return details.get(name) if isinstance(details, dict) else None
