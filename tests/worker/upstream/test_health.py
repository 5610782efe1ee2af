"""What a worker knows of its providers by asking them."""

from __future__ import annotations

import pytest

from shared.errors import UpstreamError, UpstreamRefused
from shared.generations.providers import WINDOW_S
from worker.upstream.health import Health


def test_what_a_provider_did_is_counted_and_told() -> None:
    health = Health()
    health.answered("lab", 40)
    health.answered("lab", 60)
    health.answered("lab")  # its list of models
    health.failed("lab", UpstreamRefused("Busy.", status=429, provider_status=429, retry_after_s=30))
    told = health.told()["lab"]
    assert (told["asked"], told["failed"], told["first_ms"]) == (4, 1, [40, 60])
    assert (told["error"]["code"], told["error"]["status"]) == (told["error"]["code"], 429)
    assert told["retry_at_ms"] > told["success_at_ms"]
    health.answered("lab", 50)
    assert health.told()["lab"]["retry_at_ms"] is None
    assert "other" not in health.told()


@pytest.mark.parametrize("status", [400, 404, 422])
def test_a_request_that_is_wrong_in_itself_is_no_failure_of_the_provider(status: int) -> None:
    health = Health()
    health.failed("lab", UpstreamRefused("No.", status=status, provider_status=status))
    assert health.told() == {}


def test_what_is_old_is_not_counted_and_no_more_is_kept_than_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("worker.upstream.health.time.monotonic", lambda: now)
    health = Health()
    health.failed("lab", UpstreamError("No connection.", code="upstream_connect_error"))
    now += WINDOW_S + 1
    for first_ms in range(1000):
        health.answered("lab", first_ms)
    told = health.told()["lab"]
    assert told["error"]["code"] == "upstream_connect_error"
    assert (told["asked"], told["failed"]) == (500, 0)
    assert told["first_ms"] == list(range(950, 1000))
