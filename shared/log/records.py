"""The JSON objects that stand in a log, field by field. PROTOCOL.md describes them in words; a test checks its examples
against these types.

A field that older versions did not write, or that only some records have, is `NotRequired`: read it with `.get`. Times are
Unix milliseconds. A field's name never changes, because logs outlive the version that wrote them: the tenant is still
called `owner` here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NotRequired, TypedDict

from shared.errors import StoredError
from shared.log.entry import Position, Status

Usage = dict[str, Any]
"""OpenAI's usage object, `{prompt_tokens, completion_tokens, total_tokens, …}`; a provider may send more, or less."""


Surface = Literal["chat", "responses", "embeddings", "moderations", "completions", "compactions"]
"""An API that a generation may be asked for through."""


class WebhookTarget(TypedDict):
    """Where the event about a generation, or a batch, is sent."""

    url: str
    default: bool
    """Whether that is the server's own address, which is shown to no caller."""


class BatchRef(TypedDict):
    """Which line of which batch a generation is the answer to."""

    id: str
    line: int
    """From 1."""


class Limited(TypedDict):
    """What was counted with a generation, and is to be settled at its end. See `shared.features.access.limits`."""

    scopes: list[str]
    tokens: int
    """Taken of the minute's tokens, as an estimate."""
    tokens_of: NotRequired[list[str]]
    """Of which scopes they were taken; of all, where it is missing."""
    waiting: bool
    """Whether it was counted among those that wait."""


class Reserved(TypedDict):
    """What is held of hard budgets until the generation is settled. See `shared.features.spend.budgets`."""

    scopes: list[str]
    picodollars: int
    """What it may cost, as an estimate."""


class SessionTerms(TypedDict):
    """A session's settings as they hold for one generation."""

    id: str
    turn: NotRequired[int]
    """The number of its turn, from 1; given in the transaction that creates the log."""
    policy: Literal["reject", "enqueue", "interrupt"]
    """What happens while another generation of the session is open."""
    trim: Literal["none", "oldest"]
    """Whether the oldest turns may be left out of a history that is over its limits."""
    max_tokens: int
    keep_partial: bool
    """Whether an answer that was cut off becomes a turn, too."""
    store_reasoning: bool
    client_history: bool
    """The client sends the whole conversation itself: the session only takes note."""


class Header(TypedDict):
    """The first entry of a log: who asked for what, and what was promised."""

    v: NotRequired[int]
    """The log's version; 1 where it is missing."""
    id: str
    owner: str
    """The tenant."""
    key_id: NotRequired[str | None]
    """Which of the tenant's keys asked; None: no key."""
    budgets: NotRequired[dict[str, float] | None]
    """What that key may spend, as it was when it asked."""
    reserved: NotRequired[Reserved | None]
    """None: it has no hard budget, or what it may cost is not known."""
    near_budget: NotRequired[list[str] | None]
    """Soft budgets that were reached when it was accepted, in words; not in the entry, but for the response to it."""
    model: str
    created_at_ms: int
    n: int
    """How many choices were asked for."""
    include_usage: bool
    """Whether viewers are shown the usage chunk."""
    on_interruption: NotRequired[Literal["fail", "restart"]]
    on_disconnect: NotRequired[Literal["continue", "cancel"]]
    background: NotRequired[bool]
    webhook: NotRequired[WebhookTarget | None]
    max_tokens_per_s: NotRequired[float | None]
    """The pace at which streams are shown; None: as fast as they come."""
    idempotency: NotRequired[str | None]
    """SHA-256 of the request's `Idempotency-Key`, in hexadecimal."""
    metadata: NotRequired[dict[str, str] | None]
    """In the log, the request's; in a `Summary`, those that hold now."""
    store: NotRequired[bool]
    """Whether it is listed among the stored completions."""
    retention_s: NotRequired[float | None]
    """How long a stored one is kept after the seal; None: as long as the server keeps logs."""
    session_id: NotRequired[str | None]
    session: NotRequired[SessionTerms | None]
    limited: NotRequired[Limited | None]
    """None: nothing is limited."""
    batch: NotRequired[BatchRef | None]
    surface: NotRequired[Surface]
    """Through which API it was asked for; chat where it is missing."""
    previous: NotRequired[list[str] | None]
    """The generations that it goes on from, the nearest first, 32 at most: what is before them, their own headers name."""
    retried_from: NotRequired[str | None]
    """The generation that was asked the same before; None: it is no repeat that a client asked for."""
    summarises: NotRequired[str | None]
    """The generation whose reasoning this is to summarise; None: it is no summary."""
    server: NotRequired[str | None]
    """Which server took the request, see `shared.store.confirm`; None: not known."""
    request_id: NotRequired[str | None]
    """The `x-request-id` that the response to it had; for log lines."""
    traceparent: NotRequired[str | None]
    """The span in which it was accepted, as the W3C has it; None: nobody traces it."""


