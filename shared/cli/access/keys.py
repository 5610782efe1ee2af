"""`streamspool keys`: who may ask. For those who have an admin's key in STREAMSPOOL_API_KEY.

Hidden here: how times, limits and models are written on a command line; and that a key is printed on stdout alone, so that it
can be put into a file, while what is said of it goes to stderr.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable
from typing import Annotated, Any
from urllib.parse import quote, urlencode

import typer

from shared.cli.looking import when
from shared.cli.screen import dollars, say, table
from shared.cli.terms import AsJson, Url, ask

_LIFE = re.compile(r"([1-9]\d{0,5})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

KeyId = Annotated[str, typer.Argument(metavar="ID", help="As printed by `keys list`.")]
Name = Annotated[str | None, typer.Option(help="What people call it.")]
Expires = Annotated[str | None, typer.Option(metavar="TIME", help="When it ends: in 90d, 12h, or at Unix seconds.")]
Models = Annotated[
    list[str] | None, typer.Option("-m", "--model", metavar="PATTERN", help="May ask for these only: openai/*, smart.")
]
LimitPairs = Annotated[
    list[str] | None, typer.Option("--limit", metavar="NAME=NUMBER", help="E.g. requests_per_min=600.")
]
BudgetPairs = Annotated[list[str] | None, typer.Option("--budget", metavar="NAME=USD", help="E.g. month_usd=100.")]

group = typer.Typer(no_args_is_help=True, help="Make, list, rotate and revoke API keys; needs an admin's key.")


def add_to(app: typer.Typer) -> None:
    app.add_typer(group, name="keys")


@group.command()
def create(
    tenant: Annotated[str, typer.Option(help="Whose answers it asks for, and finds.")],
    name: Name = None,
    role: Annotated[str, typer.Option(help="tenant, viewer (reads only) or admin (everything).")] = "tenant",
    expires: Expires = None,
    model: Models = None,
    limit: LimitPairs = None,
    budget: BudgetPairs = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Make a key. It is printed this once."""
    body = {"tenant": tenant, "role": role, **_terms(name, expires, model, limit, budget)}
    _print_new(ask(url, lambda client: client.send("POST", "/v1/keys", body)), as_json)


