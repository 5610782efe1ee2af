"""The errors: the tree that the docstring draws, and how each looks on the wire."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

from shared import errors
from shared.errors import (
    WIRE_FIELDS,
    BadCursor,
    BadRequest,
    CursorExpired,
    CursorRestart,
    Expired,
    GenerationEnded,
    GenerationFailed,
    Internal,
    LogError,
    NotFound,
    RateLimited,
    Sealed,
    StoredError,
    StreamspoolError,
    Unavailable,
    UpstreamError,
    UpstreamIncomplete,
    UpstreamInvalid,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamTooLong,
    wire_error,
)
from tests.support.records import mismatches

CLASSES: dict[str, Any] = {
    name: value
    for name, value in vars(errors).items()
    if inspect.isclass(value) and issubclass(value, Exception) and value.__module__ == errors.__name__
}
_LINE = re.compile(r" {4}(?P<branch>(?:│ {3}| {4})*(?:[├└]── )?)(?P<name>[A-Z]\w+)(?: (?P<status>\d{3}))?(?: |$)")


def drawn() -> dict[str, tuple[str | None, int | None]]:
    """The docstring's tree: class → parent and status."""
    found: dict[str, tuple[str | None, int | None]] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        if match := _LINE.match(line):
            depth = len(match["branch"]) // 4
            above[depth:] = [match["name"]]
            status = int(match["status"]) if match["status"] else None
            found[match["name"]] = (above[depth - 1] if depth else None, status)
    return found


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    real = {
        name: parent.__name__ if (parent := kind.__bases__[0]) is not Exception else None
        for name, kind in CLASSES.items()
    }
    assert {name: parent for name, (parent, _) in drawn().items()} == real


@pytest.mark.parametrize(("name", "status"), [(name, status) for name, (_, status) in drawn().items() if status])
def test_the_statuses_in_the_docstring_are_the_statuses(name: str, status: int) -> None:
    assert CLASSES[name].status == status


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_every_error_has_a_sentence(name: str) -> None:
    assert inspect.getdoc(CLASSES[name])


PLAIN = [
    kind
    for kind in CLASSES.values()
    if issubclass(kind, StreamspoolError) and kind not in (CursorRestart, CursorExpired, Expired, GenerationFailed)
]


@pytest.mark.parametrize("kind", PLAIN)
def test_every_error_has_openais_shape(kind: type[StreamspoolError]) -> None:
    error = kind("Do this next.")
    assert str(error) == error.message == "Do this next."
    assert error.to_object() == {"message": "Do this next.", "type": kind.type, "param": None, "code": kind.code}
    assert 400 <= error.status < 600 or issubclass(
        kind, UpstreamTooLong
    )  # it stands in an outcome and is never a response


@pytest.mark.parametrize("kind", [BadRequest, BadCursor, NotFound, Internal])
def test_what_is_given_wins(kind: type[StreamspoolError]) -> None:
    error = kind("m", code="c", param="p", status=418)
    assert error.to_object() == {"message": "m", "type": kind.type, "param": "p", "code": "c"}
    assert error.status == 418
    assert kind("m").status == kind.status, "the class is as it was"


@pytest.mark.parametrize(
    ("seconds", "header"), [(0, "1"), (0.2, "1"), (1, "1"), (2.4, "2"), (17, "17"), (3600.0, "3600")]
)
def test_retry_after_is_in_whole_seconds_and_never_zero(seconds: float, header: str) -> None:
    assert Unavailable("m", retry_after_s=seconds).headers() == {"retry-after": header}


@pytest.mark.parametrize(("seconds", "header"), [(1e20, "86400"), (float("inf"), "86400"), (-3, "1"), (-1e400, "1")])
def test_retry_after_is_a_day_at_most(seconds: float, header: str) -> None:
    """Also of a failure that an older worker wrote down."""
    stored = {"message": "m", "status": 429, "retry_after_s": seconds}
    for error in (UpstreamRefused("m", retry_after_s=seconds), GenerationFailed(stored)):
        assert error.headers()["retry-after"] == header
    assert "retry-after" not in UpstreamRefused("m", retry_after_s=float("nan")).headers()


