"""Providers in the settings: `[providers.NAME]` and `[models]` of streamspool.toml, and the model that runs on this machine.

Hidden here: what a provider and a name of one's own for a model may be called. What a provider is to a worker:
worker/providers/registry.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, Field, field_validator

from shared.config.formats import WIRE_FORMATS

MODEL = "smollm2-135m-instruct"
"""As the server calls it."""

NAME = f"local/{MODEL}"
"""As clients ask for it: the name of the vendor's row, and the model's."""

BASE_URL_VARIABLE = "LOCAL_MODEL_BASE_URL"
KEY_VARIABLE = "LOCAL_MODEL_API_KEY"

_ALIAS = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}")
_PROVIDER = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")

if TYPE_CHECKING:
    ProviderKind = str
else:
    ProviderKind = Literal[tuple(WIRE_FORMATS)]
"""The wire format a provider speaks."""


class ProviderConfig(BaseModel):
    """One `[providers.NAME]` table of streamspool.toml. The key itself is never in the file, only its variable's name."""

    model_config = {"extra": "forbid", "hide_input_in_errors": True}

    kind: ProviderKind = Field("openai", description="wire format the provider speaks")
    base_url: str = Field(description="up to and including the version, e.g. https://api.example.com/v1")
    api_key_env: str | None = Field(None, description="environment variable that holds the key")
    vendor: str | None = Field(
        None,
        description="the known vendor whose rules for requests hold, e.g. mistral; empty: the one of the table's name",
    )
    message_fields: list[str] = Field(
        default_factory=list, description="fields of earlier answers that it wants back though OpenAI has none such"
    )
    models: list[str] = Field(default_factory=list, description="models listed by GET /v1/models; others work too")
    limit_field: Literal["max_tokens", "max_completion_tokens"] | None = Field(
        None, description="the only name of the token limit it knows; empty: the client's own is passed on"
    )
    think_tags: bool = Field(False, description="`<think>…</think>` at the start of an answer is reasoning")
    prefill: bool = Field(False, description="it goes on with an assistant message at the end of the request")

    @field_validator("base_url")
    @classmethod
    def _http(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError("base_url must start with http:// or https://")
        return value.rstrip("/")


def check_names(names: Iterable[str]) -> None:
    """Of `[providers.NAME]`. Raises ValueError."""
    for name in names:
        if not _PROVIDER.fullmatch(name) or name == "fake":
            raise ValueError(
                f"provider name {name!r} must be lower-case letters, digits, `_`, `.`, `-`, and not `fake`"
            )


def check_models(models: Mapping[str, list[str]]) -> None:
    """Of `[models]`: names without a slash, each for one or several `provider/model`. Raises ValueError."""
    for name, targets in models.items():
        if not _ALIAS.fullmatch(name):
            raise ValueError(f"model name {name!r} must be letters, digits, `_`, `.`, `:` or `-`, without a slash")
        if not targets or any("/" not in target.strip("/") for target in targets):
            raise ValueError(f"[models] {name} must list models as `provider/model`")


def check_patterns(patterns: Iterable[str]) -> None:
    """Of models, as clients name them: `provider/model`, with `*`, `?` and `[…]`. Raises ValueError."""
    for pattern in patterns:
        if "/" not in pattern and pattern != "*":
            raise ValueError(f"{pattern!r} must be a pattern for `provider/model`, such as `openai/*` or `*/*embed*`")
