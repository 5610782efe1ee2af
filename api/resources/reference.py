"""/, and /docs: the schema as a page to read. They work without the internet and run no script, so that nothing of another
origin speaks in the name of this one (which, on a server without keys, may ask everything)."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html import escape
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response

from api.deps import CurrentServices, Root
from api.resources.health import checks

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


_WEIGHT = re.compile(r";\s*q\s*=\s*([01](?:\.\d*)?)\s*(?:;|$)")
_CONSOLE = {"console": ("/console/", "the same to look at, in a browser")}
_LINKS = {
    "docs": ("/docs", "all routes, to be read"),
    "openapi": ("/openapi.json", "the same for programs"),
    "ready": ("/readyz", "whether it can take and answer requests now"),
    "models": ("/v1/models", "what can be asked, with a key if this server has keys"),
    "streams": ("/v1/streams", "what was asked of late, with a key likewise"),
}


@router.get("/")
async def home(request: Request, services: CurrentServices, root: Root) -> Response:
    """What this is and where to go from here: for a program as JSON, for a browser the console, or a page where that is off."""
    wants_page = _wants_page(",".join(request.headers.getlist("accept")))
    has_console = services.settings.console == "on"
    if wants_page and has_console:
        return Response(status_code=303, headers={"location": f"{root}/console/", "vary": "accept"})
    now, version = await checks(services), request.app.version
    if not wants_page:
        ways_on = {**_CONSOLE, **_LINKS} if has_console else _LINKS
        links = {name: f"{root}{path}" for name, (path, _) in ways_on.items()}
        told = {"object": "server", "name": "Streamspool", "version": version, "checks": now, "links": links}
        return JSONResponse(told, headers={"vary": "accept"})
    rows = "".join(f"<tr><td>{escape(name)}<td>{escape(found)}" for name, found in now.items())
    ways = "".join(
        f'<tr><td><a href="{escape(root + path)}">{escape(root + path)}</a><td>{escape(what)}'
        for path, what in _LINKS.values()
    )
    body = (
        f"<h1>Streamspool {escape(version)}</h1><p>{escape(request.app.summary)}</p><h2>Now</h2><table>{rows}</table>"
        f"<h2>From here</h2><table>{ways}</table><p>Clients of OpenAI's API take "
        f"<code>{escape(root)}/v1</code> here for their base URL.</p>"
    )
    return HTMLResponse(_page(f"Streamspool {version}", body), headers={**_HEADERS, "vary": "accept"})


def _wants_page(accept: str) -> bool:
    """Browsers name HTML; programs that take anything (`*/*`) do not, or name JSON first (RFC 9110 §12.5.1)."""
    weights: dict[str, float] = {}
    for one in accept.lower().split(","):
        kind, _, parameters = one.partition(";")
        told = _WEIGHT.search(f";{parameters}")
        weights.setdefault(kind.strip(), float(told[1]) if told else 1.0)
    page, json_text = weights.get("text/html", 0.0), weights.get("application/json", 0.0)
    names = [kind for kind in weights if kind in ("text/html", "application/json")]
    return page > json_text or (page > 0 and page == json_text and names[0] == "text/html")


def _page(title: str, body: str) -> str:
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style>{body}'
    )


@router.get("/docs")
async def reference(request: Request, root: Root) -> HTMLResponse:
    """All routes, as `/openapi.json` has them."""
    schema = request.app.openapi()
    info = schema["info"]
    parts = [
        f"<h1>{escape(info['title'])} {escape(info['version'])}</h1><p>{escape(info.get('summary', ''))}</p>",
        f'<p>To try routes out: <a href="{escape(root)}/docs/swagger">Swagger UI</a>. ',
        f'For programs: <a href="{escape(root)}/openapi.json">{escape(root)}/openapi.json</a>. ',
        "With keys: <code>Authorization: Bearer KEY</code>.</p>",
    ]
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            parts += _operation(f"{root}{path}", method, operation)
    for name, component in schema["components"]["schemas"].items():
        text = json.dumps(component, indent=2)
        parts.append(f'<details id="{escape(name)}"><summary><code>{escape(name)}</code></summary>')
        parts.append(f"<pre>{escape(text)}</pre></details>")
    return HTMLResponse(_page(info["title"], "".join(parts)), headers=_HEADERS)


def _operation(path: str, method: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f"<h2><code>{escape(method.upper())} {escape(path)}</code></h2>"
    yield f"<p>{escape(operation.get('description', ''))}</p>"
    if parameters := operation.get("parameters"):
        rows = (
            f"<tr><td><code>{escape(one['name'])}</code><td>{escape(one['in'])}<td>{escape(one.get('description', ''))}"
            for one in parameters
        )
        yield f"<table>{''.join(rows)}</table>"
    bodies = operation.get("requestBody", {}).get("content", {})
    yield from (f"<p>Body, <code>{escape(kind)}</code>: {_linked(body)}</p>" for kind, body in bodies.items())
    for status, response in operation["responses"].items():
        for kind, body in response.get("content", {}).items():
            yield f"<p>{escape(status)}, <code>{escape(kind)}</code>: {_linked(body)}</p>"


def _linked(body: dict[str, Any]) -> str:
    name = body["schema"].get("$ref", "").rpartition("/")[2]
    return f'<a href="#{escape(name)}">{escape(name)}</a>' if name else "bytes"
