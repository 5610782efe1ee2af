"""What the doctor finds at the address that clients are given: is what stands in front of the API fit for streams?

Hidden here: how that is seen from outside, with one small answer of `fake/lorem`: that it comes while it is said and not at
its end, that a large request is let through, that an address goes on without a redirect, and that /metrics is not public.
"""

from __future__ import annotations

import time
from urllib.parse import urlsplit

from shared.cli.client import Client, Event, View
from shared.cli.findings import Finding
from shared.config.settings import Settings
from shared.errors import StreamspoolError

_WHAT = "way to the API"
_MODEL = "fake/lorem?tokens=20&rate=20"
_BUFFERED = 0.5
"""Of the time an answer takes: if its first word comes later than this, it was kept back."""
_LARGE = 1_200_000
"""Bytes, more than nginx's default for a body (client_max_body_size 1m)."""
_LET_THROUGH = frozenset({400, 401, 404, 422})
"""What the API itself says about a large body that names no model."""


async def examine_front(settings: Settings, client: Client) -> list[Finding]:
    """Asks `client.base_url`, which the operator named: through whatever stands in front of it."""
    findings = []
    try:
        status, headers = await client.probe("/readyz")
    except StreamspoolError as error:
        return [Finding(False, _WHAT, error.message)]
    if 300 <= status < 400:
        place = headers.get("location", "elsewhere")
        return [
            Finding(
                False, _WHAT, f"redirects to {place}: clients drop the key or the body there. Give them that address"
            )
        ]
    if "x-request-id" not in headers:
        text = "does not lead to Streamspool, or takes x-request-id away: no request can be found in the log by its id"
        findings.append(Finding(None, _WHAT, text))
    findings.append(await _stream(client))
    if settings.max_body_bytes > _LARGE:
        findings.append(await _large(client))
    if not _is_local(client.base_url):
        status, _ = await client.probe("/metrics", with_key=False)
        if status == 200:
            findings.append(Finding(None, _WHAT, "/metrics is public here. Refuse it in the proxy"))
    return findings


async def _stream(client: Client) -> Finding:
    started, first, last = time.monotonic(), 0.0, 0.0

    def heard(event: Event) -> None:
        nonlocal first, last
        last = time.monotonic() - started
        if event.text:
            first = first or last

    view = View()
    body = {"model": _MODEL, "messages": [{"role": "user", "content": "doctor"}]}
    try:
        await client.submit(body, view, heard)
    except StreamspoolError as error:
        return Finding(False, _WHAT, f"no stream: {error.message}")
    if not first or view.error:
        return Finding(
            False, _WHAT, f"a stream came without an answer: {(view.error or {}).get('message', 'nothing was said')}"
        )
    if first > _BUFFERED * last:
        advice = "It keeps streams back: turn buffering and compression off (OPERATIONS.md, Reverse proxy)"
        return Finding(False, _WHAT, f"the first word came after {first:.1f} of {last:.1f} s. {advice}")
    return Finding(True, _WHAT, f"streams come as they are said: first word after {first:.1f} of {last:.1f} s")


async def _large(client: Client) -> Finding:
    status = await client.post_unread("/v1/chat/completions", b'{"messages": "' + b"x" * _LARGE + b'"}')
    if status in _LET_THROUGH:
        return Finding(True, _WHAT, f"a request of {_LARGE / 1e6:.1f} MB comes through")
    return Finding(
        False,
        _WHAT,
        f"a request of {_LARGE / 1e6:.1f} MB is answered with HTTP {status or 'nothing'}. Raise the proxy's limit, for nginx "
        "client_max_body_size, to STREAMSPOOL_MAX_FILE_BYTES",
    )


def _is_local(url: str) -> bool:
    return urlsplit(url).hostname in ("127.0.0.1", "::1", "localhost")
