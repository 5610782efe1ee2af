"""What an answer cost: which source is believed, and that the sums are those of the list of prices."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import genai_prices
import pytest
from pydantic import ValidationError

from shared.config.prices import PriceConfig
from shared.config.providers import ProviderConfig
from shared.features.spend.prices import Prices, Tokens, by_price, providers_own, tokens_of
from shared.lib import money
from shared.log.records import Cost
from tests.harness.records import header_with, outcome_with
from worker.providers import usage as worker_usage
from worker.providers.formats import anthropic

AT_MS = 1_795_340_527_304

OPENAI = {
    "prompt_tokens": 120_000,
    "completion_tokens": 3_333,
    "total_tokens": 123_333,
    "prompt_tokens_details": {"cached_tokens": 77_777},
    "completion_tokens_details": {"reasoning_tokens": 1_111},
}
ANTHROPIC = {
    "input_tokens": 4_321,
    "cache_creation_input_tokens": 1_000,
    "cache_read_input_tokens": 80_000,
    "output_tokens": 777,
}
DEEPSEEK = {
    "prompt_tokens": 5_000,
    "completion_tokens": 700,
    "total_tokens": 5_700,
    "prompt_cache_hit_tokens": 4_096,
    "prompt_cache_miss_tokens": 904,
    "prompt_tokens_details": {"cached_tokens": 4_096},
}
XAI = {**OPENAI, "total_tokens": 124_444}
"""It counts reasoning beside the answer."""
MODELS = [
    ("openai/gpt-4o", "openai", "chat", OPENAI),
    ("openai/gpt-4o-mini", "openai", "chat", OPENAI),
    ("openai/gpt-4.1", "openai", "chat", OPENAI),
    ("openai/o3-mini", "openai", "chat", OPENAI),
    ("openai/o4-mini", "openai", "chat", OPENAI),
    ("azure/phi-4", "azure", "chat", OPENAI),
    ("anthropic/claude-sonnet-4-5", "anthropic", "default", ANTHROPIC),
    ("anthropic/claude-opus-4-5", "anthropic", "default", ANTHROPIC),
    ("anthropic/claude-sonnet-5", "anthropic", "default", ANTHROPIC),
    ("gemini/gemini-2.5-pro", "google", "chat", OPENAI),
    ("gemini/gemini-2.5-flash", "google", "chat", OPENAI),
    ("deepseek/deepseek-chat", "deepseek", "chat", DEEPSEEK),
    ("deepseek/deepseek-v4-pro", "deepseek", "chat", DEEPSEEK),
    ("xai/grok-4.20", "x-ai", "chat", XAI),
    ("groq/openai/gpt-oss-120b", "groq", "default", OPENAI),
    ("cerebras/gpt-oss-120b", "cerebras", "chat", OPENAI),
    ("fireworks/accounts/fireworks/models/minimax-m3", "fireworks", "chat", OPENAI),
    ("moonshot/kimi-k2.6", "moonshotai", "chat", OPENAI),
    ("zai/GLM-4.7", "zai", "chat", OPENAI),
    ("openrouter/openai/gpt-4o", "openrouter", "chat", OPENAI),
    ("minimax/MiniMax-M2.7", "minimax", "chat", OPENAI),
]
"""Ours, the package's provider and the flavour of its API, and the usage as that provider tells it."""


def test_twenty_models_are_in_the_list() -> None:
    assert len({ours for ours, *_ in MODELS}) >= 20


@pytest.mark.parametrize(("ours", "provider", "flavour", "told"), MODELS, ids=[row[0] for row in MODELS])
async def test_a_price_is_the_packages_own(ours: str, provider: str, flavour: str, told: dict[str, Any]) -> None:
    """It reads the provider's own figures by itself here: neither the sums nor the way of the figures is ours."""
    name = ours.partition("/")[2]
    extracted = genai_prices.extract_usage({"model": name, "usage": told}, provider_id=provider, api_flavor=flavour)
    at = datetime.fromtimestamp(AT_MS / 1000, UTC)
    theirs = genai_prices.calc_price(extracted.usage, name, provider_id=provider, genai_request_timestamp=at)
    usage = anthropic._usage(told) if told is ANTHROPIC else worker_usage.in_openais_form(told)
    cost = await cost_of(ours, usage)
    assert cost["source"] == "genai-prices"
    assert cost["version"] == genai_prices.__version__
    assert theirs.total_price > 0
    assert cost["picodollars"] == money.from_dollars(theirs.total_price)
    assert cost["price"]["model"] == f"{theirs.provider.id}/{theirs.model.id}"


