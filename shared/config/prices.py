"""`[prices]` of streamspool.toml: what models cost, where the operator says so.

Hidden here: how a model's price is found: by `provider/model`, then by the model's name at any provider, then by the first
pattern that fits, `ollama/*`.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from fnmatch import fnmatchcase
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field

_PATTERN = "*?["


def _as_written(value: object) -> object:
    """TOML's 0.1 is a tenth, and not the binary fraction nearest to it."""
    return str(value) if isinstance(value, float) else value


Price = Annotated[Decimal, BeforeValidator(_as_written), Field(ge=0, le=1_000_000, allow_inf_nan=False)]


class TierConfig(BaseModel):
    """What changes with a longer prompt. All tokens cost it then, and not only those above, as providers have it."""

    model_config = {"extra": "forbid", "hide_input_in_errors": True}

    tokens: int = Field(ge=1, le=2**40, description="of the prompt; with more than these")
    input: Price | None = None
    output: Price | None = None
    cached: Price | None = None
    cache_write: Price | None = None
    reasoning: Price | None = None
    input_audio: Price | None = None
    output_audio: Price | None = None
    request: Price | None = None


class PriceConfig(BaseModel):
    """One `[prices."MODEL"]` table: US dollars for a million tokens. Those without a price of their own cost what `input` or
    `output` does."""

    model_config = {"extra": "forbid", "hide_input_in_errors": True}

    input: Price = Field(description="tokens of the prompt")
    output: Price = Field(Decimal(0), description="tokens of the answer")
    cached: Price | None = Field(None, description="those of the prompt that the provider had cached")
    cache_write: Price | None = Field(None, description="those that it put into its cache")
    reasoning: Price | None = Field(None, description="those of the answer that are reasoning")
    input_audio: Price | None = Field(None, description="those of the prompt that are audio")
    output_audio: Price | None = Field(None, description="those of the answer that are audio")
    request: Price = Field(Decimal(0), description="dollars for the request itself, not for a million")

    above: list[TierConfig] = Field(default_factory=list, max_length=20, description="what longer prompts cost")

    def at(self, prompt_tokens: int) -> PriceConfig:
        """The price that holds for a prompt of so many tokens: that of the highest tier that it is above. What a tier does not
        say is as without it."""
        reached = [tier for tier in self.above if prompt_tokens > tier.tokens]
        if not reached:
            return self.model_copy(update={"above": []})
        tier = max(reached, key=lambda one: one.tokens)
        changed = {name: value for name, value in tier if name != "tokens" and value is not None}
        return self.model_copy(update={**changed, "above": []})

    def parts(self) -> dict[str, str]:
        """What was given, as it is kept with a cost."""
        told = {name: str(value) for name, value in self if value is not None and name != "above"}
        tiers = [" ".join(f"{name}={value}" for name, value in tier if value is not None) for tier in self.above]
        return {**told, **({"above": "; ".join(tiers)} if tiers else {})}


def _pairs(value: object) -> object:
    """`day_usd=10 month_usd=200`, as a tenant's budget is written in the environment."""
    if not isinstance(value, str):
        return value
    pairs = [part.partition("=") for part in value.split()]
    if not pairs or not all(sign and dollars for _, sign, dollars in pairs):
        raise ValueError("a budget looks like `day_usd=10 month_usd=200`")
    return {name: dollars for name, _, dollars in pairs}


BudgetName = Literal["day_usd", "month_usd", "soft_day_usd", "soft_month_usd"]
Budget = Annotated[dict[BudgetName, Price], BeforeValidator(_pairs)]
"""What may be spent in a day and in a month, in dollars; at a `soft_` one somebody is only told."""


def find(prices: Mapping[str, PriceConfig], model: str) -> PriceConfig | None:
    """`model` is `provider/model`, as outcomes name it."""
    _, _, name = model.partition("/")
    for exact in (model, name):
        if found := prices.get(exact):
            return found
    return next(
        (price for key, price in prices.items() if any(sign in key for sign in _PATTERN) and fnmatchcase(model, key)),
        None,
    )
