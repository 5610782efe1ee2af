"""`streamspool limits`: what a tenant, or a key, may use, and what it may spend. To set limits takes an admin's key.

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

from shared.cli.screen import dollars, table
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
    """Show limits and budgets, and what is used of them now; without an option those that hold for you."""
    from shared.config.limits import LIMITS

    _check_one(tenant, key_id)
    if key_id:
        found = ask(url, lambda client: client.send("GET", _key(key_id)))
        parts = [(f"key {key_id}", {**found, "budgets": _set(found["budgets"])})]
    else:
        query = f"?{urlencode({'tenant': tenant})}" if tenant else ""
        found = ask(url, lambda client: client.send("GET", f"/v1/limits{query}"))
        parts = [(f"tenant {found['tenant']}", found)]
        if not tenant and found["key"]["id"]:
            parts.append((f"key {found['key']['id']}", found["key"]))
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    rows = [
        row
        for of, one in parts
        for row in [
            *((of, name, str(one["limits"][name]), _text(one, name)) for name in LIMITS if name in one["limits"]),
            *((of, *_budget(budget)) for budget in one["budgets"]),
        ]
    ]
    if rows:
        table(("OF", "LIMIT", "MOST", "USED"), rows)
    else:
        typer.echo("There are no limits and no budgets.")


def _text(of: dict[str, Any], name: str) -> str:
    return str(of.get("used", {}).get(name, ""))


def _set(budgets: dict[str, float]) -> list[dict[str, Any]]:
    """A key's budgets, which it has by name, as `/v1/limits` lists them; what is spent of them is told there alone."""
    return [
        {
            "period": name.removesuffix("_usd").removeprefix("soft_"),
            "hard": not name.startswith("soft_"),
            "limit_usd": usd,
        }
        for name, usd in budgets.items()
    ]


def _budget(budget: dict[str, Any]) -> tuple[str, str, str]:
    spent = budget.get("spent_usd")
    name = f"{'' if budget['hard'] else 'soft_'}{budget['period']}_usd"
    return name, dollars(budget["limit_usd"]), "" if spent is None else dollars(spent)


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
