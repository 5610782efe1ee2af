"""The `streamspool` command.

Hidden here: arguments and exit codes: 0 done, 1 failed, 2 wrong usage or settings, 130 Ctrl-C. What is shown is screen.py's.
Heavy modules are imported by the commands that need them, so that `--help` stays quick.
"""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from shared import __version__
from shared.cli import looking
from shared.cli.access import keys, limits
from shared.cli.screen import Progress, Screen, coloured, count, say
from shared.cli.terms import (
    FAILED,
    INTERRUPTED,
    USAGE,
    AsJson,
    Id,
    OfTenant,
    Url,
    ask,
    fields_of,
    read_plainly,
    settings_of,
    variable_of,
)
from shared.errors import StreamspoolError, Unusable

if TYPE_CHECKING:
    from shared.cli.client import Client
    from shared.cli.supervisor import Supervisor
    from shared.config.settings import Settings

_POSITION = re.compile(r"[0-9]+(-[0-9]+)?")


class _Commands(TyperGroup):
    """Turns errors that are not bugs into one line and an exit code."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # typer brings a Context of its own, or click's
        read_plainly(self, ctx)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except StreamspoolError as error:
            say(f"Error: {error.message}", fg="red")
            if error.code == "invalid_api_key":
                say("The key that the command line sends is STREAMSPOOL_API_KEY, from the environment or .env.")
            raise typer.Exit(USAGE if isinstance(error, Unusable) else FAILED) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except ModuleNotFoundError as error:
            name = (error.name or "").partition(".")[0]
            if name in ("", "api", "shared", "worker"):
                raise
            say(
                f"This installation can only ask: {name} is missing. Install the package with its dependencies.",
                fg="red",
            )
            raise typer.Exit(USAGE) from None


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,  # rich takes 0.3 s to import
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
Local = Annotated[bool, typer.Option("--local", help="Run a small real model, too: local/…. [STREAMSPOOL_LOCAL_MODEL]")]
Apis = Annotated[
    int, typer.Option(min=1, max=64, help="API processes; they share the port. SIGHUP replaces them one by one.")
]
Port = Annotated[int | None, typer.Option(min=0, max=65535, help="Port of the API, 0: any free one. [PORT, 8000]")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"streamspool {__version__}")
        raise typer.Exit


@app.callback()
def streamspool(
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True)] = False,
) -> None:
    """LLM answers, generated once, kept in Redis, watched by many, resumed by anyone. Start with `demo` or `up`."""


@app.command()
def up(
    host: Annotated[str | None, typer.Option(help="Address of the API. [HOST, 127.0.0.1]")] = None,
    port: Port = None,
    workers: Annotated[int, typer.Option(min=1, max=64, help="Worker processes.")] = 1,
    apis: Apis = 1,
    data_dir: Annotated[
        Path | None, typer.Option(help="Where all is kept. [STREAMSPOOL_DATA_DIR, ~/.local/share/streamspool]")
    ] = None,
    local: Local = False,
) -> None:
    """Start everything on this machine: API, workers and, without REDIS_URL, an embedded Valkey."""
    settings = settings_of(host=host, port=port, data_dir=data_dir, local_model=local or None)
    import asyncio

    from shared.cli.supervisor import commands, serve
    from shared.config.providers import NAME
    from shared.lib.telemetry import configure_logging

    configure_logging(settings.log_level)

    def ready(supervisor: Supervisor) -> None:
        typer.echo(f"Streamspool is ready at {supervisor.url} (Ctrl-C ends it). Try:")
        model = NAME if settings.local_model else "fake/echo"
        typer.echo(f"  streamspool chat 'Hello there' -m {model} --url {supervisor.url}")
        if settings.console == "on":
            typer.echo(f"The console: {supervisor.url}/console/")

    asyncio.run(serve(settings, commands(workers, apis), ready))


@app.command()
def api(
    host: Annotated[str | None, typer.Option(help="Address to listen on. [HOST, 127.0.0.1]")] = None,
    port: Port = None,
    apis: Apis = 1,
) -> None:
    """Run the HTTP end alone, against REDIS_URL."""
    if apis == 1:
        _become("api", host=host, port=port)
    settings = _sharing("api", host=host, port=port)
    import asyncio

    from shared.cli.supervisor import commands, serve
    from shared.lib.telemetry import configure_logging

    configure_logging(settings.log_level)
    asyncio.run(serve(settings, commands(0, apis), lambda running: say(f"{apis} API processes serve at {running.url}")))


@app.command()
def worker(
    concurrency: Annotated[
        int | None, typer.Option(min=1, help="Answers at once. [STREAMSPOOL_WORKER_CONCURRENCY, 200]")
    ] = None,
) -> None:
    """Run the upstream end alone, against REDIS_URL."""
    _become("worker", worker_concurrency=concurrency)


@app.command()
def demo(
    once: Annotated[bool, typer.Option("--once", help="End after the verdict instead of staying up.")] = False,
    browser: Annotated[
        bool, typer.Option("--browser", help="Show five viewers in a browser as well, in the console.")
    ] = False,
    port: Port = None,
    local: Local = False,
) -> None:
    """Show it: one answer, several viewers, the API killed in mid-stream, and nobody misses a token."""
    settings = settings_of(port=port, local_model=local or None)
    import asyncio

    from shared.cli.demo import run

    raise typer.Exit(asyncio.run(run(settings, once=once, browser=browser)))


@app.command()
def chat(
    prompt: Annotated[str, typer.Argument(help="What to say; `-` reads it from stdin.")],
    model: Annotated[str, typer.Option("-m", "--model", help="PROVIDER/MODEL, see `models`.")],
    system: Annotated[str | None, typer.Option("-s", "--system", help="System message.")] = None,
    option: Annotated[
        list[str] | None, typer.Option("-o", "--option", metavar="KEY=VALUE", help="Request field, e.g. temperature=0.")
    ] = None,
    no_stream: Annotated[bool, typer.Option("--no-stream", help="Print the answer when it is whole.")] = False,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Ask a model. Ctrl-C only stops watching: the answer goes on, and the way back to it is printed."""
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages.append({"role": "user", "content": sys.stdin.read() if prompt == "-" else prompt})
    body = {**fields_of(option or []), "model": model, "messages": messages}
    if as_json and no_stream:
        typer.echo(json.dumps(ask(url, lambda client: client.complete(body)), indent=2))
    else:
        _follow(url, body, "", "", None, no_stream=no_stream, as_json=as_json)


