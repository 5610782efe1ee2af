"""What an answer cost, decided once: before its outcome is sealed, so that the outcome says it and no later price changes it.

Hidden here: the order of sources. The provider's own figure, else the operator's `[prices]`, else the package `genai-prices`
where it is installed (the extra `cost`), else it is unknown. Unknown is never 0: what is added up says how many it lacks.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from typing import Any, NamedTuple

from shared.config.prices import PriceConfig, find
from shared.config.providers import ProviderConfig
from shared.errors import StreamspoolError, UpstreamError, UpstreamRefused
from shared.lib import json, money
from shared.lib.telemetry import get_logger
from shared.log.records import Cost, Header, Outcome

logger = get_logger(__name__)

NO_COST: Cost = {"picodollars": 0, "source": "nothing"}
"""Of what no provider took."""
_MILLION = 1_000_000
_TICKS_PER_DOLLAR = 10_000_000_000
_MOST_WARNED = _MOST_UNLISTED = 1000

Catalogue = Callable[[dict[str, str], "Tokens", datetime, str | None], Cost | None]
"""A list of prices: the cost of so many tokens of a model (`_where`) at a time, in a service tier; None where that cannot be
told. Raises LookupError for a model that it has not."""


class Tokens(NamedTuple):
    """Of one answer. Each figure but the first two is part of one of these."""

    prompt: int
    answer: int
    cached: int = 0
    cache_write: int = 0
    reasoning: int = 0
    input_audio: int = 0
    output_audio: int = 0


def tokens_of(usage: Mapping[str, Any]) -> Tokens:
    """From a usage object in OpenAI's form. A part is never more than the whole that is left for it."""
    asked, said = _inside(usage, "prompt_tokens_details"), _inside(usage, "completion_tokens_details")
    prompt, answer = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
    cached = min(_count(asked, "cached_tokens"), prompt)
    written = _count(asked, "cache_write_tokens") or _count(usage, "cache_creation_input_tokens")
    written = min(written, prompt - cached)
    reasoning = min(_count(said, "reasoning_tokens"), answer)
    heard = min(_count(asked, "audio_tokens"), prompt - cached - written)
    spoken = min(_count(said, "audio_tokens"), answer - reasoning)
    return Tokens(prompt, answer, cached, written, reasoning, heard, spoken)


def providers_own(usage: Mapping[str, Any]) -> int | None:
    """What the provider says that the answer cost, in pico-dollars; None if it does not say.

    OpenRouter's `cost` is what its account is charged; with a key of one's own at the vendor (`is_byok`) the vendor's bill
    comes on top (openrouter.ai/docs, "Usage accounting"). Perplexity's `cost` is an object with a `total_cost`, xAI's
    `cost_in_usd_ticks` counts ten-billionths of a dollar, DeepInfra says `estimated_cost`.
    """
    cost = usage.get("cost")
    if isinstance(cost, dict):
        return money.from_dollars(cost.get("total_cost"))
    ticks = usage.get("cost_in_usd_ticks")
    if isinstance(ticks, int) and not isinstance(ticks, bool):
        return money.from_dollars(Decimal(ticks) / _TICKS_PER_DOLLAR)
    said = usage.get("estimated_cost") if cost is None else cost
    told = None if said is None else money.from_dollars(said)
    if told is not None and usage.get("is_byok"):
        vendors = money.from_dollars(_inside(usage, "cost_details").get("upstream_inference_cost"))
        return None if vendors is None else told + vendors
    return told


def by_price(config: PriceConfig, tokens: Tokens) -> int | None:
    """Pico-dollars by a price of the operator's; None: more than any answer costs, so the figures are wrong."""
    price = config.at(tokens.prompt)
    plain_prompt = tokens.prompt - tokens.cached - tokens.cache_write - tokens.input_audio
    plain_answer = tokens.answer - tokens.reasoning - tokens.output_audio
    parts = (
        (plain_prompt, price.input),
        (tokens.cached, _either(price.cached, price.input)),
        (tokens.cache_write, _either(price.cache_write, price.input)),
        (tokens.input_audio, _either(price.input_audio, price.input)),
        (plain_answer, price.output),
        (tokens.reasoning, _either(price.reasoning, price.output)),
        (tokens.output_audio, _either(price.output_audio, price.output)),
    )
    total = sum((number * each for number, each in parts), Decimal(0)) / _MILLION + price.request
    return money.from_dollars(total)


