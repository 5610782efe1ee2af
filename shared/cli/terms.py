"""What the commands share: their common options, how those are read, the settings they run under, and one conversation with
the API.

Hidden here: where the API is looked for and with which key, how Ctrl-C ends a conversation, and that wrong settings end a
command with exit code 2. Most commands only ask, and need no more of the settings than an address: to read them all takes
longer than the rest of a start. So does what typer (0.29) has pydantic do with every word of a command line, if it is let.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from shared.cli.screen import say

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from shared.cli.client import Client
    from shared.config.settings import Settings

T = TypeVar("T")

FAILED, USAGE, INTERRUPTED = 1, 2, 130

Url = Annotated[str | None, typer.Option(help="The API, if not STREAMSPOOL_URL or http://HOST:PORT.", metavar="URL")]
Id = Annotated[str, typer.Argument(metavar="ID", help="As printed by `chat` and `ls`.")]
OfTenant = Annotated[str | None, typer.Option("--tenant", help="With an admin's key: the tenant whose it is.")]
TenantOrAll = Annotated[
    str | None, typer.Option("--tenant", help="With an admin's key: another tenant's, or * for all.")
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]


def variable_of(name: str) -> str | None:
    """From the environment or `.env`. A file that it names and that cannot be read is a wrong setting: exit code 2."""
    from shared.config.environ import SettingsInvalid, environment

    try:
        return environment().get(name)
    except SettingsInvalid as error:
        say(f"{error}", fg="red")
        raise typer.Exit(USAGE) from None


def settings_of(**given: Any) -> Settings:
    """The settings under what the command line says. All that is wrong with them is printed at once; exit code 2."""
    from shared.config.environ import SettingsInvalid
    from shared.config.settings import load_settings

    try:
        return load_settings(**{name: value for name, value in given.items() if value is not None})
    except SettingsInvalid as error:
        say(f"{error}", fg="red")
        raise typer.Exit(USAGE) from None


def ask(url: str | None, question: Callable[[Client], Coroutine[Any, Any, T]], tenant: str | None = None) -> T:
    """Runs one conversation with the API, about what is `tenant`'s if one is named. Raises KeyboardInterrupt."""
    import asyncio
    import signal

    from shared.cli.client import Client, url_of

    base, key = url or variable_of("STREAMSPOOL_URL"), variable_of("STREAMSPOOL_API_KEY")
    base = base or url_of(*_address())

    async def converse() -> T:
        task = asyncio.current_task()
        # asyncio.run has a handler, too, but if Ctrl-C comes in the moment in which the loop falls asleep, that one runs
        # only when something else wakes the loop. This one wakes it. Windows has none; who is in the background hears none.
        if task and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN and sys.platform != "win32":
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, task.cancel)
        return await question(Client(base, key, tenant=tenant))

    try:
        return asyncio.run(converse())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


def fields_of(pairs: list[str]) -> dict[str, Any]:
    """`KEY=VALUE`s as request fields; a value that is JSON is taken as JSON."""
    fields: dict[str, Any] = {}
    for pair in pairs:
        name, separator, value = pair.partition("=")
        if not name or not separator:
            raise typer.BadParameter(f"{pair!r} is not KEY=VALUE", param_hint="-o")
        try:
            fields[name] = json.loads(value)
        except ValueError:
            fields[name] = value
    return fields


def _address() -> tuple[str, int]:
    """Where the API of this directory listens: HOST and PORT as the settings have them. Where they are said in another way than
    plainly, the settings are read."""
    host, port = (variable_of(name) or variable_of(f"STREAMSPOOL_{name}") for name in ("HOST", "PORT"))
    toml = Path(os.environ.get("STREAMSPOOL_CONFIG") or "streamspool.toml")
    if toml.exists() or os.environ.get("STREAMSPOOL_CONFIG") or not _is_port(port or "0"):
        settings = settings_of()
        return settings.host, settings.port
    return host or "127.0.0.1", int(port or 8000)


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) < 65536


def read_plainly(command: Any, ctx: Any) -> None:
    """Has the options and arguments of `command`, and of those below it, read here where they need no more: a text as it was
    typed, a default as it stands in the code. Numbers and paths are left to typer, with its words for what is wrong with
    them. Older versions of it do not ask, and lose nothing."""
    for parameter in command.get_params(ctx):  # the one for help, too, which is made here
        if hasattr(parameter, "get_runtime_param") and not isinstance(
            vars(parameter).get("get_runtime_param"), _Reader
        ):
            parameter.get_runtime_param = _Reader(parameter.get_runtime_param)
    for inner in getattr(command, "commands", {}).values():
        read_plainly(inner, ctx)


class _Reader:
    """Stands in the place of typer's method and of the object that it gives."""

    def __init__(self, typers: Any) -> None:
        self._typers = typers

    def __call__(self) -> _Reader:
        return self

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        annotation = param.type_descriptor.annotation
        if isinstance(value, list | tuple) and annotation == list[str] and all(isinstance(one, str) for one in value):
            return list(value)
        if (isinstance(value, str) and annotation is str) or (value is not None and value is param.default):
            return value
        if value is None:
            return () if param.multiple or param.nargs == -1 else None
        return self._typers().coerce(value, param=param, ctx=ctx)
