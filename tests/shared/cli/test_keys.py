"""`streamspool keys`: what is sent, and what is printed where."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from typer.testing import CliRunner

from shared.cli.access import keys
from shared.cli.main import app

KEY = {
    "id": "key_1",
    "object": "key",
    "name": "nightly",
    "tenant": "t",
    "role": "tenant",
    "status": "active",
    "source": "api",
    "hint": "abcd",
    "created_at": 1_700_000_000,
    "expires_at": None,
    "last_used_at": None,
    "overlap_until": None,
    "models": ["openai/*"],
    "limits": {"running": 3},
    "budgets": {"day_usd": 0.000001, "month_usd": 20.0},
}
Sent = list[tuple[str, str, Any]]


class FakeClient:
    """Notes what is sent, and answers with one key."""

    def __init__(self, sent: Sent) -> None:
        self._sent = sent

    async def send(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        self._sent.append((method, path, body))
        if method == "GET" and "?" in path:
            return {"data": [KEY], "has_more": len(self._sent) < 2}
        return {**KEY, "key": "sk-ss-secret"}


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    import asyncio

    found: Sent = []

    def ask(_: object, question: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
        return asyncio.run(question(FakeClient(found)))

    monkeypatch.setattr(keys, "ask", ask)
    return found


def run(*words: str) -> Any:
    done = CliRunner().invoke(app, ["keys", *words])
    assert done.exit_code == 0, done.output
    return done


def test_a_new_key_is_alone_on_stdout(sent: Sent) -> None:
    words = "--tenant t --name nightly --expires 90d -m openai/* -m smart --limit running=3 --budget day_usd=1.5"
    done = run("create", *words.split())
    assert done.stdout == "sk-ss-secret\n"
    assert "not shown again" in done.stderr
    ((method, path, body),) = sent
    assert (method, path) == ("POST", "/v1/keys")
    assert body.pop("expires_at") > 1_700_000_000 + 90 * 86400
    assert body == {
        "tenant": "t",
        "role": "tenant",
        "name": "nightly",
        "models": ["openai/*", "smart"],
        "limits": {"running": 3},
        "budgets": {"day_usd": 1.5},
    }
    assert json.loads(run("create", "--tenant", "t", "--json").stdout)["key"] == "sk-ss-secret"


def test_the_list_is_read_to_its_end(sent: Sent) -> None:
    shown = run("list", "--tenant", "t").stdout
    assert shown.count("key_1") == 2
    assert "nightly" in shown
    assert [path for _, path, _ in sent] == ["/v1/keys?limit=100&tenant=t", "/v1/keys?limit=100&tenant=t&after=key_1"]
    assert json.loads(run("list", "--json").stdout)["data"][0] == KEY


def test_the_others(sent: Sent) -> None:
    shown = run("show", "key_1").stdout
    assert "running=3" in shown
    assert "day_usd=$0.000001, month_usd=$20" in shown
    assert json.loads(run("show", "key_1", "--json").stdout)["id"] == "key_1"
    assert run("rotate", "key_1", "--overlap", "1h").stdout == "sk-ss-secret\n"
    assert "changed" in run("change", "key_1", "--expires", "1900000000").stdout
    assert "changed" in run("change", "key_1", "--limit", "viewers=9", "--budget", "day_usd=none").stdout
    assert "revoked" in run("revoke", "key_1").stdout
    assert sent[2:] == [
        ("POST", "/v1/keys/key_1/rotate", {"overlap_s": 3600}),
        ("POST", "/v1/keys/key_1", {"expires_at": 1_900_000_000}),
        ("GET", "/v1/keys/key_1", None),
        ("POST", "/v1/keys/key_1", {"limits": {"running": 3, "viewers": 9}, "budgets": {"month_usd": 20.0}}),
        ("DELETE", "/v1/keys/key_1", None),
    ]


@pytest.mark.parametrize(
    "words", [["--expires", "soon"], ["--limit", "running"], ["--limit", "running=x"], ["--budget", "=1x"]]
)
def test_what_is_misspelt_is_told_before_anything_is_sent(sent: Sent, words: list[str]) -> None:
    assert CliRunner().invoke(app, ["keys", "create", "--tenant", "t", *words]).exit_code == 2
    assert not sent
