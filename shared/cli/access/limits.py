"""`streamspool limits`: what a tenant, or a key, may use. Setting them needs an admin's key in STREAMSPOOL_API_KEY.

Hidden here: that a tenant's limits and a key's stand in different places of the API; and that what is not named stays, for
both. Names of limits are imported when they are needed: pydantic, which comes with them, takes longer than the rest of a start.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Annotated, Any
from urllib.parse import quote, urlencode

import typer

from shared.cli.screen import table
from shared.cli.terms import AsJson, Url, ask

_NONE = "none"

Tenant = Annotated[str | None, typer.Option(help="Whose; `*`: all that have none of their own.")]
KeyId = Annotated[str | None, typer.Option("--key", metavar="ID", help="Of one key, as printed by `keys list`.")]
Pairs = Annotated[
    list[str], typer.Argument(metavar="NAME=NUMBER", help=f"E.g. requests_per_min=600; {_NONE}: as in the settings.")
]

group = typer.Typer(no_args_is_help=True, help="Show and set what a tenant, or a key, may use.")


def add_to(app: typer.Typer) -> None:
    app.add_typer(group, name="limits")


@group.command()
def show(tenant: Tenant = None, key_id: KeyId = None, as_json: AsJson = False, url: Url = None) -> None:
    """Show limits, and what is used of them now; without an option those that hold for you."""
    from shared.config.limits import LIMITS

    _check_one(tenant, key_id)
    if key_id:
        found = ask(url, lambda client: client.send("GET", _key(key_id)))
        parts: list[tuple[str, dict[str, int], dict[str, int]]] = [(f"key {key_id}", found["limits"], {})]
    else:
        query = f"?{urlencode({'tenant': tenant})}" if tenant else ""
        found = ask(url, lambda client: client.send("GET", f"/v1/limits{query}"))
        parts = [(f"tenant {found['tenant']}", found["limits"], found["used"])]
        if not tenant and found["key"]["id"]:
            parts.append((f"key {found['key']['id']}", found["key"]["limits"], found["key"]["used"]))
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    rows = [
        (of, name, str(limits[name]), str(used.get(name, "")))
        for of, limits, used in parts
        for name in LIMITS
        if name in limits
    ]
    if rows:
        table(("OF", "LIMIT", "MOST", "USED"), rows)
    else:
        typer.echo("There are no limits.")


@group.command("set")
def change(pairs: Pairs, tenant: Tenant = None, key_id: KeyId = None, as_json: AsJson = False, url: Url = None) -> None:
    """Set limits; what is not named stays. They hold on all servers within a second."""
    _check_one(tenant, key_id, needed=True)
    told = dict(_numbers(pairs))

    async def of_key(client: Any) -> Any:
        before = (await client.send("GET", _key(key_id)))["limits"]
        after = {name: number for name, number in {**before, **told}.items() if number is not None}
        return await client.send("POST", _key(key_id), {"limits": after})

    async def of_tenant(client: Any) -> Any:
        return await client.send("POST", _tenant(tenant), told)

    _print(ask(url, of_key if key_id else of_tenant), as_json)


@group.command()
def reset(tenant: Tenant = None, key_id: KeyId = None, as_json: AsJson = False, url: Url = None) -> None:
    """Take back all that was set: for a tenant the settings hold then, and a key has no limits of its own."""
    _check_one(tenant, key_id, needed=True)
    if key_id:
        _print(ask(url, lambda client: client.send("POST", _key(key_id), {"limits": {}})), as_json)
    else:
        _print(ask(url, lambda client: client.send("DELETE", _tenant(tenant))), as_json)


def _print(found: dict[str, Any], as_json: bool) -> None:
    """What holds now."""
    limits = ", ".join(f"{name}={number}" for name, number in found["limits"].items()) or "no limits"
    whose = found["id"] if found["object"] == "key" else f"tenant {found['tenant']}"
    typer.echo(json.dumps(found, indent=2) if as_json else f"{whose}: {limits}")


def _check_one(tenant: str | None, key_id: str | None, *, needed: bool = False) -> None:
    if tenant and key_id:
        raise typer.BadParameter("name a tenant or a key, not both", param_hint="--key")
    if needed and not (tenant or key_id):
        raise typer.BadParameter("name whose they are", param_hint="--tenant or --key")


def _numbers(pairs: Iterable[str]) -> Iterable[tuple[str, int | None]]:
    from shared.config.limits import LIMITS

    for pair in pairs:
        name, _, number = pair.partition("=")
        if name not in LIMITS:
            raise typer.BadParameter(
                f"there is no limit {name!r}; there are {', '.join(LIMITS)}", param_hint="NAME=NUMBER"
            )
        if number != _NONE and not re.fullmatch(r"[1-9][0-9]{0,15}", number):
            raise typer.BadParameter(f"{pair!r} is not NAME=NUMBER, nor NAME={_NONE}", param_hint="NAME=NUMBER")
        yield name, None if number == _NONE else int(number)


def _key(key_id: str | None) -> str:
    return f"/v1/keys/{quote(key_id or '', safe='')}"


def _tenant(tenant: str | None) -> str:
    return f"/v1/limits/{quote(tenant or '', safe='')}"
