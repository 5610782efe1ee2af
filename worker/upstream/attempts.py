"""Which provider answers: the first of a request's targets that sends a chunk, after retries and fallbacks.

Hidden here: what is worth another try, how long to pause before it, and when the next target is asked instead. For example,
a 503 is tried three times within 30 s, then the next target is asked; a 400 ends it at once. All of this happens before the
first chunk: afterwards another provider would say something else in the middle of an answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import stamina

from shared.errors import (
    BadRequest,
    StreamspoolError,
    UpstreamError,
    UpstreamInvalid,
    UpstreamRefused,
    UpstreamTimeout,
    without_frames,
)
from shared.lib import sse
from shared.lib.telemetry import FALLBACKS, UPSTREAM_SECONDS
from shared.log import records
from shared.log.entry import Chunk
from worker import spans
from worker.normalizer import Normalizer
from worker.providers import framing
from worker.providers.dialect import Dialect
from worker.providers.formats import dialect_of
from worker.providers.registry import Provider, split_model
from worker.upstream.health import Health
from worker.upstream.timers import Timers

_TRIES = 3
_TRIES_S = 30.0
_FIRST_PAUSE_S = 0.25
_LONGEST_PAUSE_S = 10.0
"""A provider that asks for more has its refusal passed on at once: the client can plan better with it than we can."""

_LARGE_BYTES = 1024 * 1024
"""More than this at once is not parsed on the event loop."""

Step = tuple[list[Chunk], UpstreamError | None]
"""What one batch of events came to: its chunks, and the failure that the answer ended in, after these."""
OnRetry = Callable[[UpstreamError, "Target"], None]


class Events(Protocol):
    """What a provider answers, event by event, and the connection it comes on. One task has it."""

    async def next(self) -> list[sse.Event] | None:
        """All that came since the last time it was asked, once there is something; None at the end. Raises UpstreamError,
        and nothing comes after that."""

    async def drain(self) -> None:
        """Waits a moment for the end, so that the connection can be used again."""

    async def close(self) -> None:
        """Hangs up, unless the end has come."""


class Target(NamedTuple):
    """What may be asked: a provider, and its own name of the model."""

    provider: Provider
    model: str

    @property
    def name(self) -> str:
        return f"{self.provider.name}/{self.model}"


def targets_of(model: str, models: Mapping[str, Sequence[str]], providers: Mapping[str, Provider]) -> list[Target]:
    """Who may answer, in order: the model itself, or what `models` has under this name. Raises UpstreamError."""
    targets = []
    for name in models.get(model, [model]):
        provider_name, own_name = split_model(name)
        provider = providers.get(provider_name)
        if provider is None:
            raise UpstreamError(f"This worker has no provider `{provider_name}`. All workers need the same providers.")
        targets.append(Target(provider, own_name))
    return targets


@dataclass(slots=True)
class Served:
    """How the first chunk came about: which target sent it, which were asked in vain before, how often was asked again."""

    target: Target | None = None
    refused: list[records.Refusal] = field(default_factory=list)
    """Those that were given up on, in order."""
    retries: int = 0

    def note(self, *, spoke: bool) -> records.Served:
        """As it stands in the log beside the first chunk. `think`: reasoning may stand in the content."""
        note: records.Served = {}
        if spoke and self.target:
            note["model"] = self.target.name
            if self.target.provider.think_tags:
                note["think"] = True
        if self.refused:
            note["refused"] = self.refused
        if self.retries:
            note["retries"] = self.retries
        return note


class Attempts:
    """One answer's way to a provider. `open_events(target, dialect, timers)` sends the request. `close` it in the end."""

    def __init__(
        self,
        open_events: Callable[[Target, Dialect, Timers], Awaitable[Events]],
        normalizer: Normalizer,
        timers: Timers,
        served: Served,
        on_retry: OnRetry | None,
        health: Health,
    ) -> None:
        self._open, self._normalizer, self._timers = open_events, normalizer, timers
        self._served, self._on_retry, self._health = served, on_retry, health
        self._events: Events | None = None
        self.is_over = False
        """Nothing more comes of the answer."""

    async def begin(self, targets: Sequence[Target]) -> Step:
        """The first chunks of the first target that has some. Its connection stays open.

        Only here, before a chunk was handed out, can another target be asked without a viewer noticing.
        """
        for target in targets[:-1]:
            try:
                step = await self._ask(target)
            except StreamspoolError as error:
                if not _may_fall_back(error):
                    raise
                without_frames(error)
                self._served.refused.append({"model": target.name, "status": _told(error), "code": error.code})
                FALLBACKS.labels(target.provider.name).inc()
                spans.refused(target, error.code, _told(error))
            else:
                self._served.target = target
                return step
        self._served.target = targets[-1]
        return await self._ask(targets[-1])

    async def _ask(self, target: Target) -> Step:
        """One target's first chunks, asked for up to three times. The library that counts them begins with the second: it
        takes a twentieth of what a worker does for an answer."""
        passing: list[UpstreamError] = []
        until = time.monotonic() + _TRIES_S

        def pause(error: Exception) -> bool | float:
            if not isinstance(error, UpstreamError) or not _is_passing(error):
                return False
            if (error.retry_after_s or 0) > _LONGEST_PAUSE_S:
                return False
            passing.append(without_frames(error))
            return True if error.retry_after_s is None else float(error.retry_after_s)

        try:
            return await self._try(target)
        except UpstreamError as error:
            left_s = until - time.monotonic()
            if left_s <= 0 or pause(error) is False:
                raise
            first = without_frames(error)
        async for attempt in stamina.retry_context(
            on=pause, attempts=_TRIES, timeout=left_s, wait_initial=_FIRST_PAUSE_S, wait_max=_LONGEST_PAUSE_S
        ):
            if attempt.num > 1:
                self._served.retries += 1
                if self._on_retry:
                    self._on_retry(passing[-1], target)
            with attempt:
                if attempt.num == 1:
                    raise first
                step = await self._try(target)
        return step

    async def _try(self, target: Target) -> Step:
        began, provider = time.monotonic(), target.provider
        try:
            self._timers.begin()
            dialect = dialect_of(provider, self._normalizer.whole)
            self._normalizer.begin(dialect)
            self._events, self.is_over = await self._open(target, dialect, self._timers), False
            chunks, failure = list[Chunk](), None
            while not (chunks or failure or self.is_over or self._normalizer.done):
                chunks, failure = await self.step()
            if failure is not None and not chunks:
                raise without_key(failure, provider)
        except BaseException as error:
            await self.close()
            if isinstance(error, UpstreamError):
                self._health.failed(provider.name, error)
                UPSTREAM_SECONDS.labels(provider.name, _shown(error)).observe(time.monotonic() - began)
            raise
        took_s = time.monotonic() - began
        self._health.answered(provider.name, round(took_s * 1000))
        UPSTREAM_SECONDS.labels(provider.name, "200").observe(took_s)
        return chunks, failure

    async def step(self) -> Step:
        """One batch further.

        After the finish reason no failure can take that back. More of the answer may follow it, as long after it as after
        anything else; after usage, which is last, the wait is short.
        """
        normalizer, timers = self._normalizer, self._timers
        if normalizer.settled:
            timers.grace()
        elif timers.in_grace:
            timers.resume()
        assert self._events is not None
        events: list[sse.Event] | None = None
        failure: UpstreamError | None = None
        try:
            with timers:
                events = await self._events.next()
        except UpstreamError as error:
            if not normalizer.finished:
                return [], error
        chunks: list[Chunk] = []
        if events is None:
            self.is_over = True
        else:
            size, is_word = 0, False
            for event in events:
                size += len(event.data)
                is_word = is_word or event.event not in framing.PINGS
            if size <= _LARGE_BYTES:
                chunks, failure = _normalize(events, normalizer)
            else:  # a picture: nothing else of this answer happens meanwhile, and all others go on
                chunks, failure = await asyncio.to_thread(_normalize, events, normalizer)
            if is_word:
                timers.heard(begun=normalizer.begun)
        if failure is None and (normalizer.done or events is None):
            try:
                chunks += normalizer.end()
            except UpstreamError as error:
                failure = error
        return chunks, failure

    async def drain(self) -> None:
        """The answer is whole."""
        if self._events is not None and not self.is_over:
            await self._events.drain()

    async def close(self) -> None:
        events, self._events = self._events, None
        if events is not None:
            await events.close()