def test_most_errors_leave_the_retries_to_the_client() -> None:
    assert BadRequest("m").headers() == {}
    assert Unavailable("m").headers() == {"retry-after": "2"}
    assert Unavailable("m", code="storage_full").code == "storage_full"


def test_a_cursor_that_cannot_be_resumed_says_where_one_can() -> None:
    restart, expired = CursorRestart("m", restart_from="2-0"), CursorExpired("m", floor="1-7")
    assert restart.to_object()["restart_from"] == "2-0"
    assert restart.headers() == {"x-should-retry": "false"}, "the SDKs retry a 409 otherwise"
    assert expired.to_object()["floor"] == "1-7"
    assert restart.param == expired.param == "starting_after"


def test_a_retryable_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(NotFound, "retryable", True)
    assert NotFound("m").headers() == {"x-should-retry": "true"}


UPSTREAM = [UpstreamError, UpstreamRefused, UpstreamTimeout, UpstreamIncomplete, UpstreamInvalid]


@pytest.mark.parametrize("kind", UPSTREAM)
@pytest.mark.parametrize("given", [{}, {"kind": "their_type", "code": "their_code", "status": 429, "retry_after_s": 7}])
def test_an_outcome_gives_the_same_error_back(kind: type[UpstreamError], given: dict[str, Any]) -> None:
    """What a worker raised, through the log, is what the API answers."""
    error = kind("m", **given)
    again = GenerationFailed(error.to_stored())
    assert again.to_object() == error.to_object()
    assert again.status == error.status
    assert again.retry_after_s == error.retry_after_s
    assert again.headers() == {**error.headers(), "x-should-retry": "false"}


@pytest.mark.parametrize(
    "outcome", [{}, {"message": None, "code": None, "status": None, "type": None}, {"message": ""}]
)
def test_an_outcome_that_says_little_is_an_error_all_the_same(outcome: dict[str, Any]) -> None:
    error = GenerationFailed(outcome)
    assert error.status == 502
    assert error.to_object() == {
        "message": "The generation failed.",
        "type": "server_error",
        "param": None,
        "code": "generation_failed",
    }


ENDED = [kind for kind in CLASSES.values() if issubclass(kind, GenerationEnded) and kind is not GenerationEnded]


@pytest.mark.parametrize("kind", ENDED)
def test_why_a_generation_ended_says_so_by_itself_and_comes_back_from_its_outcome(kind: type[GenerationEnded]) -> None:
    error = kind()
    stored = error.to_stored()
    assert len(error.message) > 40
    assert mismatches(stored, StoredError) == []
    assert wire_error(stored) == error.to_object() == GenerationFailed(stored).to_object()
    assert error.headers() == {"x-should-retry": "false"} == GenerationFailed(stored).headers()
    assert GenerationFailed(stored).status == error.status


def test_what_an_older_worker_left_out_of_an_error_is_null() -> None:
    assert wire_error({"code": "c", "status": 502}) == {"message": None, "type": None, "param": None, "code": "c"}
    assert tuple(wire_error({})) == WIRE_FIELDS == tuple(Internal("m").to_object())


def test_a_limit_says_when_to_come_again() -> None:
    error = RateLimited(retry_after_s=12.4, param="model")
    assert (error.status, error.headers()) == (429, {"retry-after": "12"})
    assert error.to_object()["code"] == "rate_limit_exceeded"


def test_sealed_carries_the_first_outcome() -> None:
    assert Sealed({"status": "completed"}).outcome == {"status": "completed"}
    assert isinstance(Sealed({}), LogError)
    assert not issubclass(LogError, StreamspoolError), "it never reaches a client by itself"
