"""What the commands that look make of the API's objects."""

from __future__ import annotations

from typing import Any

import pytest
from typer.testing import CliRunner

from shared.cli import looking
from shared.cli.client import Client
from shared.cli.main import app

STATE = {
    "id": "chatcmpl-1",
    "status": "failed",
    "model": "lab/m",
    "created_at": 1_700_000_000,
    "timings": {"queued_ms": 40, "first_chunk_ms": 460, "generation_ms": 1200, "total_ms": 1240},
    "error": {"message": "no", "code": "upstream_incomplete", "status": 502},
    "usage": {"completion_tokens": 7},
}
USAGE = {"data": [{"date": "2026-11-27", "model": "lab/m", "requests": 3}], "total": {"requests": 3}}
SPENT = {
    "requests": 3,
    "total_tokens": 40,
    "cost_usd": 0.0000142,
    "unknown_costs": 1,
    "first_token_ms": {"p50": 310, "p90": 400, "p99": 2000},
    "duration_ms": None,
}
UNKNOWN = {**SPENT, "cost_usd": None, "unknown_costs": 3}
DAYS = {
    "data": [{**SPENT, "date": "2026-11-27", "model": "m"}, {**UNKNOWN, "date": "2026-11-28", "model": "m"}],
    "total": SPENT,
}


@pytest.mark.parametrize(
    ("words", "answer", "shown"),
    [
        (["ls"], {"data": [STATE]}, ["0.50 s", "1.24 s", "502 upstream_incomplete"]),
        (["show", "chatcmpl-1"], STATE, ["queued 40 ms", "HTTP 502, upstream_incomplete, no", "7 completion"]),
        (["usage"], USAGE, ["2026-11-27  lab/m  3", "all"]),
        (["usage"], DAYS, ["$0.0000142 + 1 unknown", "2.00 s", "2026-11-27    ████", "unknown"]),
        (["usage", "--by", "key", "--csv"], {"data": [], "total": SPENT}, ["date,key,requests", "cost_usd"]),
        (["usage"], {"data": [{**UNKNOWN, "date": "d", "model": "m"}], "total": UNKNOWN}, ["████", "40 tokens"]),
        (["show", "x"], {**STATE, "cost_usd": None, "cost_source": "unknown"}, ["cost          unknown"]),
        (["show", "x"], {**STATE, "cost_usd": 0.25, "cost_source": "provider"}, ["cost          $0.25 (provider)"]),
        (["ls"], {"data": [{**STATE, "cost_usd": None, "cost_source": "unknown"}]}, ["unknown"]),
        (["sessions"], {"data": [{"id": "s", "object": "session", "turns": 2}]}, ["TURNS", "s   2"]),
        (["ls"], {"data": []}, ["STATUS"]),
        (["sessions"], {"data": []}, ["ID"]),
    ],
)
def test_each_shows_what_a_person_looks_for(
    monkeypatch: pytest.MonkeyPatch, words: list[str], answer: dict[str, Any], shown: list[str]
) -> None:
    monkeypatch.setattr(looking, "ask", lambda *_: answer)
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    for text in shown:
        assert text in done.output


@pytest.mark.parametrize(("said", "seconds"), [("2h", 7200), ("3d", 259_200)])
def test_a_time_may_be_said_as_how_long_ago(monkeypatch: pytest.MonkeyPatch, said: str, seconds: int) -> None:
    monkeypatch.setattr("shared.cli.looking.time.time", lambda: 1_000_000.0)
    assert looking._since(said) == str(1_000_000 - seconds)
    assert looking._since("2026-11-27") == "2026-11-27"


async def test_a_list_is_followed_where_a_page_ends_early() -> None:
    """The API ends a page once it has looked at many: that none of them matched does not mean that none does."""
    pages: list[dict[str, Any]] = [
        {"data": [], "first_id": None, "last_id": "s1000", "has_more": True},
        {"data": [{"id": "s1500"}], "first_id": "s1500", "last_id": "s2000", "has_more": True},
        {"data": [{"id": "s2001"}], "first_id": "s2001", "last_id": "s2001", "has_more": True},
    ]
    asked = []

    class Paged:
        async def list(self, **query: Any) -> dict[str, Any]:
            asked.append(query)
            return pages[len(asked) - 1]

    client: Any = Paged()
    found = await looking._found(client, 2, {"status": "failed"})
    assert [one["id"] for one in found["data"]] == ["s1500", "s2001"]
    assert (found["first_id"], found["last_id"], found["has_more"]) == ("s1500", "s2001", True)
    assert asked == [
        {"limit": 2, "status": "failed"},
        {"limit": 2, "after": "s1000", "status": "failed"},
        {"limit": 1, "after": "s2000", "status": "failed"},
    ]


@pytest.mark.parametrize("url", ["http://a:1", "http://a:1/", "http://a:1/v1", "http://a:1/v1/"])
def test_an_address_as_openais_clients_are_told_it_is_the_same(url: str) -> None:
    assert Client(url).base_url == "http://a:1"
    assert Client(url.replace("a:1", "a:1/llm")).base_url == "http://a:1/llm"
