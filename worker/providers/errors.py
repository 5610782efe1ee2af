"""A provider's refusal, in whichever shape it comes, as the one error the broker knows. Pure functions.

Hidden here: the envelopes of a dozen APIs, what each status means to our client, when to come back, and that neither a
key nor a page of HTML ever travels on in a message.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import Any

from shared.errors import UpstreamError, UpstreamInvalid, UpstreamRefused, bounded_retry_after
from shared.lib import json, sse
from worker.providers.registry import Provider

_MAX_MESSAGE = 500
_MAX_CODE = 100
_SECRET = re.compile(r"(?i)\bbearer\s+[^\s\"',]+|\b(?:sk|pk|rk|gsk|xai|hf|pplx|csk|fw)[-_][\w*.-]{4,}|\bAIza[\w-]{10,}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")
_FAILURE = re.compile(r"(?:^|[._-])(?:error|exception|failure)$", re.IGNORECASE)

_ANTHROPIC_STATUS = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "timeout_error": 504,
    "overloaded_error": 503,
}
"""docs.anthropic.com/en/api/errors: in the middle of a stream the type is all there is to tell the status from."""


_ABOUT_OUR_KEY = frozenset({401, 403, 407})
"""Statuses that a client would take for a word about its own key (RFC 9110 §15.5.2, §15.5.4, §15.5.8)."""


def parse(data: bytes) -> Any:
    """JSON, or None. The parser's error is not chained: it carries the text it failed on."""
    try:
        return json.loads(data)
    except ValueError:
        return None


def names_failure(event: str) -> bool:
    """Whether an event of this name is an error, whatever it holds: `error`, `Error`, `response.error`, `server_error`."""
    return _FAILURE.search(event) is not None


def malformed() -> UpstreamInvalid:
    return UpstreamInvalid("The provider sent a chunk whose choices are not shaped like OpenAI's.")


@contextmanager
def readable() -> Iterator[None]:
    """For reading an event in a provider's own format: one of another shape is refused whole, not read in part.

    What went wrong is not chained: it may quote the answer.
    """
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError):
        raise UpstreamInvalid("The provider sent an event that is not shaped like those of its format.") from None


def text_in(value: Any) -> str:
    """`value`, which has to be text. To be used where the event is `readable`."""
    if not isinstance(value, str):
        raise TypeError
    return value


def error_from_response(provider: Provider, status: int, headers: Mapping[str, str], body: bytes) -> UpstreamError:
    """What a response that is not a stream means, as the error to raise. `headers` are looked up in lower case.

    4xx stays what it was, but for 401, 403 and 407, which are about the server's key and become 502; 408 and 504 become
    504, other 5xx 502, a redirect 502 `upstream_redirect`: a provider's base
    URL is the operator's word, and a key is never sent elsewhere. The provider's message, type, param and code are
    kept, shortened and without anything that looks like a key; a web page is not quoted. `Retry-After` (RFC 9110 §10.2.3)
    and OpenAI's `retry-after-ms` become `retry_after_s`. A status below 300 is for an error object sent as a success.
    """
    if 300 <= status < 400:
        return UpstreamError(
            f"{provider.name}: answered with a redirect, which is never followed.", code="upstream_redirect"
        )
    value = _read(body)
    if isinstance(value, list) and value:  # Gemini wraps its error in a list
        value = value[0]
    if status < 300 and not (isinstance(value, dict) and error_in(value)):
        return UpstreamInvalid(f"{provider.name}: answered with something that is not an event stream.")
    if value is None:
        text = body.decode("utf-8-sig", "replace").strip()
        # A web page, or JSON that was cut: neither is a sentence.
        value = "" if "html" in headers.get("content-type", "") or text.startswith(("<", "{", "[")) else text
    return refusal(
        value,
        status=status if status >= 400 else 502,
        retry_after_s=retry_after(headers),
        provider=provider,
    )


