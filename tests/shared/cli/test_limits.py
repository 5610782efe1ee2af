"""`streamspool limits`: what is sent, and what is printed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from typer.testing import CliRunner

from shared.cli.access import limits
from shared.cli.main import app

Sent = list[tuple[str, str, Any]]
OF_TENANT = {"object": "limits", "tenant": "t", "limits": {"running": 3}, "used": {"running": 1}, "budgets": []}
SPENT = [{"period": "day", "now": "2026-11-30", "hard": True, "limit_usd": 1e-06, "spent_usd": 2.5}]


class FakeClient:
    """Notes what is sent, and answers with limits."""

    def __init__(self, sent: Sent) -> None:
        self._sent = sent

    async def send(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        self._sent.append((method, path, body))
        if path.startswith("/v1/keys"):
            found = {"running": 3, "viewers": 9} if body is None else body["limits"]
            return {"id": "key_1", "object": "key", "limits": found, "budgets": {"soft_month_usd": 20.0}}
        return {**OF_TENANT, "key": {"id": "key_1", "limits": {"viewers": 9}, "used": {}, "budgets": SPENT}}


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    found: Sent = []

    def ask(_: object, question: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
        return asyncio.run(question(FakeClient(found)))

    monkeypatch.setattr(limits, "ask", ask)
    return found


def run(*words: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["limits", *words])
    assert done.exit_code == code, done.output
    return done.output


def test_ones_own_are_the_tenants_and_the_keys(sent: Sent) -> None:
    lines = [line.split() for line in run("show").splitlines()]
    assert lines[1:] == [
        ["tenant", "t", "running", "3", "1"],
        ["key", "key_1", "viewers", "9"],
        ["key", "key_1", "day_usd", "$0.000001", "$2.5"],
    ]
    assert sent == [("GET", "/v1/limits", None)]
    assert json.loads(run("show", "--json"))["tenant"] == "t"


def test_those_of_a_tenant_and_of_a_key(sent: Sent) -> None:
    assert "viewers" not in run("show", "--tenant", "t")
    of_key = run("show", "--key", "key_1")
    assert "viewers" in of_key
    assert ["key", "key_1", "soft_month_usd", "$20"] in [line.split() for line in of_key.splitlines()]
    assert [path for _, path, _ in sent] == ["/v1/limits?tenant=t", "/v1/keys/key_1"]


def test_what_is_not_named_stays(sent: Sent) -> None:
    assert run("set", "--tenant", "*", "running=5", "viewers=none") == "tenant t: running=3\n"
    assert run("set", "--key", "key_1", "running=5", "viewers=none") == "key_1: running=5\n"
    assert sent == [
        ("POST", "/v1/limits/%2A", {"running": 5, "viewers": None}),
        ("GET", "/v1/keys/key_1", None),
        ("POST", "/v1/keys/key_1", {"limits": {"running": 5}}),
    ]


def test_all_is_taken_back(sent: Sent) -> None:
    run("reset", "--tenant", "t")
    assert run("reset", "--key", "key_1") == "key_1: no limits\n"
    assert sent == [("DELETE", "/v1/limits/t", None), ("POST", "/v1/keys/key_1", {"limits": {}})]


@pytest.mark.parametrize(
    "words",
    [
        ["set", "running=5"],
        ["set", "--tenant", "t"],
        ["set", "--tenant", "t", "--key", "key_1", "running=5"],
        ["set", "--tenant", "t", "rpm=5"],
        ["set", "--tenant", "t", "running=0"],
        ["set", "--tenant", "t", "running=-1"],
        ["set", "--tenant", "t", "running"],
        ["reset"],
        ["show", "--tenant", "t", "--key", "key_1"],
    ],
)
def test_what_is_misspelt_is_told_before_anything_is_sent(sent: Sent, words: list[str]) -> None:
    run(*words, code=2)
    assert not sent