async def cost_of(model: str, usage: dict[str, Any], **options: Any) -> Cost:
    own, providers, tier = options.pop("own", {}), options.pop("providers", {}), options.pop("tier", None)
    outcome = outcome_with({"usage": usage, "usage_source": "provider", "served": {"model": model}, **options})
    header = header_with({"model": "smart", "created_at_ms": AT_MS})
    return await Prices(own, providers).cost(header, outcome, asked=True, tier=tier)


@pytest.mark.parametrize(
    ("tier", "times"), [("flex", Decimal("0.5")), ("priority", 2), ("default", 1), ("auto", 1), ("scale", 1), (None, 1)]
)
async def test_a_service_tier_costs_what_the_package_has_for_it(tier: str | None, times: Decimal) -> None:
    usage = {"prompt_tokens": 1000, "completion_tokens": 500, "prompt_tokens_details": {"cached_tokens": 100}}
    plain, cost = await cost_of("openai/gpt-5", usage), await cost_of("openai/gpt-5", usage, tier=tier)
    assert plain["picodollars"]
    assert cost["picodollars"] == plain["picodollars"] * times
    assert cost["price"].get("service_tier") == tier
    theirs = genai_prices.calc_price(
        genai_prices.Usage(input_tokens=1000, output_tokens=500, cache_read_tokens=100),
        "gpt-5",
        provider_id="openai",
        genai_request_timestamp=datetime.fromtimestamp(AT_MS / 1000, UTC),
        price_context={"service_tier": tier} if tier else None,
    )
    assert cost["picodollars"] == money.from_dollars(theirs.total_price)
    estimate = await Prices({}, {}).estimate("openai/gpt-5", 1000, 500, tier)
    assert estimate == await Prices({}, {}).estimate("openai/gpt-5", 1000, 500) * times  # type: ignore[operator]


async def test_a_price_of_ones_own_is_for_every_tier() -> None:
    own = {"openai/gpt-5": PriceConfig.model_validate({"input": 1, "output": 1})}
    for tier in (None, "flex", "priority"):
        cost = await cost_of("openai/gpt-5", OPENAI, own=own, tier=tier)
        assert cost == await cost_of("openai/gpt-5", OPENAI, own=own)


# ---- the provider's own figure


@pytest.mark.parametrize(
    ("usage", "dollars"),
    [
        ({"cost": 0.0145476, "is_byok": False}, "0.0145476"),  # OpenRouter
        ({"cost": 0, "is_byok": False}, "0"),  # OpenRouter, a free model
        ({"cost": 0.0001, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.02}}, "0.0201"),
        ({"cost_in_usd_ticks": 1_234_567}, "0.0001234567"),  # xAI
        ({"cost": {"input_tokens_cost": 0.1, "total_cost": 0.006}}, "0.006"),  # Perplexity
        ({"estimated_cost": 2.5e-06}, "0.0000025"),  # DeepInfra
        ({"cost": "0.25"}, "0.25"),
    ],
)
async def test_the_providers_own_figure_comes_first(usage: dict[str, Any], dollars: str) -> None:
    own = {"gpt-4o": PriceConfig.model_validate({"input": 100, "output": 100})}
    cost = await cost_of("openai/gpt-4o", {**OPENAI, **usage}, own=own)
    assert cost == {"picodollars": money.from_dollars(dollars), "source": "provider"}


@pytest.mark.parametrize(
    "usage",
    [
        {},
        {"cost": None},
        {"cost": -1},
        {"cost": "free"},
        {"cost": True},
        {"cost": {}},
        {"cost": float("inf")},
        {"cost_in_usd_ticks": "9"},
        {"cost": 0, "is_byok": True, "cost_details": {"upstream_inference_cost": None}},
        {"cost": 0, "is_byok": True},
    ],
)
def test_what_is_no_figure_is_none(usage: dict[str, Any]) -> None:
    assert providers_own(usage) is None


async def test_a_figure_that_is_not_the_providers_is_not_believed() -> None:
    cost = await cost_of("x/unheard-of", {**OPENAI, "cost": 1}, usage_source="estimate")
    assert cost == {"picodollars": None, "source": "unknown"}