@app.command()
def watch(
    generation_id: Id,
    start: Annotated[str, typer.Option("--from", metavar="POSITION", help="Only what comes after it.")] = "",
    tenant: OfTenant = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Watch an answer from its start, or from a position, to its end."""
    if start and not _POSITION.fullmatch(start):
        raise typer.BadParameter("a position looks like 1-17", param_hint="--from")
    _follow(url, None, generation_id, start, tenant, no_stream=False, as_json=as_json)


@app.command()
def batch(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Lines of JSON: prompts, requests, or a batch's lines.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the answers go; errors go beside it.")],
    model: Annotated[str | None, typer.Option("-m", "--model", help="For lines that name none.")] = None,
    as_json: AsJson = False,
    url: Url = None,
) -> None:
    """Ask many times. Ctrl-C only stops watching: given again, the command goes on where it was."""
    from shared.cli import batch as bulk

    if not source.is_file():
        raise typer.BadParameter(f"{source} is not a file", param_hint="IN")
    if output.exists():
        raise typer.BadParameter(f"{output} exists already", param_hint="-o")
    with Progress() as progress:
        try:
            done = ask(url, lambda client: bulk.run(client, source, model, output, progress.show))
        except KeyboardInterrupt:
            progress.close()
            if bulk.state_beside(output).exists():
                say("\nNo longer watching; the batch goes on. To get its answers, give the same command again.")
            raise typer.Exit(INTERRUPTED) from None
    counts = done.batch["request_counts"]
    tokens = (done.batch.get("usage") or {}).get("output_tokens", 0)
    parts = [done.batch["id"], done.batch["status"], count(counts["completed"], "answer"), count(tokens, "token")]
    say(" · ".join(parts), dim=True)
    for error in (done.batch.get("errors") or {}).get("data", []):
        say(f"line {error['line']}: {error['message']}" if error["line"] else error["message"], fg="red")
    if done.errors:
        say(f"{count(counts['failed'], 'line')} failed: {done.errors}", fg="red")
    if as_json:
        typer.echo(json.dumps(done.batch, indent=2))
    if done.batch["status"] != "completed" or counts["failed"]:
        raise typer.Exit(FAILED)


@app.command()
def cancel(generation_id: Id, tenant: OfTenant = None, as_json: AsJson = False, url: Url = None) -> None:
    """End an answer; what it said so far is kept."""
    state = ask(url, lambda client: client.cancel(generation_id), tenant)
    typer.echo(json.dumps(state, indent=2) if as_json else f"{state['id']} {state['status']}")


looking.add_to(app)
keys.add_to(app)
limits.add_to(app)


@app.command()
def config(as_json: AsJson = False) -> None:
    """Print the settings as they are in effect, secrets masked; on stderr, what of them does nothing."""
    import asyncio

    from shared.cli.findings import ask_worker
    from shared.config.notices import notices
    from shared.config.settings import variable
    from shared.config.shown import shown

    settings = settings_of()
    rows = {variable(name): shown(name, getattr(settings, name)) for name in type(settings).model_fields}
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
    for name, text in () if as_json else rows.items():
        typer.echo(f"{name}={text or '(none)'}")
    report = asyncio.run(ask_worker(ask=False))
    for line in [*notices(settings), *report["notices"]]:
        say(line, fg="yellow")
    if report["error"]:
        say(report["error"], fg="red")
        raise typer.Exit(USAGE)


@app.command()
def doctor(as_json: AsJson = False, url: Url = None) -> None:
    """Check this machine and say what to do about each thing that is wrong. With --url, also the proxy in front."""
    from shared.cli.doctor import examine

    settings = settings_of()
    named = url is not None or bool(variable_of("STREAMSPOOL_URL"))
    findings = ask(url, lambda client: examine(settings, client, named=named))
    if as_json:
        typer.echo(json.dumps([finding._asdict() for finding in findings], indent=2))
    marks: dict[bool | None, tuple[str, str | None]] = {
        True: ("ok  ", None),
        None: ("note", "yellow"),
        False: ("FAIL", "red"),
    }
    for finding in () if as_json else findings:
        mark, colour = marks[finding.ok]
        typer.secho(f"{mark} {finding.what}: {finding.found}", fg=colour, color=coloured(sys.stdout))
    if any(finding.ok is False for finding in findings):
        raise typer.Exit(FAILED)


@app.command("move-queue")
def move_queue(
    back: Annotated[
        bool, typer.Option("--back", help="Leave it where it was, after a move that ended halfway.")
    ] = False,
) -> None:
    """Move the queue, keys, limits and usage of a stopped installation to STREAMSPOOL_QUEUE_URL, for good."""
    import asyncio

    from shared.store.cluster.moving import move

    settings = settings_of()
    if settings.control_url is not None and not back:
        say("Looking whether anything of it runs …", dim=True)
    moved = asyncio.run(move(settings, back=back))
    kept = "All is where it was. Start without STREAMSPOOL_QUEUE_URL."
    typer.echo(
        kept if back else f"{count(moved, 'key')} moved. Start with REDIS_URL and STREAMSPOOL_QUEUE_URL from now on."
    )


def _sharing(end: str, **given: Any) -> Settings:
    """The settings of an end that runs apart from the other one."""
    settings = settings_of(**given)
    if settings.redis_url is None:
        say(f"`streamspool {end}` needs REDIS_URL, the Redis or Valkey it shares with the other end.", fg="red")
        say("To run everything on this machine without one: `streamspool up`.")
        raise typer.Exit(USAGE)
    return settings


def _become(end: str, **given: Any) -> NoReturn:
    """Goes on as that end. What the command line says is told to it as variables, over those that are set."""
    from shared.config.environ import FILE
    from shared.config.settings import variable

    _sharing(end, **given)
    from shared.cli.supervisor import command

    environment = dict(os.environ)
    for name, value in given.items():
        if value is not None:
            environment[variable(name)] = str(value)
            environment.pop(variable(name) + FILE, None)
    sys.stdout.flush()
    os.execve(sys.executable, command(end), environment)


def _follow(
    url: str | None,
    body: dict[str, Any] | None,
    generation_id: str,
    start: str,
    tenant: str | None,
    *,
    no_stream: bool,
    as_json: bool,
) -> None:
    """Shows one answer, new (`body`) or running, to its end."""
    from shared.cli.client import View

    view = View(generation_id, start)
    screen = Screen(no_stream=no_stream, as_json=as_json)

    async def to_the_end(client: Client) -> dict[str, Any]:
        if body is not None:
            await client.submit(body, view, screen.show)
        else:
            await client.watch(view, screen.show)
        return await client.state(view.id)

    try:
        state = ask(url, to_the_end, tenant)
    except KeyboardInterrupt:
        if view.id:
            told = (("--from", view.position), ("--tenant", tenant))
            options = "".join(f" {option} {value}" for option, value in told if value)
            say(f"\nNo longer watching; the answer goes on. To see the rest:\n  streamspool watch {view.id}{options}")
        raise typer.Exit(INTERRUPTED) from None
    screen.close()
    if view.error is not None:
        status = (state.get("error") or {}).get("status")
        parts = (f"HTTP {status}" if status else "", str(view.error.get("code") or ""))
        raise StreamspoolError(f"{view.error.get('message')} ({', '.join(filter(None, parts))}; {view.id})")
    say(screen.figures(state), dim=True)


if __name__ == "__main__":
    app()
