"""/docs/swagger: Swagger UI over this server's own OpenAPI document, for who wants to try routes out in a browser.

Hidden here: that it works without the internet, from files that stand in the package (`api/openapi/swagger/`), and that the
page may run nothing else: no inline script, nothing of another origin. The browser checks the files by their SHA-256 as well.
"""

from __future__ import annotations

import gzip
from base64 import b64encode
from functools import cache
from html import escape
from pathlib import Path
from typing import NamedTuple

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from api.deps import Root
from shared.errors import NotFound

router = APIRouter(prefix="/docs/swagger", include_in_schema=False)

_FOLDER = Path(__file__).parents[1] / "openapi" / "swagger"
_HEADERS = {
    # Styles: Swagger UI has them in attributes. Pictures: it has its own as `data:`.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class File(NamedTuple):
    """A file of the page; `sha256`, in hexadecimal, is of what it is unpacked."""

    media_type: str
    sha256: str = ""
    """Empty: it is ours, and not packed."""


FILES = {
    "swagger-ui-bundle.js": File("text/javascript", "e6a898692f2d768e807c3ba4626068a69a2c5dd960dd6c76f3e4d3a3de180af2"),
    "swagger-ui.css": File("text/css", "5ed08757e53da3e026d6cbecc61fe5d43585c9560b302d534ad56692519a273d"),
    "start.js": File("text/javascript"),
}


@cache
def packed(name: str) -> bytes:
    """A file, in gzip if it is not ours."""
    return (_FOLDER / (f"{name}.gz" if FILES[name].sha256 else name)).read_bytes()


def _integrity(name: str) -> str:
    return f"sha256-{b64encode(bytes.fromhex(FILES[name].sha256)).decode()}"


@router.get("")
async def page(root: Root) -> HTMLResponse:
    """The page."""
    at = f"{escape(root)}/docs/swagger"
    return HTMLResponse(
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Streamspool: Swagger UI</title>'
        '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
        f'<link rel="stylesheet" href="{at}/swagger-ui.css" integrity="{_integrity("swagger-ui.css")}">'
        '<div id="swagger-ui"></div>'
        f'<script src="{at}/swagger-ui-bundle.js" integrity="{_integrity("swagger-ui-bundle.js")}"></script>'
        f'<script src="{at}/start.js" data-openapi="{escape(root)}/openapi.json"></script>',
        headers=_HEADERS,
    )


@router.get("/{name}")
async def file(request: Request, name: str) -> Response:
    """One of its files. Raises NotFound."""
    if (found := FILES.get(name)) is None:
        raise NotFound("There is no such file. The page is at /docs/swagger.")
    content, headers = packed(name), {**_HEADERS, "vary": "accept-encoding", "cache-control": "max-age=3600"}
    if found.sha256 and "gzip" in request.headers.get("accept-encoding", ""):
        headers["content-encoding"] = "gzip"
    elif found.sha256:
        content = gzip.decompress(content)
    return Response(content, media_type=found.media_type, headers=headers)