def _read(body: bytes) -> Any:
    """A refusal's body as JSON, also where it was written as a string, or as an event of the stream that it was to be."""
    body = body.removeprefix(b"\xef\xbb\xbf")
    value = parse(body)
    if value is None:
        decoder = sse.Decoder(len(body) + 4)
        events = decoder.feed(body + b"\n\n")
        value = next((found for event in events if isinstance(found := parse(event.data), dict | str)), None)
    if isinstance(value, str):
        inner = parse(value.encode("utf-8", "replace"))
        value = inner if isinstance(inner, dict) else value
    return value


def error_in(value: dict[str, Any], *, alone: bool = True, depth: int = 0) -> UpstreamRefused | None:
    """The error that an event under status 200 tells of; None for a part of an answer, a ping, or what is not known.

    OpenAI's envelope, or none: `{"object": "error", "message": …}` (older vLLM, LMDeploy, FastChat), `{"detail": …}`
    (FastAPI), `{"code": …, "message": …}` (DashScope, Mistral), `{"code": …, "msg": …}` (Zhipu), `{"errors": […]}`
    (Cloudflare), `{"base_resp": …}` (MiniMax), `{"x_groq": {"error": …}}`, `{"throttlingException": {…}}` (Bedrock),
    `{"message": …}` alone (AWS), `{"title": …, "status": 500}` (RFC 9457). `alone`: whether a message alone is one;
    `depth`: in how many envelopes it was found.
    """
    if not MAY_TELL.isdisjoint(value) and (value.get("error") or _minimax(value).get("status_code") or _groq(value)):
        return refusal(value, status=502)
    if _is_answer(value):
        return None
    told = _spelled(value)
    if "type" not in value:  # a gateway's envelope around the provider's
        for name in _ENVELOPES if depth < _MAX_ENVELOPES else ():
            inner = told.get(name)
            if not isinstance(inner, dict):
                continue
            if (found := error_in(inner, alone=name == "data", depth=depth + 1)) is not None:
                return found
        if isinstance(told.get("data"), dict):
            return None
    return refusal(value, status=502) if _tells_of_failure(value, told, alone=alone) else None


MAY_TELL = frozenset("error base_resp x_groq message msg errors detail".split())
"""Fields beside choices that may tell of an error."""
_ENVELOPES = ("data", "response", "responsemetadata", "result", "body", "header", "message")
_FAILURES = ("err", "errors", "errmsg", "errormsg", "errormessage", "errordescription", "fault", "failure", "detail")
_OUTCOMES = ("code", "status", "statuscode", "errcode", "errno", "ret", "retcode")
"""Names of what says, beside a message, how something went."""
_CODES = ("code", "errcode", "errorcode", "errno", "ret", "retcode", "statuscode")
_SAID = frozenset(("errmsg", "errormsg", "errormessage"))
"""Names under which some say that all is well, in whatever language, beside a code of 0."""
_BESIDE_A_MESSAGE = frozenset("message msg id requestid traceid timestamp path".split())
"""What may stand beside an error's only word, spelled as `_spelled` does."""
_FINE = frozenset(
    "0 ok success succeeded queued pending loading processing running started in_progress completed done none normal".split()
)


def _is_answer(value: dict[str, Any]) -> bool:
    """Whether an event has a part of an answer, or figures of one."""
    choices = value.get("choices") or []
    if not isinstance(choices, list):
        return True  # for its reader to refuse
    if choices and any(not isinstance(choice, dict) or _says_something(choice) for choice in choices):
        return True
    usage = value.get("usage")
    counted = any(usage.values()) if isinstance(usage, dict) else usage
    return bool(counted or value.get("candidates"))


def _says_something(choice: dict[str, Any]) -> bool:
    """Whether there is more in a choice than its role."""
    if choice.get("finish_reason") or choice.get("text"):
        return True
    told = [choice.get(name) for name in ("delta", "message")]
    return any(
        any(item for key, item in one.items() if key != "role") if isinstance(one, dict) else one for one in told
    )