# ---- the operator's prices


async def test_the_operators_price_comes_before_the_list() -> None:
    own = {
        "openai/gpt-4o": PriceConfig.model_validate({"input": 0.1, "cached": 0.003625, "output": 0.7, "reasoning": 7})
    }
    cost = await cost_of("openai/gpt-4o", OPENAI, own=own)
    plain, said = 120_000 - 77_777, 3_333 - 1_111
    exact = Decimal(plain) * Decimal("0.1") + 77_777 * Decimal("0.003625") + said * Decimal("0.7") + 1_111 * 7
    assert cost["picodollars"] == exact * 1_000_000  # dollars for a million are millions of pico-dollars for one
    assert (cost["source"], cost["price"]) == (
        "settings",
        {"input": "0.1", "output": "0.7", "cached": "0.003625", "reasoning": "7", "request": "0"},
    )
    again = await cost_of("openai/gpt-4o", OPENAI, own=own)
    own["other"] = own["openai/gpt-4o"]
    later = await cost_of("openai/gpt-4o", OPENAI, own=own)
    assert again["version"] == cost["version"] != later["version"]


@pytest.mark.parametrize("key", ["ollama/llama3", "llama3", "ollama/*", "*/llama?", "*"])
async def test_how_a_price_is_found(key: str) -> None:
    free = {
        "other/*": PriceConfig.model_validate({"input": 9}),
        key: PriceConfig.model_validate({"input": 0, "output": 0}),
    }
    cost = await cost_of("ollama/llama3", OPENAI, own=free)
    assert (cost["picodollars"], cost["source"]) == (0, "settings")


def test_every_kind_of_token_has_its_price() -> None:
    tokens = Tokens(prompt=100, answer=50, cached=10, cache_write=20, reasoning=5, input_audio=30, output_audio=7)
    plain = PriceConfig.model_validate({"input": 1, "output": 2})
    assert by_price(plain, tokens) == (100 * 1 + 50 * 2) * 10**6
    kinds = {"cached": 3, "cache_write": 5, "reasoning": 7, "input_audio": 11, "output_audio": 13, "request": "0.5"}
    every = PriceConfig.model_validate({"input": 1, "output": 2, **kinds})
    said = 40 * 1 + 10 * 3 + 20 * 5 + 30 * 11 + 38 * 2 + 5 * 7 + 7 * 13
    assert by_price(every, tokens) == said * 10**6 + money.PER_DOLLAR // 2


def test_parts_are_never_more_than_the_whole() -> None:
    odd = {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 50, "audio_tokens": 50, "cache_write_tokens": 50},
        "completion_tokens_details": {"reasoning_tokens": 50, "audio_tokens": 50},
    }
    assert tokens_of(odd) == Tokens(10, 5, cached=10, reasoning=5)
    assert tokens_of({"prompt_tokens": "x", "prompt_tokens_details": [], "completion_tokens": -3}) == Tokens(0, 0)


def test_a_longer_prompt_has_another_price() -> None:
    price = PriceConfig.model_validate(
        {
            "input": 1,
            "output": 10,
            "cached": 0.1,
            "above": [{"tokens": 1_000_000, "input": 9}, {"tokens": 200_000, "input": 2, "output": 15}],
        }
    )
    for prompt, each, said, cached in ((200_000, 1, 10, "0.1"), (200_001, 2, 15, "0.1"), (1_000_001, 9, 10, "0.1")):
        tokens = Tokens(prompt=prompt, answer=1000, cached=50_000)
        exact = (prompt - 50_000) * each + 50_000 * Decimal(cached) + 1000 * said
        assert by_price(price, tokens) == exact * 10**6, prompt
    assert price.at(200_001).parts() == {"input": "2", "output": "15", "cached": "0.1", "request": "0"}
    assert "tokens=200000 input=2 output=15" in price.parts()["above"]


LONG: dict[str, dict[str, Any]] = {
    "openai/gpt-5.4": {
        "prompt_tokens": 300_000,
        "completion_tokens": 1000,
        "prompt_tokens_details": {"cached_tokens": 9},
    },
    "openai/gpt-6-luna": {"prompt_tokens": 400_000, "completion_tokens": 1000},
    "gemini/gemini-2.5-pro": {"prompt_tokens": 250_000, "completion_tokens": 1000},
    "anthropic/claude-sonnet-4-5": {"prompt_tokens": 250_000, "completion_tokens": 1000},
}
"""Their prices have tiers in the list."""


