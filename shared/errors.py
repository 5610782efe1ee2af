"""Every error Streamspool raises, and how each looks on the wire.

    StreamspoolError                 base: knows its HTTP status and OpenAI error object
    ├── BadRequest 400               the caller must change the request
    │   └── BadCursor 400            a resume position that cannot be honoured
    ├── Unauthenticated 401          no key, or an unknown one
    ├── Forbidden 403                a browser page or host that may not ask, or a key whose role does not allow it
    ├── NotFound 404                 unknown, expired, or another tenant's: one answer for all three
    │   └── Expired 404              its text is gone; what is still known of it is told
    ├── MethodNotAllowed 405
    ├── SessionBusy 409              its session has another generation open
    ├── CursorRestart 409            the counted attempt was replaced by a newer one
    ├── CursorExpired 410            the position is below what is kept
    ├── KeyReused 422                an Idempotency-Key that stands for another request
    ├── RateLimited 429              the caller has used up what it may use for now
    │   ├── BudgetReached            and what it may spend in this day or month
    │   └── BudgetHeld               and what is left of that may yet be spent by what has not ended
    ├── TooLarge 413                 body over STREAMSPOOL_MAX_BODY_BYTES
    │   ├── SessionTooLarge 413      the session's history is over its limit
    │   └── StorageQuotaExceeded 413 what is kept of the tenant's takes too much of the file storage
    ├── HeaderFieldsTooLarge 431     request line and header fields, or trailers, over the limits of api/intake.py
    ├── Internal 500                 a bug of ours
    ├── Unavailable 503              Redis away, no worker ever seen, draining: retry later
    │   ├── Stopping 503             this server ends before the answer does, which goes on elsewhere
    │   └── FileStorageFailed 503    where files are kept does not answer, or not well
    │       ├── FileStorageFull 507  has no room
    │       ├── FileStorageRefused 500   does not let us in
    │       └── FileStorageInvalid 500   cannot be asked as it is set up
    ├── StorageFull 507              a running answer waited for room in Redis for too long; it ends with what it has
    ├── StorageRefused 500           it waited for a right in Redis, likewise
    ├── Unusable                     what a setting names can never work as asked; ends a start, with exit code 2
    ├── GenerationEnded              why there is no whole answer, where that is not the provider's doing
    │   ├── GenerationCancelled 499  a caller ended it
    │   ├── GenerationInterrupted 502    its worker was lost in the middle of the answer
    │   │   └── AttemptReplaced 502  a new attempt has begun, which this viewer cannot be shown
    │   ├── WorkerLost 502           every attempt lost its worker
    │   ├── NoWorker 503             no worker was there to answer it
    │   ├── UnsupportedVersion 503   a newer version stored it than the worker's
    │   ├── StreamGone 404           its log was deleted, or has expired, under a viewer
    │   ├── StreamLost 500           the storage lost a part of the answer for good
    │   └── RequestLost 500          the file storage lost a part of the request
    ├── GenerationFailed             a sealed failure, read back from the log
    └── UpstreamError                the provider did not deliver (only workers raise these)
        ├── UpstreamRefused          it answered with an error status, kept as it was
        ├── UpstreamTimeout 504      one of the four timers ran out; `code` says which
        ├── UpstreamIncomplete 502   the stream ended without finish reason or [DONE]
        ├── UpstreamInvalid 502      not SSE, not JSON, not UTF-8, too large
        └── UpstreamTooLong          the answer went on beyond STREAMSPOOL_MAX_ANSWER_BYTES, and was ended there
            └── BudgetStopped        a budget was reached, and STREAMSPOOL_BUDGET_RUNNING ends what runs

    LogError                         what the append-only log answers to a writer; never leaves the process
    ├── Fenced                       a newer attempt owns the log
    ├── Sealed                       the log has its outcome already
    ├── Taken                        that attempt was started already
    ├── Gone                         the log does not exist: expired or deleted
    ├── Forgotten                    the log ends before what was written to it: to be mended
    └── Damaged                      entries are missing for good: the server lost data

The error object is OpenAI's: `{"error": {"message", "type", "param", "code"}}`
(platform.openai.com/docs/guides/error-codes). The OpenAI SDKs retry 408, 409, 429 and 5xx unless
`x-should-retry: false` is sent, hence `retryable` below; the AI SDK retries them whatever that header says. What each
repeat costs: docs/API.md, "Repeats". An error that ended a generation stands in its outcome with the
HTTP status it has: `to_stored()` writes it, `wire_error()` is what a client gets to see of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NotRequired, Self, TypedDict, TypeVar

E = TypeVar("E", bound=BaseException)

MAX_RETRY_AFTER_S = 86400.0
"""No client is asked to wait longer, even if a provider says so: its clock may be wrong, or its arithmetic."""

WIRE_FIELDS = ("message", "type", "param", "code")
"""The fields of OpenAI's error object, in its order."""


