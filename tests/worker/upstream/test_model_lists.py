"""Asking for a list of models over real sockets."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from shared.errors import UpstreamError, UpstreamInvalid, UpstreamTimeout
from tests.support.listing import ListingProvider
from worker.providers.registry import Provider
from worker.upstream import model_lists
from worker.upstream.model_lists import ModelLists

KEY = "sk-of-the-provider-0123456789"


@pytest.fixture
def listing() -> Iterator[ListingProvider]:
    with ListingProvider() as server:
        yield server


@pytest.fixture
async def lists(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ModelLists]:
    for limit in ("CONNECT_S", "LIST_S", "DETAILS_S"):
        monkeypatch.setattr(model_lists, limit, 60.0)
    async with ModelLists() as opened:
        yield opened


def provider(listing: ListingProvider, kind: str = "openai", name: str = "acme", path: str = "/v1") -> Provider:
    return Provider(name=name, kind=kind, base_url=f"{listing.url}{path}", api_key=KEY)


def names(found: list[dict[str, Any]]) -> list[str]:
    return [model["id"] for model in found]


async def test_a_list_is_asked_for_with_the_key_and_sorted(lists: ModelLists, listing: ListingProvider) -> None:
    listing.answers["/v1/models"] = {"data": [{"id": "b"}, {"id": "a"}, {"id": "b"}]}
    assert names(await lists.ask(provider(listing))) == ["a", "b"]
    (asked,) = listing.asked
    assert asked.headers["authorization"] == f"Bearer {KEY}"
    assert asked.headers["accept-encoding"] == "identity"


async def test_pages_are_put_together(lists: ModelLists, listing: ListingProvider) -> None:
    listing.answers["/v1/models?limit=1000"] = {"data": [{"id": "a"}], "has_more": True, "last_id": "a"}
    listing.answers["/v1/models?limit=1000&after_id=a"] = {"data": [{"id": "b"}], "has_more": False}
    assert names(await lists.ask(provider(listing, "anthropic"))) == ["a", "b"]


async def test_pages_without_end_are_not_followed_for_ever(lists: ModelLists, listing: ListingProvider) -> None:
    listing.answers["/v1/models"] = {"models": [{"name": "a"}], "nextPageToken": "again"}
    assert names(await lists.ask(provider(listing, "gemini"))) == ["a"]
    assert len(listing.asked) == model_lists._MAX_PAGES


async def test_lm_studio_with_and_without_its_own_list(lists: ModelLists, listing: ListingProvider) -> None:
    asked = provider(listing, name="lmstudio")
    listing.answers["/v1/models"] = {"data": [{"id": "old"}]}
    assert names(await lists.ask(asked)) == ["old"]
    listing.answers["/api/v0/models"] = {"error": "Unexpected endpoint or method."}
    assert names(await lists.ask(asked)) == ["old"], "that is what it answers to a path it does not know, with 200"
    listing.answers["/api/v0/models"] = {"data": [{"id": "new", "max_context_length": 7}]}
    assert [model["context_length"] for model in await lists.ask(asked)] == [7]


async def test_ollamas_details(lists: ModelLists, listing: ListingProvider) -> None:
    def show(body: Any) -> Any:
        if body["model"] == "broken":
            return b"{"
        if body["model"] == "embed":
            return {"capabilities": ["embedding"]}
        info = {"general.architecture": "g", "g.context_length": len(body["model"])}
        return {"capabilities": ["completion", "tools"], "model_info": info}

    listing.answers["/api/tags"] = {"models": [{"model": name} for name in ("abc", "broken", "embed", "abcdef")]}
    listing.answers["/api/show"] = show
    found = await lists.ask(provider(listing, "ollama", path="/api"))
    assert [(model["id"], model.get("context_length")) for model in found] == [
        ("abc", 3),
        ("abcdef", 6),
        ("broken", None),
    ]
    assert found[0]["supported_parameters"] == ["tools", "tool_choice"]


@pytest.mark.parametrize("status", [404, 405, 501])
async def test_a_provider_without_a_list_has_an_empty_one(
    lists: ModelLists, listing: ListingProvider, status: int
) -> None:
    listing.answers["/v1/models"], listing.status = {}, status
    assert await lists.ask(provider(listing)) == []


@pytest.mark.parametrize(
    ("answer", "status", "kind", "told"),
    [
        ({"error": {"message": "no"}}, 401, UpstreamError, 401),
        ({"error": {"message": "no"}}, 503, UpstreamError, 503),
        (b"<html>", 200, UpstreamInvalid, 502),
        ({"data": "nothing"}, 200, UpstreamInvalid, 502),
        (b"[" * 100, 200, UpstreamInvalid, 502),
    ],
)
async def test_what_is_no_list_is_an_error(
    lists: ModelLists, listing: ListingProvider, answer: Any, status: int, kind: type[UpstreamError], told: int
) -> None:
    listing.answers["/v1/models"], listing.status = answer, status
    with pytest.raises(kind) as caught:
        await lists.ask(provider(listing))
    assert caught.value.provider_status == told


async def test_a_list_without_measure_is_not_read(
    lists: ModelLists, listing: ListingProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_lists, "_MAX_BYTES", 1000)
    listing.answers["/v1/models"] = json.dumps({"data": [{"id": "a", "x": "y" * 2000}]}).encode()
    with pytest.raises(UpstreamInvalid):
        await lists.ask(provider(listing))


async def test_a_redirect_is_not_followed_with_the_key(lists: ModelLists, listing: ListingProvider) -> None:
    with ListingProvider({"/v1/models": {"data": []}}) as elsewhere:
        listing.answers["/v1/models"], listing.status = {}, 302
        listing.headers = {"location": f"{elsewhere.url}/v1/models"}
        with pytest.raises(UpstreamError) as caught:
            await lists.ask(provider(listing))
        assert caught.value.code == "upstream_redirect"
        assert elsewhere.asked == []


async def test_who_says_nothing_is_given_up(
    lists: ModelLists, listing: ListingProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_lists, "LIST_S", 0.1)
    listing.heard.clear()
    with pytest.raises(UpstreamTimeout):
        await lists.ask(provider(listing))


async def test_nobody_there(lists: ModelLists) -> None:
    with ListingProvider() as gone:
        pass
    with pytest.raises(UpstreamError) as caught:
        await lists.ask(provider(gone))
    assert caught.value.code == "upstream_connect_error"
    assert "127.0.0.1" not in caught.value.message