class Refusal(TypedDict):
    """A model that was asked and did not answer, so that the next one was."""

    model: str
    status: int
    code: str | None


class Served(TypedDict):
    """How an answer came about. Beside the first chunk of an attempt, and in the outcome."""

    model: NotRequired[str]
    """`PROVIDER/MODEL` that answers; missing in an outcome without a chunk."""
    think: NotRequired[bool]
    """Reasoning may stand in the text, in `<think>…</think>`."""
    refused: NotRequired[list[Refusal]]
    retries: NotRequired[int]


class Attempt(TypedDict):
    """The entry with which a worker begins an attempt."""

    worker: str
    at_ms: int
    token: str
    """Random: tells two claims of one number apart."""
    reason: str
    """`queued`, `worker_lost`, or the code of the failure that ended the attempt before."""
    number: NotRequired[int]
    """From 1; where it is missing, the epoch is the number."""
    served: NotRequired[Served]
    """Not in the entry: `StreamLog.describe` adds the note of the attempt's first chunk."""
    spoke_at_ms: NotRequired[int]
    """Nor this: when that chunk was said."""


class Lengths(TypedDict):
    """Characters of an answer, over all choices."""

    content: int
    reasoning: int


class Cost(TypedDict):
    """What an answer cost, as it was known when it was sealed; see `shared.features.spend.prices`."""

    picodollars: int | None
    """Trillionths of a US dollar; None: not known, which is not 0."""
    source: Literal["provider", "settings", "genai-prices", "nothing", "unknown"]
    """`nothing`: no provider took the request."""
    version: NotRequired[str]
    """Of the list of prices: the package's, or a digest of `[prices]`."""
    price: NotRequired[dict[str, str]]
    """The price that was applied: dollars for a million tokens, by kind."""


class Outcome(TypedDict):
    """The last entry of a log: how the generation ended. Nothing can follow it."""

    status: Status
    """One of the four terminal ones. Read from JSON it is the plain string, which equals its member."""
    ended_at_ms: int
    by: str
    """The worker, or `api:…`, that sealed the log."""
    error: StoredError | None
    """Why it failed, or why an answer is incomplete."""
    finish_reasons: list[str | None]
    """One for each choice; None for a choice that has not ended."""
    usage: Usage
    usage_source: NotRequired[Literal["provider", "tokenizer", "estimate"]]
    characters: NotRequired[Lengths]
    served: NotRequired[Served]
    cost: NotRequired[Cost]
    spoke_at_ms: NotRequired[int]
    """When the first chunk of the attempt was said."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What three small reads tell about a log; everything else is a fold over its entries.

    `attempts` and `outcome` are the JSON of those entries, `()` and None where there are none yet; an attempt that has
    begun to speak has its note as `served`. The header has the metadata that hold now. `position` is the last entry
    before the outcome.
    """

    header: Header
    attempts: tuple[Attempt, ...]
    position: Position
    outcome: Outcome | None
    archived: bytes | None = None
    """Where the log is an object: the pointer to it, see archive/form.py. Then the header lacks what was done with."""

    @property
    def status(self) -> Status:
        if self.outcome is not None:
            return Status(self.outcome["status"])
        return Status.IN_PROGRESS if self.position.epoch else Status.QUEUED


def source_of(header: Header) -> str:
    """How it was asked for: `batch` if it is a line of one, `background` if no client waits for it, else the API."""
    if header.get("batch") is not None:
        return "batch"
    return "background" if header.get("background") else header.get("surface", "chat")


def response_id(generation_id: str) -> str:
    """The id by which the Responses API, and its webhooks, know a generation: the same digits, so there is no index."""
    return f"resp_{generation_id.removeprefix('chatcmpl-')}"