class ErrorObject(TypedDict):
    """The inner part of OpenAI's envelope."""

    message: str
    type: str
    param: str | None
    code: str | None
    restart_from: NotRequired[str]
    """Of CursorRestart only."""
    floor: NotRequired[str]
    """Of CursorExpired only."""
    stream: NotRequired[dict[str, Any]]
    """Of Expired only."""


class StoredError(TypedDict):
    """The error in an outcome: what clients are shown, and with which status."""

    message: str
    type: str
    param: str | None
    code: str | None
    status: int
    """Of the HTTP response, where the error is one."""
    retry_after_s: NotRequired[float | None]
    provider_status: NotRequired[int]
    """The status that the provider gave, where it is another."""


def wire_error(error: Mapping[str, Any]) -> ErrorObject:
    """What clients see of a stored error; what an older worker left out is null."""
    return {field: error.get(field) for field in WIRE_FIELDS}  # type: ignore[return-value]  # the four fields, by name


def without_frames(error: E) -> E:
    """The error, no more holding on to where it came through, nor those that led to it.

    For one that is kept, or that was kept by a task it ended: its traceback holds the frames, one of these holds it, and with
    the circle stays whatever they worked on, an answer and its connection, until a full garbage collection, which comes
    once in hours here (process.py).
    """
    chain: list[BaseException] = [error]
    for seen in chain:
        seen.__traceback__ = None
        chain += [led for led in (seen.__cause__, seen.__context__) if led is not None and led not in chain]
    return error


def bounded_retry_after(seconds: float | None) -> float | None:
    """`seconds` within 0 and a day; None for what is no number."""
    if seconds is None or math.isnan(seconds):
        return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S)


