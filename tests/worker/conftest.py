"""What holds for all tests of a worker's parts: a busy machine is no outage."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However late Redis answers, nobody is told that it is away, but where a test is about that."""
    monkeypatch.setattr("shared.store.availability._DEADLINE_S", 60.0)
    monkeypatch.setattr("worker.arq_worker._ANSWERS_S", 60.0)
    monkeypatch.setattr("worker.opening._ANSWERS_S", 60.0)
