"""The commands that only look: `show`, `ls`, `usage`, `sessions`, `models`.

Hidden here: what a person wants to see of each object; with `--json` it is the API's own.
"""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shared.cli.screen import dollars, say, show_usage, table
from shared.cli.terms import AsJson, Id, OfTenant, TenantOrAll, Url, ask

if TYPE_CHECKING:
    from shared.cli.client import Client

_AGO = re.compile(r"(\d+)([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
Limit = Annotated[int, typer.Option(min=1, max=100, help="How many.")]


def add_to(app: typer.Typer) -> None:
    for command in (show, ls, usage, sessions, models):
        app.command()(command)


def show(
    generation_id: Id,
    request: Annotated[bool, typer.Option("--request", help="The body of the request, as it was sent.")] = False,
    tenant: OfTenant = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Show what happened to an answer: status, times, who served it, error, tokens."""
    if request:
        typer.echo(ask(url, lambda client: client.request(generation_id), tenant))
        return
    state = ask(url, lambda client: client.state(generation_id), tenant)
    if as_json:
        typer.echo(json.dumps(state, indent=2))
        return
    for name, value in _lines(state):
        typer.echo(f"{name:<14}{value}")


def _lines(state: dict[str, Any]) -> list[tuple[str, Any]]:
    timings = state.get("timings") or {}
    took = [f"{name.removesuffix('_ms')} {value} ms" for name, value in timings.items() if value is not None]
    error = state.get("error") or {}
    said = [
        f"HTTP {error['status']}" if error.get("status") else "",
        error.get("code") or "",
        error.get("message") or "",
    ]
    usage_of = state.get("usage") or {}
    tokens = [f"{usage_of[name]} {name.removesuffix('_tokens')}" for name in _TOKENS if name in usage_of]
    refused = [f"{one['model']} (HTTP {one['status']})" for one in state.get("refused") or []]
    rows = [
        ("id", state["id"]),
        ("status", state["status"]),
        ("model", state["model"]),
        ("served by", state.get("served_by")),
        ("created", when(state["created_at"])),
        ("times", ", ".join(took)),
        ("attempts", state.get("attempts")),
        ("interrupted", ", ".join(state.get("interrupted") or [])),
        ("refused", ", ".join(refused)),
        ("tokens", ", ".join(tokens) + (f" ({state['usage_source']})" if tokens and state.get("usage_source") else "")),
        ("cost", _cost(state)),
        ("finish", ", ".join(str(reason) for reason in state.get("finish_reasons") or [])),
        ("error", ", ".join(filter(None, said))),
        ("session", state.get("session_id")),
        ("batch", state.get("batch_id")),
        ("metadata", ", ".join(f"{name}={value}" for name, value in (state.get("metadata") or {}).items())),
    ]
    return [(name, value) for name, value in rows if value not in (None, "")]


def _cost(state: dict[str, Any]) -> str:
    source = state.get("cost_source")
    if source is None or source == "unknown":
        return source or ""
    return f"{dollars(state['cost_usd'])} ({source})"


_TOKENS = ("prompt_tokens", "completion_tokens", "total_tokens")


def ls(
    limit: Limit = 20,
    status: Annotated[str | None, typer.Option(help="Only those: failed, or several: failed,cancelled.")] = None,
    model: Annotated[str | None, typer.Option("-m", "--model", help="Only this one, or openai/* and the like.")] = None,
    since: Annotated[
        str | None, typer.Option(help="Only later ones: 2h, 3d, 2026-11-27, 2026-11-27T09:30:00Z.")
    ] = None,
    session: Annotated[str | None, typer.Option(help="Only those of this session.")] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Only those that were asked with it.")
    ] = None,
    tenant: TenantOrAll = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """List answers, newest first."""
    query = {"status": status, "model": model, "since": _since(since), "session_id": session, **_named(metadata or [])}
    page = ask(url, lambda client: _found(client, limit, query), tenant)
    if as_json:
        typer.echo(json.dumps(page, indent=2))
        return
    whose = ("TENANT",) if tenant == "*" else ()
    table(
        (*whose, "ID", "STATUS", "MODEL", "CREATED", "FIRST", "TOOK", "TOKENS", "COST", "ERROR"),
        [(*(str(state["tenant"]) for _ in whose), *_row(state)) for state in page["data"]],
    )


def _named(pairs: list[str]) -> dict[str, str | None]:
    """`KEY=VALUE`s as the list's queries."""
    query: dict[str, str | None] = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not name or not separator:
            raise typer.BadParameter(f"{pair!r} is not KEY=VALUE", param_hint="--metadata")
        query[f"metadata[{name}]"] = value
    return query


async def _found(client: Client, limit: int, query: dict[str, str | None]) -> dict[str, Any]:
    """Up to `limit` of those that match, over as many pages as it takes: the API ends a page once it has looked at many."""
    page = await client.list(limit=limit, **query)
    while page["has_more"] and len(page["data"]) < limit:
        more = await client.list(limit=limit - len(page["data"]), after=page["last_id"], **query)
        page = {**more, "data": [*page["data"], *more["data"]]}
        page["first_id"] = page["data"][0]["id"] if page["data"] else None
    return page


def _row(state: dict[str, Any]) -> tuple[str, ...]:
    timings, error = state.get("timings") or {}, state.get("error") or {}
    queued, first = timings.get("queued_ms"), timings.get("first_chunk_ms")
    tokens = (state.get("usage") or {}).get("completion_tokens")
    return (
        state["id"],
        state["status"],
        state["model"],
        when(state["created_at"]),
        _seconds(None if first is None else first + (queued or 0)),
        _seconds(timings.get("total_ms")),
        "" if tokens is None else str(tokens),
        "" if state.get("cost_source") is None else dollars(state["cost_usd"]),
        " ".join(str(part) for part in (error.get("status"), error.get("code")) if part),
    )


def usage(
    start: Annotated[str | None, typer.Option(help="First day, as 2026-11-01; 30 days ago if not given.")] = None,
    end: Annotated[str | None, typer.Option(help="Last day; today if not given.")] = None,
    model: Annotated[str | None, typer.Option("-m", "--model", help="Only this one.")] = None,
    by: Annotated[
        str, typer.Option("--by", help="model, provider, key, tenant, several with commas; or metadata.NAME.")
    ] = "model",
    hours: Annotated[
        bool, typer.Option("--hours", help="By the hour: of the last 8 days, the last 2 if not given.")
    ] = False,
    tenant: TenantOrAll = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the rows as CSV.")] = False,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Show what was used and what it cost, for each day and model, and the sum; and plot it."""
    query = {"start": start, "end": end, "model": model, "group_by": by}
    if hours:
        query["bucket"] = "hour"
    found = ask(url, lambda client: client.usage(**query), tenant)
    groups = [name.strip() for name in by.split(",") if name.strip()]
    if as_csv:
        from shared.features.spend.report import as_csv as written

        typer.echo(written(found["data"], groups, "hour" if hours else "day"), nl=False)
        return
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    show_usage(found, groups, "hour" if hours else "date")


def sessions(limit: Limit = 20, tenant: TenantOrAll = None, as_json: AsJson = False, url: Url = None) -> None:
    """List sessions, last used first."""
    page = ask(url, lambda client: client.sessions(limit=limit), tenant)
    if as_json:
        typer.echo(json.dumps(page, indent=2))
        return
    hidden = ("id", "object")
    names = [name for name in (page["data"] or [{}])[0] if name not in hidden and not name.endswith("_id")]
    rows = [(one["id"], *(_shown(name, one.get(name)) for name in names)) for one in page["data"]]
    table(("ID", *(name.upper() for name in names)), rows)


def models(as_json: AsJson = False, url: Url = None) -> None:
    """List the models that answer; others of the same providers work too."""
    found = ask(url, lambda client: client.models())
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    for model in found["data"]:
        typer.echo(model["id"])
    if not found["data"]:
        say("No models are listed.")


def _shown(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name.endswith("_at") and isinstance(value, int):
        return when(value)
    return str(len(value)) if isinstance(value, list) else str(value)


def _since(text: str | None) -> str | None:
    """`2h` as the time it was then; all else is the API's to read."""
    if text is None or not (ago := _AGO.fullmatch(text)):
        return text
    return str(int(time.time()) - int(ago[1]) * _SECONDS[ago[2]])


def when(unix: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix))


def _seconds(ms: int | None) -> str:
    return "" if ms is None else f"{ms / 1000:.2f} s"