class StreamspoolError(Exception):
    """Base of all errors that may reach a client.

    `message` says what to do next, `default_message` where none is given; `code` is stable and machine-readable;
    `retry_after_s`, a day at most, becomes `Retry-After`.
    """

    status: int = 500
    type: ClassVar[str] = "server_error"
    code: str = "internal_error"
    retryable: bool | None = None
    """As `x-should-retry`: whether the same request may be made again unasked. None: as its status says."""
    default_message: ClassVar[str] = ""

    def __init__(
        self,
        message: str | None = None,
        *,
        code: str | None = None,
        param: str | None = None,
        status: int | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        self.message = self.default_message if message is None else message
        super().__init__(self.message)
        self.param = param
        self.retry_after_s = bounded_retry_after(retry_after_s)
        if code is not None:
            self.code = code
        if status is not None:
            self.status = status

    def to_object(self) -> ErrorObject:
        """`{message, type, param, code}`: the inner part of OpenAI's envelope."""
        return {"message": self.message, "type": self.type, "param": self.param, "code": self.code}

    def to_stored(self) -> StoredError:
        """The same as an outcome keeps it: with `status`, and `retry_after_s` or None."""
        told = self.to_object()
        return {
            "message": told["message"],
            "type": told["type"],
            "param": told["param"],
            "code": told["code"],
            "status": self.status,
            "retry_after_s": self.retry_after_s,
        }

    def headers(self) -> dict[str, str]:
        """Response headers that steer the retry logic of the official SDKs."""
        headers = {}
        if self.retry_after_s is not None:
            headers["retry-after"] = str(max(1, round(self.retry_after_s)))
        if self.retryable is not None:
            headers["x-should-retry"] = "true" if self.retryable else "false"
        return headers


class BadRequest(StreamspoolError):
    """The request cannot be carried out as it is; nothing was stored."""

    status = 400
    type = "invalid_request_error"
    code = "invalid_request"


class BadCursor(BadRequest):
    """The resume position is malformed, or points past the end of the log."""

    code = "invalid_cursor"


class Unauthenticated(StreamspoolError):
    """No bearer key, or one that is not known."""

    status = 401
    type = "authentication_error"
    code = "invalid_api_key"


class Forbidden(StreamspoolError):
    """The caller may not use this server from where it stands, or its key may not do this."""

    status = 403
    type = "permission_error"
    code = "forbidden"


class NotFound(StreamspoolError):
    """Unknown, expired, or owned by another tenant; the answer does not tell which."""

    status = 404
    type = "invalid_request_error"
    code = "not_found"


class Expired(NotFound):
    """The answer is not kept any more. `stream` is what is still known of it, a state object."""

    code = "stream_expired"
    default_message = "The text of this answer is not kept any more. What is still known of it is in `stream`."

    def __init__(self, stream: dict[str, Any]) -> None:
        super().__init__()
        self.stream = stream

    def to_object(self) -> ErrorObject:
        return {**super().to_object(), "stream": self.stream}


class MethodNotAllowed(StreamspoolError):
    """The path exists, this method does not."""

    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class CursorRestart(StreamspoolError):
    """A counted cursor belongs to an attempt that a newer one replaced; `restart_from` is where the newer one begins."""

    status = 409
    type = "invalid_request_error"
    code = "attempt_replaced"
    retryable = False

    def __init__(self, message: str, *, restart_from: str) -> None:
        super().__init__(message, param="starting_after")
        self.restart_from = restart_from

    def to_object(self) -> ErrorObject:
        return {**super().to_object(), "restart_from": self.restart_from}


class CursorExpired(StreamspoolError):
    """The position is below the oldest entry kept; `floor` is the oldest position that can be resumed from."""

    status = 410
    type = "invalid_request_error"
    code = "cursor_expired"

    def __init__(self, message: str, *, floor: str) -> None:
        super().__init__(message, param="starting_after")
        self.floor = floor

    def to_object(self) -> ErrorObject:
        return {**super().to_object(), "floor": self.floor}


class KeyReused(StreamspoolError):
    """The same Idempotency-Key with another body. 422, not 409, because the SDKs retry 409."""

    status = 422
    type = "invalid_request_error"
    code = "idempotency_key_reused"


class TooLarge(StreamspoolError):
    """The request body is over the limit; it was not read to its end."""

    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class SessionTooLarge(TooLarge):
    """What the session holds is over the limit; nothing was stored."""

    code = "session_too_large"


class StorageQuotaExceeded(TooLarge):
    """What is kept of the tenant's requests and answers takes as much of the file storage as it may; nothing was stored."""

    code = "storage_quota_exceeded"


class HeaderFieldsTooLarge(StreamspoolError):
    """What a request has besides its body is over the limit (RFC 6585 §5); it was not read to its end."""

    status = 431
    type = "invalid_request_error"
    code = "request_header_fields_too_large"


class RateLimited(StreamspoolError):
    """The caller has used up what it may use for now; nothing was stored. `retry_after_s` is when it may ask again."""

    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"
    default_message = "This key has used up what it may use for now. Send the request again later."

    def __init__(
        self,
        message: str | None = None,
        *,
        kind: str | None = None,
        limits: Mapping[str, str] | None = None,
        retryable: bool | None = None,
        **keywords: Any,
    ) -> None:
        """`kind` is the type that OpenAI gives to the limit, `limits` are its `x-ratelimit-…` headers."""
        super().__init__(message, **keywords)
        self.kind, self.limits, self.retryable = kind, limits or {}, retryable

    def to_object(self) -> ErrorObject:
        return {**super().to_object(), "type": self.kind or self.type}

    def headers(self) -> dict[str, str]:
        return {**super().headers(), **self.limits}


class BudgetReached(RateLimited):
    """The tenant, or its key, has spent what it may in this day or month. No provider was asked. OpenAI's word for it, which
    tells its SDKs that no waiting helps."""

    type = "insufficient_quota"
    code = "insufficient_quota"

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message, retryable=False)


class BudgetHeld(RateLimited):
    """What was accepted and has not ended may cost all that is left of the budget; once some has ended, there may be room."""

    type = "insufficient_quota"
    code = "budget_reserved"

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message, retryable=True, retry_after_s=2)


class SessionBusy(StreamspoolError):
    """One generation of a session runs at a time. Not to be retried blindly, as the SDKs would any 409."""

    status = 409
    type = "invalid_request_error"
    code = "session_busy"
    retryable = False


class Internal(StreamspoolError):
    """A bug of ours: the message carries no detail, the log does. What was asked for may have begun."""

    retryable = False


class Unavailable(StreamspoolError):
    """A part is away for now; nothing was stored, and a retry is welcome."""

    status = 503
    type = "service_unavailable_error"
    code = "service_unavailable"

    def __init__(self, message: str | None = None, *, code: str | None = None, retry_after_s: float | None = 2) -> None:
        super().__init__(message, code=code, retry_after_s=retry_after_s)


class Stopping(Unavailable):
    """This server ends before the answer does. Nothing is lost: it goes on, and another server shows it."""

    code = "draining"
    default_message = "This server is stopping, and the answer is not whole. It goes on: come again."

    @classmethod
    def told(cls, generation_id: str) -> Self:
        """With the way back."""
        return cls(f"{cls.default_message[:-1]}, for GET /v1/streams/{generation_id}")


