"""`python -m worker.check [--ask]`: what a worker with these settings could ask, as JSON on stdout; for `config` and `doctor`.

Hidden here: how each provider is asked whether it is there and takes the key, for example with GET /models, which costs
nothing. It is a program of its own because who looks after a server must not need what the worker is made of; keys stay here.

    {"notices": [LINE, …], "error": LINES or null,
     "providers": [{"name", "url", "key", "proxy", "ok", "found"}, …]}

`key` is null or the end of the key; `proxy` is null or through which one it is asked; `ok` and `found` are null where
nothing was asked.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

from shared.config.environ import SettingsInvalid, environment
from shared.config.settings import Settings, load_settings
from shared.lib import http, json
from shared.lib.process import refuse_to_start
from shared.lib.proxies import Proxies
from worker.providers.model_list import plain_question
from worker.providers.registry import FAKE, Provider
from worker.providers.switches import switch

_ASK_S = 10.0
_MAX_BYTES = 4 * 1024 * 1024
_SHOWN = 4


async def look(settings: Settings, *, ask: bool) -> dict[str, Any]:
    try:
        providers, _, notices = switch(settings, environment())
    except ValueError as error:
        return {"notices": [], "error": str(error), "providers": []}
    proxies = settings.upstream_proxies
    there = [provider for name, provider in sorted(providers.items()) if name != FAKE.name]
    found: list[tuple[bool | None, str | None]] = [(None, None)] * len(there)
    if ask:
        async with http.open_client(settings.upstream_connect_s, proxies) as client:
            found = list(await asyncio.gather(*(_ask(client, provider) for provider in there)))
    rows = [
        {
            "name": provider.name,
            "url": provider.base_url,
            "key": _masked(provider.api_key),
            "proxy": _through(proxies, provider.base_url),
            "ok": ok,
            "found": text,
        }
        for provider, (ok, text) in zip(there, found, strict=True)
    ]
    return {"notices": [*notices, *proxies.notices], "error": None, "providers": rows}


async def _ask(client: http.Client, provider: Provider) -> tuple[bool, str]:
    """Whether this provider can be used as it is given, and how it answered."""
    started = time.monotonic()
    try:
        async with asyncio.timeout(_ASK_S):
            status, content_type, body = await _get(client, provider)
    except TimeoutError:
        return False, f"no answer within {_ASK_S:g} s. Is it running, and may this machine reach it?"
    except http.InvalidURL:
        return False, "the address cannot be asked. Correct it"
    except http.TransportError as error:
        return False, f"no connection: {http.reason(error)}. Is it running, and is the address right?"
    took = f"{(time.monotonic() - started) * 1000:.0f} ms"
    if status in (401, 403):
        return (
            False,
            f"refuses the key (HTTP {status}). Correct it" if provider.api_key else f"wants a key (HTTP {status})",
        )
    if status >= 500 or status == 429:
        return False, f"is there, and not well (HTTP {status})"
    if "html" in content_type:
        return (
            False,
            f"answers with a web page (HTTP {status}): the address is not that of an API. Does it end with /v1?",
        )
    if status == 200 and (count := _count(body)) is not None:
        return True, f"answers in {took}, lists {count} model{'s' * (count != 1)}"
    if status in (404, 405):  # Perplexity and some servers of one's own have no list
        return True, f"answers in {took}, and does not list its models (HTTP {status})"
    return status < 400, f"answers in {took} with HTTP {status}"


async def _get(client: http.Client, provider: Provider) -> tuple[int, str, bytes]:
    question = plain_question(provider)
    headers = {**question.headers, "accept": "application/json"}
    response = await client.request("GET", question.url, headers=headers)
    body = bytearray()
    try:
        async for piece in response.pieces():
            body += piece
            if len(body) > _MAX_BYTES:
                break
    finally:
        response.close()
    return response.status_code, response.headers.get("content-type", "").lower(), bytes(body)


def _through(proxies: Proxies, url: str) -> str | None:
    proxy = proxies.proxy_for(url)
    return f"{proxy.url} ({proxy.variable})" if proxy else None


def _masked(key: str | None) -> str | None:
    """What of a key may be shown: which one it is, and no more."""
    if key is None:
        return None
    return f"…{key[-_SHOWN:]}" if len(key) > 4 * _SHOWN else "set"


def _count(body: bytes) -> int | None:
    try:
        value = json.loads(body)
    except ValueError:
        return None
    listed = value if isinstance(value, list) else None
    if isinstance(value, dict):
        listed = value.get("data", value.get("models"))
    return len(listed) if isinstance(listed, list) else None


def main() -> None:
    try:
        settings = load_settings()
    except SettingsInvalid as error:
        refuse_to_start(str(error))
    sys.stdout.write(json.dumps(asyncio.run(look(settings, ask="--ask" in sys.argv[1:]))).decode() + "\n")


if __name__ == "__main__":
    main()