def _tells_of_failure(value: dict[str, Any], told: dict[str, Any], *, alone: bool) -> bool:
    """`told` is `value` by names in one spelling."""
    failures = [name for name in told if name in _FAILURES or name.endswith(("error", "exception"))]
    if any(_is_words(told[name]) for name in failures) and not (
        _SAID.issuperset(failures) and any(told.get(name) in (0, "0") for name in _CODES)
    ):
        return True
    kinds = [kind.lower() for name in ("object", "type", "event", "state") if isinstance(kind := value.get(name), str)]
    said = next((told[name] for name in ("message", "msg", "errmsg") if isinstance(told.get(name), str)), "")
    outcomes = {name: told[name] for name in _OUTCOMES if name in told} if said else {}
    if value.get("choices") and isinstance(outcomes.get("status"), str):
        del outcomes["status"]  # beside choices such a word may say how far it is
    return bool(
        "error" in kinds
        or "__type" in value  # in Amazon's JSON, an error's name
        or told.get("error") in ({}, [])
        or any(told.get(name) in (False, "false") for name in ("success", "ok"))
        or told.get("failed") is True
        or (type(status := told.get("statuscode")) is int and 400 <= status < 600)
        or (said and any(names_failure(kind) or kind.endswith(("error", "failed")) for kind in kinds))
        or (said and "errortype" in told)
        or not all(map(_is_fine, outcomes.values()))
        or (alone and said and told.keys() <= _BESIDE_A_MESSAGE)
        or _is_failure(told.get("status"), titled=bool(told.get("title")))
    )


def _is_words(found: Any) -> bool:
    """Whether it can be what went wrong."""
    if isinstance(found, str):
        return bool(found) and not _is_fine(found) and found.lower() != "false"
    return bool(found) and isinstance(found, list | dict)


def _is_fine(code: Any) -> bool:
    """Whether a code or a status beside a message tells of no error."""
    if code is None or isinstance(code, bool):
        return True
    number = code if isinstance(code, int | float) else None
    if isinstance(code, str) and code.isdecimal() and len(code) < 16:
        number = int(code)
    return (number is not None and (number == 0 or 100 <= number < 300)) or str(code).lower() in _FINE


def _is_failure(status: Any, *, titled: bool) -> bool:
    """Whether a status says by itself that something failed."""
    if isinstance(status, str) and status.lower() in ("error", "failed", "failure", "fail"):
        return True
    return titled and type(status) is int and status >= 400


def _spelled(value: dict[str, Any]) -> dict[str, Any]:
    """By names in one spelling: `error_msg`, `errorMsg` and `ErrorMsg` are `errormsg`."""
    return {name.replace("_", "").lower(): item for name, item in value.items()}


def _minimax(value: dict[str, Any]) -> dict[str, Any]:
    inner = value.get("base_resp")
    return inner if isinstance(inner, dict) else {}


def _groq(value: dict[str, Any]) -> Any:
    """Why a stream of Groq's was ended early (console.groq.com/docs/api-reference, `x_groq.error`)."""
    inner = value.get("x_groq")
    return inner.get("error") if isinstance(inner, dict) else None


def _inner(value: dict[str, Any], depth: int = 0) -> Any:
    """The error inside its envelopes: an object, or what it is told in."""
    told = _spelled(value)
    spoken = any(isinstance(told.get(name), str) for name in ("message", "msg"))
    if depth and (spoken or depth > _MAX_ENVELOPES):
        return value
    others = [] if spoken else [name for name in told if name.endswith(("error", "exception"))]
    for name in ("error", "errors", "fault", "exception", "errormsg", *others):
        found = told.get(name)
        if isinstance(found, list) and found:
            found = found[0]
        if isinstance(found, dict) and found:
            return _inner(found, depth + 1)
        if isinstance(found, str) and found and name != "errormsg":
            return {**value, "error": found}
    if _groq(value):
        return {"message": _groq(value)}
    if not spoken:
        for name in (*_ENVELOPES, "detail"):
            found = told.get(name)
            if isinstance(found, dict) and found:
                return _inner(found, depth + 1)
    return _minimax(value) or value


_MAX_ENVELOPES = 4