@group.command("list")
def list_keys(
    tenant: Annotated[str | None, typer.Option(help="Only this one's.")] = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """List keys, the newest first."""

    async def all_of(client: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        more = True
        while more:
            query = {"limit": "100", "tenant": tenant, "after": found[-1]["id"] if found else None}
            page = await client.send("GET", f"/v1/keys?{urlencode({k: v for k, v in query.items() if v})}")
            found += page["data"]
            more = page["has_more"]
        return found

    found = ask(url, all_of)
    if as_json:
        typer.echo(json.dumps({"object": "list", "data": found}, indent=2))
        return
    rows = [
        (
            key["id"],
            key["tenant"],
            key["role"],
            key["status"],
            f"…{key['hint']}" if key["hint"] else "",
            _time(key["created_at"]),
            _time(key["expires_at"]),
            _time(key["last_used_at"]),
            key["name"],
        )
        for key in found
    ]
    table(("ID", "TENANT", "ROLE", "STATUS", "KEY", "CREATED", "EXPIRES", "LAST USED", "NAME"), rows)


@group.command()
def show(key_id: KeyId, as_json: AsJson = False, url: Url = None) -> None:
    """Show a key, without its secret."""
    key = ask(url, lambda client: client.send("GET", _path(key_id)))
    if as_json:
        typer.echo(json.dumps(key, indent=2))
        return
    for field, value in key.items():
        told = _time(value) if field.endswith("_at") or field == "overlap_until" else _text(value)
        if told:
            typer.echo(f"{field:<14}{told}")


@group.command()
def change(
    key_id: KeyId,
    name: Name = None,
    expires: Expires = None,
    model: Models = None,
    limit: LimitPairs = None,
    budget: BudgetPairs = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Change what a key may do; what is not named stays, of limits and budgets, too: NAME=none ends one."""
    body = _terms(name, expires, model, limit, budget)

    async def changed(client: Any) -> Any:
        named = [field for field in ("limits", "budgets") if field in body]
        before = await client.send("GET", _path(key_id)) if named else {}
        for field in named:  # the API replaces them as a whole
            body[field] = {
                one: number for one, number in {**before[field], **body[field]}.items() if number is not None
            }
        return await client.send("POST", _path(key_id), body)

    key = ask(url, changed)
    typer.echo(json.dumps(key, indent=2) if as_json else f"{key['id']} changed")


@group.command()
def rotate(
    key_id: KeyId,
    overlap: Annotated[str, typer.Option(metavar="TIME", help="How long the one before still holds: 1h, 7d.")] = "",
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Give a key a new secret, printed this once; its id, limits and budgets stay."""
    overlap_s = _seconds(overlap, "--overlap") if overlap else 0
    _print_new(
        ask(url, lambda client: client.send("POST", f"{_path(key_id)}/rotate", {"overlap_s": overlap_s})), as_json
    )


@group.command()
def revoke(key_id: KeyId, as_json: AsJson = False, url: Url = None) -> None:
    """End a key, everywhere within a second. What it asked for goes on."""
    done = ask(url, lambda client: client.send("DELETE", _path(key_id)))
    typer.echo(json.dumps(done, indent=2) if as_json else f"{done['id']} revoked")


def _path(key_id: str) -> str:
    return f"/v1/keys/{quote(key_id, safe='')}"


@group.command()
def audit(
    limit: Annotated[int, typer.Option(min=1, max=100, help="How many.")] = 20,
    tenant: Annotated[str | None, typer.Option(help="Only what was this one's.")] = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Show who made, changed and revoked which key, the newest first."""
    query = urlencode({"limit": limit, **({"tenant": tenant} if tenant else {})})
    page = ask(url, lambda client: client.send("GET", f"/v1/audit?{query}"))
    if as_json:
        typer.echo(json.dumps(page, indent=2))
        return
    rows = [
        (
            when(entry["at"]),
            entry["action"],
            entry["subject"],
            entry["tenant"],
            f"{entry['by']['key_id'] or ''} ({entry['by']['tenant']})",
            _text(entry["details"]),
        )
        for entry in page["data"]
    ]
    table(("AT", "ACTION", "OF", "TENANT", "BY", "DETAILS"), rows)


def _print_new(key: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(key, indent=2))
        return
    typer.echo(key["key"])
    say(f"{key['id']} of tenant {key['tenant']}, role {key['role']}. The key is not shown again.", dim=True)


def _terms(
    name: str | None,
    expires: str | None,
    models: list[str] | None,
    limits: list[str] | None,
    budgets: list[str] | None,
) -> dict[str, Any]:
    """Those fields of a request that the command line names."""
    told: dict[str, Any] = {"name": name, "models": models or None}
    if expires is not None:
        told["expires_at"] = int(expires) if expires.isdigit() else int(time.time()) + _seconds(expires, "--expires")
    if limits:
        told["limits"] = {one: int(number) if number else None for one, number in _pairs(limits, "--limit")}
    if budgets:
        told["budgets"] = {one: float(number) if number else None for one, number in _pairs(budgets, "--budget")}
    return {field: value for field, value in told.items() if value is not None}


def _pairs(written: Iterable[str], option: str) -> Iterable[tuple[str, str]]:
    for pair in written:
        name, _, number = pair.partition("=")
        if not re.fullmatch(r"none|\d+" if option == "--limit" else r"none|\d+(\.\d+)?", number):
            raise typer.BadParameter(f"{pair!r} is not NAME=NUMBER, nor NAME=none", param_hint=option)
        yield name, "" if number == "none" else number


def _seconds(text: str, option: str) -> int:
    if not (life := _LIFE.fullmatch(text)):
        raise typer.BadParameter(f"{text!r} is not a time like 90d, 12h, 30m or 60s", param_hint=option)
    return int(life[1]) * _SECONDS[life[2]]


def _time(unix: int | None) -> str:
    return "" if unix is None else when(unix)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={_inner(one)}" for name, one in value.items())
    if isinstance(value, float):
        return dollars(value)
    return ", ".join(value) if isinstance(value, list) else "" if value is None else str(value)


def _inner(value: Any) -> str:
    return f"({_text(value)})" if isinstance(value, dict | list) else _text(value)