@pytest.mark.parametrize("model", sorted(LONG))
async def test_the_lists_tiers_hold_for_long_prompts(model: str) -> None:
    provider, _, name = model.partition("/")
    told = LONG[model]
    cached = told.get("prompt_tokens_details", {}).get("cached_tokens", 0)
    usage = genai_prices.Usage(
        input_tokens=told["prompt_tokens"], output_tokens=1000, **({"cache_read_tokens": cached} if cached else {})
    )
    at = datetime.fromtimestamp(AT_MS / 1000, UTC)
    vendor = {"gemini": "google"}.get(provider, provider)
    theirs = genai_prices.calc_price(usage, name, provider_id=vendor, genai_request_timestamp=at)
    cost, short = await cost_of(model, told), await cost_of(model, {**told, "prompt_tokens": 1000})
    assert cost["picodollars"] == money.from_dollars(theirs.total_price)
    assert cost["picodollars"]
    assert short["picodollars"]
    assert "from " in cost["price"]["input_mtok"]
    each = (cost["picodollars"] - short["picodollars"]) / (told["prompt_tokens"] - 1000)
    base = float(cost["price"]["input_mtok"].partition(";")[0]) * 1_000_000
    assert each > base * 1.4, "all of a long prompt costs more"


@pytest.mark.parametrize(
    "wrong",
    [
        {"input": 1, "above": [{"input": 2}]},
        {"input": 1, "above": [{"tokens": 0}]},
        {"input": -1},
        {"input": "x"},
        {},
        {"input": 1, "inptu": 2},
        {"input": float("inf")},
    ],
)
def test_what_is_no_price(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        PriceConfig.model_validate(wrong)


# ---- unknown


async def test_more_than_any_answer_costs_is_no_cost() -> None:
    """A provider may say anything of its tokens. It is neither a million dollars nor nothing."""
    own = {"openai/gpt-4o": PriceConfig.model_validate({"input": 1000, "output": 1})}
    cost = await cost_of("openai/gpt-4o", {"prompt_tokens": 10**15, "completion_tokens": 1}, own=own)
    assert (cost["picodollars"], cost["source"]) == (None, "settings")
    assert await Prices(own, {}).estimate("openai/gpt-4o", 10**15, 1) == money.MOST


async def test_unknown_is_not_nothing() -> None:
    assert await cost_of("x/unheard-of", OPENAI) == {"picodollars": None, "source": "unknown"}
    assert await cost_of("fake/echo", OPENAI) == {"picodollars": None, "source": "unknown"}


async def test_without_the_package_it_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "genai_prices", None)
    assert await cost_of("openai/gpt-4o", OPENAI) == {"picodollars": None, "source": "unknown"}


async def test_what_no_provider_took_cost_nothing() -> None:
    outcome = outcome_with({"usage": OPENAI, "usage_source": "estimate"})
    cost = await Prices({}, {}).cost(
        header_with({"model": "openai/gpt-4o", "created_at_ms": AT_MS}), outcome, asked=False
    )
    assert cost == {"picodollars": 0, "source": "nothing"}


async def test_a_provider_with_a_name_of_ones_own_is_known_by_its_vendor_or_address() -> None:
    named = {
        "lab": ProviderConfig(base_url="https://gateway.example.com/v1", vendor="openai"),
        "eu": ProviderConfig(base_url="https://api.openai.com/v1"),
        "openai-like": ProviderConfig(base_url="http://127.0.0.1:9/v1"),
    }
    real = await cost_of("openai/gpt-4o", OPENAI)
    assert await cost_of("lab/gpt-4o", OPENAI, providers=named) == real
    assert await cost_of("eu/gpt-4o", OPENAI, providers=named) == real
    assert (await cost_of("openai-like/gpt-4o", OPENAI, providers=named))["source"] == "unknown"


async def test_audio_that_may_have_been_cached_is_priced_as_text_is() -> None:
    heard = {**OPENAI, "prompt_tokens_details": {"cached_tokens": 100, "audio_tokens": 50}}
    assert (await cost_of("openai/gpt-4o", heard))["source"] == "genai-prices"
