"""Which provider answers: the first of a request's targets that sends a chunk, after retries and fallbacks.

Hidden here: what is worth another try, how long to pause before it, and when the next target is asked instead. For example,
a 503 is tried three times within 30 s, then the next target is asked; a 400 ends it at once. All of this happens before the
first chunk: afterwards another provider would say something else in the middle of an answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from typing import NamedTuple

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

Events = AsyncGenerator[list[sse.Event], None]
OnRetry = Callable[[UpstreamError, "Target"], None]


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


class Step(NamedTuple):
    """What one batch of events came to."""

    batches: Events | None
    """Where the next batch comes from; None if there is none."""
    chunks: list[Chunk]
    failure: UpstreamError | None
    """What the answer ended in, after these chunks."""


class Attempts:
    """One answer's way to a provider. `open_events(target, timers)` sends the request: it is a context of its events, in
    batches that came together, and leaving it closes the connection."""

    def __init__(
        self,
        open_events: Callable[[Target, Timers], AbstractAsyncContextManager[Events]],
        normalizer: Normalizer,
        timers: Timers,
        served: Served,
        on_retry: OnRetry | None,
        health: Health,
    ) -> None:
        self._open, self._normalizer, self._timers = open_events, normalizer, timers
        self._served, self._on_retry, self._health = served, on_retry, health

    async def begin(self, stack: AsyncExitStack, targets: Sequence[Target]) -> tuple[Provider, Step]:
        """The first chunks of the first target that has some. Its connection stays open until `stack` ends.

        Only here, before a chunk was handed out, can another target be asked without a viewer noticing.
        """
        for target in targets[:-1]:
            try:
                step = await self._ask(stack, target)
            except StreamspoolError as error:
                if not _may_fall_back(error):
                    raise
                without_frames(error)
                self._served.refused.append({"model": target.name, "status": _told(error), "code": error.code})
                FALLBACKS.labels(target.provider.name).inc()
                spans.refused(target, error.code, _told(error))
            else:
                self._served.target = target
                return target.provider, step
        self._served.target = targets[-1]
        return targets[-1].provider, await self._ask(stack, targets[-1])

    async def _ask(self, stack: AsyncExitStack, target: Target) -> Step:
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
            return await self._noted(stack, target)
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
                step = await self._noted(stack, target)
        return step

    async def _noted(self, stack: AsyncExitStack, target: Target) -> Step:
        began = time.monotonic()
        try:
            step = await self._try(stack, target)
        except UpstreamError as error:
            self._health.failed(target.provider.name, error)
            UPSTREAM_SECONDS.labels(target.provider.name, _shown(error)).observe(time.monotonic() - began)
            raise
        took_s = time.monotonic() - began
        self._health.answered(target.provider.name, round(took_s * 1000))
        UPSTREAM_SECONDS.labels(target.provider.name, "200").observe(took_s)
        return step

    async def _try(self, stack: AsyncExitStack, target: Target) -> Step:
        self._timers.begin()
        self._normalizer.begin(dialect_of(target.provider, self._normalizer.whole))
        async with AsyncExitStack() as trial:
            step = Step(await trial.enter_async_context(self._open(target, self._timers)), [], None)
            while step.batches is not None and not (step.chunks or step.failure or self._normalizer.done):
                step = await self.step(step.batches)
            if step.failure is not None and not step.chunks:
                raise without_key(step.failure, target.provider)
            stack.push_async_exit(trial.pop_all())
        return step

    async def step(self, batches: Events) -> Step:
        """One batch further: the chunks it made, and the failure it ended in.

        After the finish reason no failure can take that back. More of the answer may follow it, as long after it as after
        anything else; after usage, which is last, the wait is short.
        """
        normalizer, timers = self._normalizer, self._timers
        (timers.grace if normalizer.settled else timers.resume)()
        events: list[sse.Event] | None = None
        failure: UpstreamError | None = None
        try:
            with timers:
                events = await anext(batches, None)
        except UpstreamError as error:
            if not normalizer.finished:
                return Step(batches, [], error)
        chunks: list[Chunk] = []
        if events is not None:
            if sum([len(event.data) for event in events]) <= _LARGE_BYTES:
                chunks, failure = _normalize(events, normalizer)
            else:  # a picture: nothing else of this answer happens meanwhile, and all others go on
                chunks, failure = await asyncio.to_thread(_normalize, events, normalizer)
            if [None for event in events if event.event not in framing.PINGS]:  # not any(), which costs as much again
                timers.heard(begun=normalizer.begun)
        if failure is None and (normalizer.done or events is None):
            try:
                chunks += normalizer.end()
            except UpstreamError as error:
                failure = error
        return Step(None if events is None else batches, chunks, failure)


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