def _spoken(detail: dict[str, Any]) -> Iterator[Any]:
    """Where an error's words may stand; FastAPI lists what it finds wrong with a request."""
    told = _spelled(detail)
    for name in (*_WORDS, *(name for name in told if name.endswith(("error", "exception")))):
        found = told.get(name)
        if isinstance(found, list) and found:
            found = found[0]
        if isinstance(found, dict):
            found = next((found[one] for one in ("msg", "message", "text") if isinstance(found.get(one), str)), None)
        yield found


_WORDS = (
    "message msg detail errormsg errmsg errormessage statusmsg faultstring errordescription description reason title"
    " failure err error body text data"
).split()


def refusal(
    value: Any, *, status: int, retry_after_s: float | None = None, provider: Provider | None = None
) -> UpstreamRefused:
    """`value` is OpenAI's envelope, the object inside it, one like it without envelope (Mistral, FastAPI), or text."""
    error = _inner(value) if isinstance(value, dict) else value
    detail = error if isinstance(error, dict) else {}
    told = _spelled(detail)
    code = told.get("code") or told.get("errorcode") or told.get("statuscode")
    kind, param = detail.get("type"), detail.get("param")
    if kind == "error":  # what the event is, not what went wrong
        kind = None
    if not kind and isinstance(word := detail.get("status"), str) and not _is_failure(word, titled=False):
        kind = word  # Gemini's for it: RESOURCE_EXHAUSTED
    if status == 502:  # no word of its own from HTTP: some say it inside (Groq, OpenRouter, Anthropic)
        said = (
            told.get("statuscode"),
            code,
            told.get("status"),
            isinstance(kind, str) and _ANTHROPIC_STATUS.get(kind),
        )
        numbers = (int(one) if isinstance(one, str) and one.isdecimal() and len(one) == 3 else one for one in said)
        status = next((one for one in numbers if type(one) is int and 400 <= one < 600), status)
    message = next((text for text in (error, *_spoken(detail)) if isinstance(text, str) and text), "")
    if message.startswith("{") and isinstance(inner := parse(message.encode("utf-8", "replace")), dict):
        # Another's refusal, passed on as it was.
        message = next((text for text in _spoken(_inner(inner)) if isinstance(text, str) and text), message)
    secret = provider.api_key if provider else None
    text = _clean(message, secret, _MAX_MESSAGE)
    if not text:  # 502 is ours for what has no status
        text = "the provider reported an error and did not say which"
        text += (
            "."
            if status == 502
            else f" (HTTP {status}). Is its address right?"
            if status == 404
            else f" (HTTP {status})."
        )
    if status in _ABOUT_OUR_KEY:
        text += f" ({status} by the provider, to the server's key there; yours is good.)"
    return UpstreamRefused(
        f"{provider.name}: {text}" if provider else text,
        code=_clean(str(code), secret, _MAX_CODE) if code else None,
        kind=_clean(str(kind), secret, _MAX_CODE) if kind else None,
        param=_clean(param, secret, _MAX_CODE) if param and isinstance(param, str) else None,
        status=_our_status(status),
        provider_status=status,
        retry_after_s=retry_after_s,
    )


def _our_status(status: int) -> int:
    """`status` is the provider's, 400 to 599."""
    if status in (408, 504):
        return 504
    return 502 if status >= 500 or status in _ABOUT_OUR_KEY else status


def _clean(text: str, secret: str | None, limit: int) -> str:
    """Without keys (before it is cut: half a key is still one), without control characters, not too long."""
    if secret:
        text = text.replace(secret, "[redacted]")
    text = _CONTROL.sub(" ", _SECRET.sub("[redacted]", text))
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from now on, a day at most; None where it was not said, or not in a form anyone knows.

    OpenAI's `retry-after-ms` goes before `Retry-After`, which is a number of seconds or a date (RFC 9110 §10.2.3).
    """
    for name, per_second in (("retry-after-ms", 1000), ("retry-after", 1)):
        if (number := _number(headers.get(name, ""))) is not None:
            return bounded_retry_after(number / per_second)
    try:
        return bounded_retry_after(parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time())
    except (ValueError, OverflowError, OSError):
        return None


def _number(text: str) -> float | None:
    """One spelled in digits, however many: of too many it is infinity, as of the word itself it is not."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if any(map(str.isdigit, text)) else None
