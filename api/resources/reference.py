"""/docs: the schema as a page to read. It works without the internet and runs no script, so that nothing of another origin
speaks in the name of this one (which, on a server without keys, may ask everything)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse

from api.deps import Root

router = APIRouter(include_in_schema=False)

_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "code,pre{font:14px/1.4 ui-monospace,monospace}pre{overflow:auto;background:#8881;padding:1rem}"
    "h2{margin:2.5rem 0 0;font-size:1.1rem}td{padding:.1rem 1rem .1rem 0;vertical-align:top}"
    ":root{color-scheme:light dark}"
)


@router.get("/docs")
async def reference(request: Request, root: Root) -> HTMLResponse:
    """All routes, as `/openapi.json` has them."""
    schema = request.app.openapi()
    info = schema["info"]
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(info["title"])}</title>',
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>',
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info.get('summary', ''))}</p>",
        f'<p>For programs: <a href="{escape(root)}/openapi.json">{escape(root)}/openapi.json</a>. ',
        "With keys: <code>Authorization: Bearer KEY</code>.</p>",
    ]
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            parts += _operation(f"{root}{path}", method, operation)
    return HTMLResponse("".join(parts), headers=_HEADERS)


def _operation(path: str, method: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f"<h2><code>{escape(method.upper())} {escape(path)}</code></h2>"
    yield f"<p>{escape(operation.get('description', ''))}</p>"
    if parameters := operation.get("parameters"):
        rows = (
            f"<tr><td><code>{escape(one['name'])}</code><td>{escape(one['in'])}<td>{escape(one.get('description', ''))}"
            for one in parameters
        )
        yield f"<table>{''.join(rows)}</table>"
    for kind, body in operation.get("requestBody", {}).get("content", {}).items():
        text = json.dumps(body.get("schema", {}), indent=2)
        yield f"<details><summary>Body, <code>{escape(kind)}</code></summary><pre>{escape(text)}</pre></details>"
