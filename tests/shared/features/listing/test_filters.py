"""Filters of lists, over rows: what each of them means, together and alone."""

from __future__ import annotations

from typing import Any

import pytest

from shared.features.listing.filters import Between, Filters
from shared.features.listing.row import Row, row
from shared.log.entry import Position, Status
from shared.log.records import Summary

_HEADER: dict[str, Any] = {"id": "chatcmpl-1", "owner": "alice", "model": "fast", "created_at_ms": 1000, "n": 1}
_SERVED = {"model": "openai/gpt"}


def made(**fields: Any) -> Row:
    common: dict[str, Any] = {
        "id": "chatcmpl-1",
        "tenant": "alice",
        "key_id": "key_1",
        "created_at_ms": 1000,
        "status": Status.COMPLETED,
        "model": "fast",
        "served_by": "openai/gpt",
        "provider": "openai",
        "source": "chat",
        "session_id": "s-1",
        "batch_id": None,
        "error_code": None,
        "ttft_ms": 50,
        "duration_ms": 900,
        "tokens": 30,
        "picodollars": 7,
        "metadata": {"Task": "Title"},
    }
    return Row(**{**common, **fields})


@pytest.mark.parametrize(
    "wanted",
    [
        {"statuses": frozenset({Status.COMPLETED, Status.FAILED})},
        {"model": "fast"},
        {"model": "fa*"},
        {"served_by": "openai/*"},
        {"providers": frozenset({"openai"})},
        {"sources": frozenset({"chat", "batch"})},
        {"key_ids": frozenset({"key_1"})},
        {"session_id": "s-1"},
        {"metadata": {"Task": "Title"}},
        {"text": "MPL-1"},
        {"text": "title"},
        {"text": "gpt"},
        {"since_ms": 1000, "until_ms": 1001},
        {"duration_ms": Between(900, 900)},
        {"ttft_ms": Between(None, 50)},
        {"tokens": Between(30)},
        {"picodollars": Between(1, 10)},
    ],
)
def test_what_matches_each_filter(wanted: dict[str, Any]) -> None:
    assert Filters(**wanted).matches(made())


@pytest.mark.parametrize(
    "wanted",
    [
        {"statuses": frozenset({Status.FAILED})},
        {"model": "fas"},
        {"served_by": "openai"},
        {"providers": frozenset({"fake"})},
        {"sources": frozenset({"batch"})},
        {"key_ids": frozenset({"key_2"})},
        {"errors": frozenset({"worker_lost"})},
        {"batch_id": "batch_1"},
        {"metadata": {"Task": "title"}},
        {"text": "nothing like it"},
        {"since_ms": 1001},
        {"until_ms": 1000},
        {"duration_ms": Between(901)},
        {"tokens": Between(0, 29)},
        {"model": "fast", "text": "slow"},
    ],
)
def test_what_matches_no_filter(wanted: dict[str, Any]) -> None:
    assert not Filters(**wanted).matches(made())


def test_what_is_not_known_is_in_no_range() -> None:
    assert Filters().matches(made(duration_ms=None))
    assert not Filters(duration_ms=Between(0)).matches(made(duration_ms=None))


def test_what_is_largest_comes_first_and_what_is_unknown_last() -> None:
    rows = [
        made(id="a", duration_ms=None),
        made(id="b", duration_ms=5),
        made(id="c", duration_ms=9),
        made(id="d", duration_ms=5, created_at_ms=2000),
    ]
    wanted = Filters(order="slowest")
    assert [one.id for one in sorted(rows, key=wanted.rank)] == ["c", "d", "b", "a"]
    assert [one.id for one in sorted(rows, key=Filters().rank)] == ["d", "a", "b", "c"]
    assert [one.id for one in sorted(rows, key=Filters(order="asc").rank)] == ["a", "b", "c", "d"]


def test_the_row_of_one_that_runs_and_of_one_that_ended() -> None:
    attempt: Any = {
        "worker": "w",
        "at_ms": 1010,
        "token": "t",
        "reason": "queued",
        "served": _SERVED,
        "spoke_at_ms": 1030,
    }
    header: Any = {**_HEADER, "metadata": {"a": "b"}, "background": True}
    running = row(Summary(header, (attempt,), Position(1, 2), None))
    assert (running.status, running.provider, running.served_by) == (Status.IN_PROGRESS, "openai", "openai/gpt")
    assert (running.ttft_ms, running.duration_ms, running.tokens, running.picodollars) == (30, None, None, None)
    assert (running.source, running.metadata) == ("background", {"a": "b"})
    outcome: Any = {
        "status": "failed",
        "ended_at_ms": 1200,
        "by": "w",
        "error": {"message": "m", "type": "t", "param": None, "code": "worker_lost", "status": 502},
        "finish_reasons": [],
        "usage": {"total_tokens": "many"},
        "served": {},
        "cost": {"picodollars": 4, "source": "settings"},
    }
    line: Any = {**header, "batch": {"id": "batch_1", "line": 1}}
    ended = row(Summary(line, (), Position(0, 2), outcome))
    assert (ended.status, ended.error_code, ended.provider) == (Status.FAILED, "worker_lost", "fast")
    assert (ended.duration_ms, ended.tokens, ended.picodollars) == (200, None, 4)
    assert (ended.source, ended.batch_id) == ("batch", "batch_1")
