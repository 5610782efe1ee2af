"""/console: one page for all addresses below it, and its files.

Hidden here: what the page may do. An answer is a model's, and what a model says may be written to do harm, so the page loads
nothing of another host, runs no script but its own files, and makes HTML of text in one place only (Trusted Types).
"""

from __future__ import annotations

import re

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from api.console.assets import Asset, Assets
from api.deps import CurrentServices, Root
from shared.errors import NotFound

router = APIRouter(include_in_schema=False)

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types dompurify",
    )
)
"""Content-Security-Policy Level 3."""
_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "x-robots-tag": "noindex",
}
_ASSETS = "assets/"
_FOR_EVER = "public, max-age=31536000, immutable"
_ASK_FIRST = "no-cache"
_GZIP = re.compile(r"\bgzip\b(?!\s*;\s*q=0(\.0*)?\s*(,|$))")


@router.get("/console")
@router.get("/console/{path:path}")
@router.get("/s")  # of links that share an answer: /s/#TOKEN
async def page(request: Request, services: CurrentServices, root: Root, path: str = "") -> Response:
    """The page, whose script reads from its address what it is to show; or a file, `assets/DIGEST/PATH`, which may be kept
    under the digest of this release, and is to be asked for again under any other."""
    if services.settings.console == "off":
        raise NotFound("The console is off on this server (STREAMSPOOL_CONSOLE).")
    assets: Assets = request.app.state.console
    if not path.startswith(_ASSETS):
        return _answer(request, assets.page(root), _ASK_FIRST)
    digest, _, name = path.removeprefix(_ASSETS).partition("/")
    found = assets.find(name)
    if found is None:
        raise NotFound("The console has no such file.")
    return _answer(request, found, _FOR_EVER if digest == assets.digest else _ASK_FIRST)


def _answer(request: Request, found: Asset, caching: str) -> Response:
    headers = {**_HEADERS, "cache-control": caching, "etag": found.etag, "vary": "accept-encoding"}
    if found.etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    packed = bool(_GZIP.search(request.headers.get("accept-encoding", "").lower()))
    if packed:
        headers["content-encoding"] = "gzip"
    return Response(found.packed if packed else found.body, headers={**headers, "content-type": found.kind})