class FileStorageFailed(Unavailable):
    """Where files are kept did not answer, or not well: it may pass. What may not are the classes below."""

    code = "storage_unavailable"
    default_message = "The file storage does not answer. Try again."
    why: ClassVar[str] = "away"
    """For logs."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message, retry_after_s=2 if self.retryable is None else None)


class FileStorageFull(FileStorageFailed):
    """It has no room, or a quota is used up (RFC 4918 §11.5)."""

    status = 507
    code = "file_storage_full"
    why = "full"
    retryable = False
    default_message = "The file storage is full. Delete files, or ask its operator for room."


class FileStorageRefused(FileStorageFailed):
    """It does not let us in: credentials, or rights."""

    status = 500
    code = "file_storage_refused"
    why = "refused"
    retryable = False
    default_message = "The file storage does not let the server in. The server's log has the cause."


class FileStorageInvalid(FileStorageFailed):
    """It cannot be asked like this: a bucket that is not there, a wrong address or region."""

    status = 500
    code = "file_storage_invalid"
    why = "invalid"
    retryable = False
    default_message = "The file storage cannot be used as it is set up. The server's log has the cause."


class StorageFull(StreamspoolError):
    """A running answer could not be stored for as long as it may wait: memory or disk of the server are full.

    A writer raises it (`full` is which of the two), and the answer ends as failed with what was
    stored of it. 507 (RFC 4918 §11.5), not 503: by itself the provider would be asked and paid once more, into a server
    that is as full as before.
    """

    status = 507
    code = "storage_full"

    def __init__(self, message: str | None = None, *, full: Literal["memory", "disk"] = "memory") -> None:
        where = "is full" if full == "memory" else "cannot write to its disk"
        super().__init__(
            message
            or f"The broker's storage {where}, and the answer could not wait any longer. What it said so far is kept. "
            "Send the request again when there is room."
        )
        self.full = full


class StorageRefused(StreamspoolError):
    """A running answer could not be stored for as long as it may wait: a right of our user of Redis was taken away. 500: by
    itself the provider would be asked and paid once more, for nothing."""

    status = 500
    code = "storage_refused"
    default_message = (
        "The broker's user lacks a right in its storage, and the answer could not wait any longer. What it said so far is "
        "kept. `streamspool doctor` says which right."
    )


class Unusable(StreamspoolError):
    """What a setting names can never work as asked: a wrong password, a certificate that does not fit. Waiting does not
    help: a start ends with this message and exit code 2."""

    code = "unusable"


class GenerationEnded(StreamspoolError):
    """Why a generation has no whole answer, where that is not the provider's doing. None is to be retried blindly: the
    generation exists, and its id tells what became of it."""

    retryable = False


class GenerationCancelled(GenerationEnded):
    """A caller ended it, or every viewer left and it was to end then.

    499, which Google's APIs have for CANCELLED (google/rpc/code.proto): no SDK repeats it, while 408, 409, 429 and 5xx
    are repeated by some whatever `x-should-retry` says, and what was cancelled would begin again.
    """

    status = 499
    type = "cancelled"
    code = "generation_cancelled"
    default_message = "The generation was cancelled. What it said so far is kept."


class GenerationInterrupted(GenerationEnded):
    """Its worker was lost in the middle of the answer, and the request wants no second attempt (`on_interruption`)."""

    status = 502
    code = "generation_interrupted"
    default_message = (
        "The worker was lost in the middle of the answer. What it said so far is kept. Send the request again."
    )


class AttemptReplaced(GenerationInterrupted):
    """A new attempt has begun in the middle of a stream whose format cannot take back what was sent."""

    default_message = (
        "The answer was cut in the middle, and a new attempt has begun. Watch it from its start, by its id."
    )


class WorkerLost(GenerationEnded):
    """Every attempt lost its worker: as many as STREAMSPOOL_MAX_ATTEMPTS."""

    status = 502
    code = "worker_lost"
    default_message = "Every attempt at this generation lost its worker. Send the request again."


class NoWorker(GenerationEnded):
    """No worker was alive for STREAMSPOOL_NO_WORKER_S."""

    status = 503
    code = "no_worker"
    default_message = "No worker has been alive to answer this. Send the request again later."


class UnsupportedVersion(GenerationEnded):
    """The log has a version that this worker would misread."""

    status = 503
    code = "unsupported_version"
    default_message = "This request was stored by a newer version than the worker's. Update the workers."


class StreamGone(GenerationEnded):
    """The log went while it was watched."""

    status = 404
    type = "invalid_request_error"
    code = "stream_gone"
    default_message = "The stream is gone: it was deleted, or it expired."


class StreamLost(GenerationEnded):
    """The storage has lost an answer, or a part of it, that it had acknowledged, and no process has it to write it again."""

    code = "stream_lost"
    default_message = (
        "The broker's storage lost this answer, or a part of it. What is left is kept. Send the request again."
    )


class RequestLost(GenerationEnded):
    """The file storage has not what it had acknowledged: a picture, a file or a text of the request, or of a turn before it."""

    code = "request_lost"
    default_message = "The file storage lost a part of this request, or of its session. Send it again, with all of it."


class GenerationFailed(StreamspoolError):
    """A generation that was sealed without success, rebuilt from the error object in its log.

    `repeatable`: the same request may be made again unasked, because nothing was said, and so nothing paid.
    """

    def __init__(self, error: Mapping[str, Any], *, repeatable: bool = False) -> None:
        super().__init__(
            str(error.get("message") or "The generation failed."),
            code=str(error.get("code") or "generation_failed"),
            param=error.get("param"),
            status=int(error.get("status") or 502),
            retry_after_s=error.get("retry_after_s"),
        )
        self.error_type = str(error.get("type") or "server_error")
        self.retryable = repeatable

    def to_object(self) -> ErrorObject:
        return {**super().to_object(), "type": self.error_type}


class UpstreamError(StreamspoolError):
    """The provider did not deliver. `kind` is the type that its own error object has; `provider_status` the status it
    gave, where it gave one."""

    status = 502
    type = "upstream_error"
    code = "upstream_error"

    def __init__(
        self,
        message: str | None = None,
        *,
        kind: str | None = None,
        provider_status: int | None = None,
        **keywords: Any,
    ) -> None:
        super().__init__(message, **keywords)
        self.kind = kind
        self.provider_status = provider_status or self.status

    def to_object(self) -> ErrorObject:
        return {**super().to_object(), "type": self.kind or self.type}

    def to_stored(self) -> StoredError:
        stored = super().to_stored()
        if self.provider_status != self.status:
            stored["provider_status"] = self.provider_status
        return stored


class UpstreamRefused(UpstreamError):
    """The provider answered with an error; its type, param and code are kept, and its status where that is about the
    request: what it says of the server's own key (401, 403, 407) would be taken for a word about the client's."""

    code = "upstream_refused"


class UpstreamTimeout(UpstreamError):
    """`code` names the timer: upstream_connect_timeout, upstream_first_timeout, upstream_idle_timeout, generation_timeout."""

    status = 504
    code = "upstream_timeout"


class UpstreamIncomplete(UpstreamError):
    """The stream ended with neither finish reason nor [DONE]: what came is kept, but it is not an answer."""

    code = "upstream_incomplete"


class UpstreamInvalid(UpstreamError):
    """What came is not an SSE stream of JSON chunks within the limits; dropping parts of it would damage the text unseen."""

    code = "upstream_invalid"


class UpstreamTooLong(UpstreamError):
    """The answer is over the limit; it was ended there, with the finish reason `length`. It is one all the same, only
    `incomplete`: so this never is a response, and stands in the outcome to say why."""

    status = 200
    code = "upstream_too_long"


class BudgetStopped(UpstreamTooLong):
    """The budget was reached while it was answered, and the setting says that this ends it; as with one that is too long."""

    code = "insufficient_quota"


class LogError(Exception):
    """What the log answers to a writer."""


class Fenced(LogError):
    """A newer attempt has started: close the upstream, write nothing more."""


class Sealed(LogError):
    """The outcome is written, nothing can follow it. `outcome` is that first outcome."""

    def __init__(self, outcome: Mapping[str, Any]) -> None:
        super().__init__(outcome.get("status"))
        self.outcome = outcome


class Gone(LogError):
    """The log does not exist, or not any more. `deleted` says that its owner deleted it just now, as far as that was asked."""

    def __init__(self, generation_id: str, *, deleted: bool = False) -> None:
        super().__init__(generation_id)
        self.deleted = deleted


class Taken(LogError):
    """This attempt number was used already: another worker is (or was) on it."""


class Forgotten(LogError):
    """The log lacks what its writer had appended, or its reader had read: the server forgot it. It may be written again."""


class Damaged(LogError):
    """An entry that must exist is missing: the server lost data it had acknowledged.

    `before` are the entries of what was read that stand before the first one that is missing.
    """

    def __init__(self, why: str, before: Sequence[Any] = ()) -> None:
        super().__init__(why)
        self.before = before
