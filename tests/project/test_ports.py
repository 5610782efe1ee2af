"""A port is of one server alone: who shares one with another asks that one, and is answered."""

import subprocess
import sys

import pytest

from tests.harness import processes
from tests.harness.processes import ROOT, free_port

ASK = "from tests.harness.processes import free_port\nprint(*[free_port() for _ in range(200)])"


def test_no_port_is_given_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_given", set())  # the tests before this one may have had nearly half of the share
    assert len({free_port() for _ in range(1000)}) == 1000


def test_processes_of_one_run_have_shares_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def given(worker: str) -> set[int]:
        monkeypatch.setenv("PYTEST_XDIST_WORKER", worker)
        found = subprocess.run([sys.executable, "-c", ASK], cwd=ROOT, check=True, capture_output=True, text=True)
        return set(map(int, found.stdout.split()))

    first, second = given("gw0"), given("gw1")
    assert len(first) == len(second) == 200
    assert max(first) < min(second)
    assert max(second) < 32_000


def test_they_are_given_again_before_they_run_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_given", set())
    assert all(free_port() for _ in range(4000))
