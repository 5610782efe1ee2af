"""Kinds of settings: how each is parsed from the environment (`one,two`), and checked."""

from __future__ import annotations

import re
from ipaddress import ip_network
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo
from pydantic_settings import NoDecode

from shared.config.tenants import EVERY_TENANT, parse_by_tenant
from shared.lib import egress

_PREFIX = re.compile(r"(?!arq$)[A-Za-z0-9_.-]{1,32}")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::\d{1,5})?")
"""As a browser says it: lower case, no path, no slash at the end (RFC 6454 §6.2)."""


def _split(value: object) -> object:
    """The parts of `one,two`; what is no text stays as it is."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _check_prefix(value: str) -> str:
    if not _PREFIX.fullmatch(value):
        raise ValueError("must be 1 to 32 letters, digits, `_`, `.` or `-`, and not `arq`")
    return value


def _check_allowed(value: list[str]) -> list[str]:
    egress.Policy(value)
    return value


def _check_proxies(value: list[str]) -> list[str]:
    for entry in value:
        ip_network(entry)
    return value


def _check_origins(value: list[str]) -> list[str]:
    for origin in value:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ValueError("must be origins, like https://app.example.com, without a path")
    return value


def _by_tenant(value: object, info: ValidationInfo) -> object:
    """`VALUE`, for every tenant, and `tenant:VALUE`, for one: no kind of value holds a colon."""
    if isinstance(value, int | float):
        return {EVERY_TENANT: value}
    if not isinstance(value, str):
        return value
    return parse_by_tenant(value, f"STREAMSPOOL_{(info.field_name or '').upper()}")


_T = TypeVar("_T")

ByTenant = Annotated[dict[str, _T], NoDecode, BeforeValidator(_by_tenant)]
Words = Annotated[list[str], NoDecode, BeforeValidator(_split)]
Metrics = Annotated[list[Literal["tenants", "genai"]], NoDecode, BeforeValidator(_split)]
Allowed = Annotated[Words, AfterValidator(_check_allowed)]
Proxies = Annotated[Words, AfterValidator(_check_proxies)]
Origins = Annotated[Words, AfterValidator(_check_origins)]
Prefix = Annotated[str, AfterValidator(_check_prefix)]
RootPath = Annotated[str, Field(pattern=r"^$|^(/[A-Za-z0-9_~-][A-Za-z0-9_.~-]*)+$")]
