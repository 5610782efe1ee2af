"""Settings that are told by tenant: `tenant:value,tenant:value`.

Hidden here: how such lists are parsed, what a tenant may be called, and what a key and a webhook's secret must look like. All
raise ValueError, without the value.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping, Sequence

from pydantic import SecretStr

EVERY_TENANT = "*"
"""Stands for those that are not named."""

TENANT = "[A-Za-z0-9_.-]{1,64}"
"""What a tenant may be called: a regular expression."""
_TENANT = re.compile(TENANT)
_UNSENDABLE = re.compile(r"[\s\x00-\x1f\x7f]")
"""In a key: a file with a pair on each line, without commas, would be one key with line breaks in it."""


def _shown(name: str) -> str:
    """A tenant's name in a message: a line break too few may have put a secret in its place."""
    return repr(name if len(name) <= 64 and name.isprintable() else "…")


def _check_tenant(name: str) -> None:
    if not _TENANT.fullmatch(name):
        raise ValueError(
            f"tenant {_shown(name)} must be 1 to 64 letters, digits, `_`, `.` or `-`, with a comma between two pairs"
        )


def parse_keys(text: str, variable: str = "STREAMSPOOL_API_KEYS") -> dict[str, list[str]]:
    """`tenant:key,tenant:key`; a tenant with several keys is named several times, or has blanks between them."""
    keys: dict[str, list[str]] = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        tenant, separator, written = pair.partition(":")
        first, *more = [key for key in written.split(" ") if key] if separator and written.strip() else [""]
        if not first:
            raise ValueError(f"{variable} must look like `tenant:key,tenant:key`")
        if any(":" in key for key in more):  # or a forgotten comma would make another tenant's key one of this one's
            raise ValueError(
                f"{variable} has a colon behind a blank after tenant {_shown(tenant)}: between two pairs there is "
                "a comma"
            )
        keys.setdefault(tenant, []).extend((first, *more))
    return keys


KEY_CHARACTERS = 16
_DIFFERENT = 8
"""A key has so many characters at least, and so many different ones: what has fewer can be guessed."""


def is_weak(key: SecretStr) -> bool:
    """Whether a key can be guessed. 16 characters of `openssl rand -hex 8` have 10 different ones on average."""
    text = key.get_secret_value()
    return len(text) < KEY_CHARACTERS or len(set(text)) < _DIFFERENT


def check_strong(keys: Mapping[str, Sequence[SecretStr]]) -> None:
    """None of them can be guessed."""
    for tenant, own in keys.items():
        if any(map(is_weak, own)):
            raise ValueError(
                f"a key of {tenant!r} can be guessed: it has fewer than {KEY_CHARACTERS} characters, or few different ones; "
                "make one with `openssl rand -hex 32`"
            )


def check_keys(
    keys: Mapping[str, Sequence[SecretStr]],
    variable: str = "STREAMSPOOL_API_KEYS",
    *,
    beside: Mapping[str, Sequence[SecretStr]] | None = None,
) -> None:
    """Each can be sent in a header, and no two are the same, those `beside` them included."""
    for tenant, own in keys.items():
        _check_tenant(tenant)
        if not own:
            raise ValueError(f"tenant {tenant!r} has no key")
        if any(_UNSENDABLE.search(key.get_secret_value()) or not key.get_secret_value() for key in own):
            raise ValueError(
                f"a key of tenant {tenant!r} is empty, or holds white space or a control character, which no client can "
                "send; between two pairs there is a comma, also in a file"
            )
    found = [key.get_secret_value() for own in (*keys.values(), *(beside or {}).values()) for key in own]
    digests = {hashlib.sha256(key.encode()).digest() for key in found}
    if len(digests) != len(found):
        raise ValueError(f"{variable} has the same key twice{', or one of STREAMSPOOL_API_KEYS' if beside else ''}")


def parse_by_tenant(text: str, variable: str) -> dict[str, str]:
    """`VALUE`, for every tenant, and `tenant:VALUE`, for one: no value that is told so holds a colon."""
    pairs = [part.strip().rpartition(":") for part in text.split(",") if part.strip()]
    found = {tenant or EVERY_TENANT: own for tenant, _, own in pairs}
    if len(found) < len(pairs):
        raise ValueError(f"{variable} names a tenant twice")
    for tenant in found:
        if tenant != EVERY_TENANT:
            _check_tenant(tenant)
    return found


def webhook_keys(secrets: SecretStr) -> list[bytes]:
    """The keys in a tenant's `whsec_…`, one or more (standardwebhooks.com, "Secrets"). Raises ValueError."""
    keys = []
    for secret in secrets.get_secret_value().split():
        try:
            keys.append(base64.b64decode(secret.removeprefix("whsec_"), validate=True))
        except binascii.Error:
            keys.append(b"")
        if not secret.startswith("whsec_") or not 24 <= len(keys[-1]) <= 64:
            raise ValueError("a secret must be `whsec_` and 24 to 64 bytes in base64, as of `openssl rand -base64 32`")
    if not keys:
        raise ValueError("a tenant has no secret")
    return keys
