"""Which ends of a line's generation end the line, and which put it back: the table of docs/api/batches.md."""

from __future__ import annotations

import pytest

from shared.log.records import Outcome
from tests.harness.records import outcome_with
from worker.batches.verdict import Verdict, verdict


def failed(code: str | None, status: int | None) -> Outcome:
    return outcome_with({"status": "failed", "error": {"code": code, "status": status, "message": "m", "type": "t"}})


@pytest.mark.parametrize("status", ["completed", "incomplete", "cancelled"])
def test_an_answer_and_a_cancel_of_the_line_are_its_end(status: str) -> None:
    assert verdict(outcome_with({"status": status, "error": None})) is Verdict.DONE


@pytest.mark.parametrize(
    ("code", "status", "means"),
    [
        ("invalid_request", 400, Verdict.DONE),
        ("invalid_api_key", 401, Verdict.DONE),
        (None, 402, Verdict.DONE),
        ("content_policy", 403, Verdict.DONE),
        ("model_not_found", 404, Verdict.DONE),
        (None, 409, Verdict.DONE),
        ("context_length_exceeded", 413, Verdict.DONE),
        (None, 422, Verdict.DONE),
        ("insufficient_quota", 429, Verdict.DONE),
        ("billing_hard_limit_reached", 429, Verdict.DONE),
        ("generation_timeout", 504, Verdict.DONE),
        ("generation_interrupted", 502, Verdict.DONE),
        ("upstream_chunk_too_large", 502, Verdict.DONE),
        ("rate_limit_exceeded", 429, Verdict.BUSY),
        (None, 529, Verdict.BUSY),
        ("upstream_connect_error", 502, Verdict.AWAY),
        ("upstream_connect_timeout", 504, Verdict.AWAY),
        ("upstream_first_timeout", 504, Verdict.AWAY),
        ("upstream_idle_timeout", 504, Verdict.AWAY),
        ("upstream_incomplete", 502, Verdict.AWAY),
        ("upstream_invalid", 502, Verdict.AWAY),
        ("upstream_redirect", 502, Verdict.AWAY),
        ("upstream_refused", 502, Verdict.AWAY),
        ("overloaded_error", 502, Verdict.AWAY),
        ("internal_error", 502, Verdict.AWAY),
        (None, 408, Verdict.AWAY),
        ("no_worker", 503, Verdict.HELD_UP),
        ("storage_full", 507, Verdict.HELD_UP),
        ("storage_unavailable", 503, Verdict.HELD_UP),
        ("unsupported_version", 503, Verdict.HELD_UP),
        ("worker_lost", 502, Verdict.LOST),
        ("stream_lost", 500, Verdict.LOST),
        ("request_lost", 500, Verdict.LOST),
        ("internal_error", 500, Verdict.LOST),
    ],
)
def test_only_what_is_the_lines_own_ends_it(code: str | None, status: int, means: Verdict) -> None:
    assert verdict(failed(code, status)) is means


def test_a_failure_that_says_nothing_is_ours() -> None:
    assert verdict(outcome_with({"status": "failed", "error": None})) is Verdict.LOST


@pytest.mark.parametrize(
    ("status", "provider_status", "means"),
    [
        (502, 401, Verdict.DONE),
        (502, 403, Verdict.DONE),
        (502, 529, Verdict.BUSY),
        (502, 503, Verdict.AWAY),
        (504, 408, Verdict.AWAY),
    ],
)
def test_the_providers_own_status_counts(status: int, provider_status: int, means: Verdict) -> None:
    """A line that the provider refuses for its key is refused a minute later, too, although clients see a 502."""
    outcome = failed("some_code", status)
    assert outcome["error"] is not None
    outcome["error"]["provider_status"] = provider_status
    assert verdict(outcome) is means