class Prices:
    """One for each process."""

    def __init__(self, own: Mapping[str, PriceConfig], providers: Mapping[str, ProviderConfig]) -> None:
        """`own` is `[prices]`, `providers` are those of streamspool.toml, whose names say nothing of whose prices hold."""
        self._own, self._providers = own, providers
        table = {name: price.parts() for name, price in sorted(own.items())}
        self._version = hashlib.sha256(json.dumps(table)).hexdigest()[:12]
        self._catalogue: Catalogue | None = None
        self._is_loaded = False
        self._unlisted: set[str] = set()
        """Models that the list has not, which is loaded once: with them it takes more than all else at the end of an answer."""
        self._warned: set[str] = set()

    async def load(self) -> None:
        """Loads `genai-prices` where it is installed, in a thread: it takes half a second. Without this the first cost does."""
        if not self._is_loaded:
            self._catalogue = await asyncio.to_thread(_genai_prices)
            self._is_loaded = True

    async def cost(self, header: Header, outcome: Outcome, *, asked: bool, tier: str | None = None) -> Cost:
        """Of a generation that is about to be sealed. `asked` is whether a provider took the request: one that refused it, or
        could not be reached, bills nothing. `tier` is the service tier in which it says that it answered."""
        if not asked:
            return NO_COST
        if outcome.get("usage_source") == "provider" and (told := providers_own(outcome["usage"])) is not None:
            return {"picodollars": told, "source": "provider"}
        model = (outcome.get("served") or {}).get("model") or header["model"]
        if price := find(self._own, model):
            tokens = tokens_of(outcome["usage"] or {})
            amount, held = by_price(price, tokens), price.at(tokens.prompt).parts()
            return {"picodollars": amount, "source": "settings", "version": self._version, "price": held}
        at = datetime.fromtimestamp(header["created_at_ms"] / 1000, UTC)
        if found := await self._listed(model, lambda: tokens_of(outcome["usage"] or {}), at, tier):
            return found
        if model not in self._warned and len(self._warned) < _MOST_WARNED and not model.startswith("fake/"):
            self._warned.add(model)
            or_the_list = "" if self._catalogue else ", or install the extra `cost`"
            logger.warning("price unknown", model=model, hint=f'set [prices."{model}"]{or_the_list}')
        return {"picodollars": None, "source": "unknown"}

    async def estimate(self, model: str, prompt: int, answer: int, tier: str | None = None) -> int | None:
        """What so many tokens of a model may cost, in pico-dollars; None: not known."""
        tokens = Tokens(prompt, answer)
        if price := find(self._own, model):
            amount = by_price(price, tokens)
            return money.MOST if amount is None else amount
        found = await self._listed(model, lambda: tokens, datetime.now(UTC), tier)
        return found["picodollars"] if found else None

    async def _listed(self, model: str, tokens: Callable[[], Tokens], at: datetime, tier: str | None) -> Cost | None:
        """By the list; None where that has none."""
        if not self._is_loaded:
            await self.load()
        if self._catalogue is None or model in self._unlisted:
            return None
        try:
            return self._catalogue(_where(model, self._providers), tokens(), at, tier)
        except LookupError:
            if len(self._unlisted) >= _MOST_UNLISTED:
                self._unlisted.clear()
            self._unlisted.add(model)
            return None


def was_taken(error: StreamspoolError | None) -> bool:
    """Whether a provider may have begun to answer, though no chunk came: then it may bill for it, too."""
    if error is None:
        return True
    refused = isinstance(error, UpstreamRefused) or error.code == "upstream_connect_timeout"
    return isinstance(error, UpstreamError) and not refused


def _genai_prices() -> Catalogue | None:
    try:
        import genai_prices
        from genai_prices import data_snapshot
    except ImportError:
        return None
    data_snapshot.get_snapshot()
    return partial(_by_genai_prices, genai_prices)


def _by_genai_prices(
    package: Any, where: dict[str, str], tokens: Tokens, at: datetime, tier: str | None
) -> Cost | None:
    """The package knows what a tier costs where the vendor has a price for it; else it is the ordinary one."""
    context = {"service_tier": tier} if tier else None
    figures = {
        "input_tokens": tokens.prompt,
        "output_tokens": tokens.answer,
        "cache_read_tokens": tokens.cached,
        "cache_write_tokens": tokens.cache_write,
    }
    audio = {"input_audio_tokens": tokens.input_audio, "output_audio_tokens": tokens.output_audio}
    for more in (audio, {}):  # where audio may have been cached, the package wants to know how much of it was
        given = {key: number for key, number in {**figures, **more}.items() if number}
        try:
            found = package.calc_price(
                package.Usage(**given), genai_request_timestamp=at, price_context=context, **where
            )
        except ValueError:
            continue
        return {
            "picodollars": money.from_dollars(found.total_price),
            "source": "genai-prices",
            "version": str(package.__version__),
            "price": {
                "model": f"{found.provider.id}/{found.model.id}",
                **(context or {}),
                **{key: _price(value) for key, value in vars(found.model_price).items() if value is not None},
            },
        }
    return None


def _where(model: str, providers: Mapping[str, ProviderConfig]) -> dict[str, str]:
    """The model and its provider as the package is asked for them. It finds `xai` as `x-ai` by itself; but a provider with a
    name of the operator's is the vendor that its table names, or whose address it has, and behind Hugging Face's router it
    is the model's ending: `…/model:novita`."""
    provider, _, name = model.partition("/")
    if config := providers.get(provider):
        if config.vendor is None:
            return {"model_ref": name, "provider_api_url": config.base_url}
        provider = config.vendor
    if provider == "huggingface" and ":" in name:
        name, _, behind = name.rpartition(":")
        provider = f"huggingface_{behind}"
    return {"model_ref": name, "provider_id": provider}


def _price(value: Any) -> str:
    """A price, or one that changes with the length of the prompt: `1.25; from 200000: 2.5`."""
    if not hasattr(value, "tiers"):
        return str(value)
    return "; ".join([str(value.base), *(f"from {tier.start}: {tier.price}" for tier in value.tiers)])


def _either(price: Decimal | None, other: Decimal) -> Decimal:
    return other if price is None else price


def _inside(usage: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = usage.get(name)
    return found if isinstance(found, dict) else {}


def _count(usage: Mapping[str, Any], name: str) -> int:
    """A provider may send anything."""
    value = usage.get(name)
    return int(value) if isinstance(value, int | float) and 0 < value < 2**53 else 0