def _normalize(events: list[sse.Event], normalizer: Normalizer) -> tuple[list[Chunk], UpstreamError | None]:
    """The chunks of a batch, and the error that ended it: what came before an error is kept."""
    chunks: list[Chunk] = []
    try:
        for event in events:
            chunks += normalizer.feed(event)
    except UpstreamError as failure:
        return chunks, failure
    except RecursionError:
        return chunks, UpstreamInvalid("The provider sent an event that is nested too deeply.")
    return chunks, None


def _is_passing(error: UpstreamError) -> bool:
    """Whether the same request may be met with an answer a little later."""
    if isinstance(error, UpstreamInvalid) or error.code == "upstream_redirect":
        return False
    if isinstance(error, UpstreamTimeout) and error.code != "upstream_connect_timeout":
        return False
    return _told(error) in (408, 429) or _told(error) >= 500


def _told(error: StreamspoolError) -> int:
    """The provider's own status, where it gave one."""
    return error.provider_status if isinstance(error, UpstreamError) else error.status


def _shown(error: UpstreamError) -> str:
    """As a label: the provider's status, or, where it said none, what broke, which is a code of ours. It may say anything."""
    if not isinstance(error, UpstreamRefused):
        return error.code.removeprefix("upstream_")
    return str(error.provider_status) if 100 <= error.provider_status < 600 else "other"


def _may_fall_back(error: StreamspoolError) -> bool:
    """Whether another target may do better: not where the request itself is wrong, or its time is over."""
    if isinstance(error, UpstreamError):
        return error.code != "generation_timeout" and error.status not in (400, 413, 422)
    return isinstance(error, BadRequest)  # this provider cannot be asked for it; another may


def without_key(failure: UpstreamError, provider: Provider) -> UpstreamError:
    """The normalizer takes out what looks like a key; a provider's own may look like anything, and only we know it."""
    if provider.api_key is None or provider.api_key not in str(failure.to_object()):
        return failure
    shown = f"{provider.name}: reported an error that cannot be shown."
    return UpstreamRefused(shown, status=failure.status, provider_status=failure.provider_status)
