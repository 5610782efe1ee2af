"""The show: one answer, five viewers, the API killed in mid-stream, and a verdict on what each viewer got.

Hidden here: who joins when, how a gap or a duplicate is noticed (by the positions, and by comparing every text with
the stored answer), and the two ways to show it: a live table on a terminal, plain lines anywhere else. It runs on the
very `Supervisor` and `Client` that `up` and `watch` use; nothing is staged but the kill.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import tempfile
import time
import webbrowser
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from shared.cli.client import Client, Event, View
from shared.cli.embedded import CannotStart
from shared.cli.supervisor import Supervisor, commands, ending_on_signals, listen
from shared.config.providers import NAME
from shared.config.settings import Settings
from shared.errors import StreamspoolError
from shared.log.entry import Position, follows

TOKENS = 240
TOKENS_PER_S = 60
REQUEST = {
    "model": f"fake/lorem?tokens={TOKENS}&rate={TOKENS_PER_S}",
    "messages": [{"role": "user", "content": "Tell me something long."}],
}
SLOWER_TOKENS_PER_S = 12
"""With a browser, which takes some seconds to come up."""
LOCAL_REQUEST = {
    "model": NAME,
    "messages": [{"role": "user", "content": "Tell me a long story about a lighthouse keeper and the sea."}],
    "max_tokens": TOKENS,
    "ignore_eos": True,  # llama.cpp's: the model must not end before the show does
    "seed": 1,
}
LATE_AT, MIDDLE_AT, KILL_AT = 40, 70, 100
"""Tokens the first viewer has seen when the others join, and when the API is killed."""

AUDIENCE = 8
"""With a browser: so many watch before the API is killed, four of them at the terminal, and four in the browser."""
BROWSER_S = 10.0
WHOLE_SHOW_S = 60.0
DRAIN_S = 1.0
_TICK_S = 0.05
_BAR = 24
_INTERRUPTED = 130
_LOG_LINES = 20


@dataclass
class Viewer:
    """One reader: what it got, and what went wrong on the way. `before` is what was said before it joined, in as many
    tokens as `skipped`.
    """

    name: str
    joined: str
    view: View
    before: str = ""
    skipped: int = 0
    text: str = ""
    tokens: int = 0
    gaps: int = 0
    duplicates: int = 0
    trouble: str = ""
    ended: bool = False
    _last: Position | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.view.position:
            self._last = Position.parse(self.view.position)

    def show(self, event: Event) -> None:
        """Takes one event of the stream, and counts what must not happen."""
        if event.kind == "error":
            self.trouble = str(event.data["error"].get("message"))
            return
        position = Position.parse(event.position)
        if event.kind == "attempt":
            self.text, self.tokens = "", 0
        elif self._last is not None and position <= self._last:
            self.duplicates += 1
        elif not follows(self._last or Position(position.epoch, 0), position):
            self.gaps += 1
        self._last = position
        self.text += event.text
        self.tokens += bool(event.text)

    def is_whole(self, answer: str) -> bool:
        """Every token of the stored answer, each once, and a proper end."""
        unhurt = self.ended and not (self.gaps or self.duplicates or self.trouble)
        return unhurt and bool(answer) and self.before + self.text == answer


class _Stage:
    """What the audience sees: lines as things happen, and on a terminal a table that moves under them."""

    def __init__(self) -> None:
        self.viewers: list[Viewer] = []
        self._console = Console(width=None if sys.stdout.isatty() else 110, highlight=False)
        self._began = time.monotonic()
        self._live: Live | None = None

    def say(self, line: str) -> None:
        self._console.print(f"[dim]{time.monotonic() - self._began:5.1f} s[/dim]  {line}")

    def show(self, table: Table) -> None:
        self._console.print()
        self._console.print(table)

    async def move(self) -> None:
        """Redraws until cancelled."""
        if not self._console.is_terminal:
            return
        with Live(console=self._console, auto_refresh=False, transient=True) as live:
            while True:
                live.update(self._progress(), refresh=True)
                await asyncio.sleep(_TICK_S)

    def _progress(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for viewer in self.viewers:
            done = min(_BAR, round(_BAR * (viewer.skipped + viewer.tokens) / TOKENS))
            words = " ".join(viewer.text.split()[-4:])
            table.add_row(viewer.name, "━" * done + "[dim]" + "─" * (_BAR - done) + "[/dim]", words)
        return table


class _Show:
    """One run, from the first viewer to the verdict."""

    def __init__(
        self, supervisor: Supervisor, client: Client, stage: _Stage, request: dict[str, Any], *, browser: bool
    ) -> None:
        self._request = request
        self._browser = browser
        self._supervisor = supervisor
        self._client = client
        self._stage = stage
        self._first = Viewer("live", "at the start", View())
        self._readers: asyncio.TaskGroup | None = None

    async def play(self) -> bool:
        """Whether all went as it should."""
        async with asyncio.TaskGroup() as background:
            moving = background.create_task(self._stage.move())
            async with asyncio.TaskGroup() as readers:
                await self._act(readers)
            moving.cancel()
        return await self._judge()

    async def _act(self, readers: asyncio.TaskGroup) -> None:
        first = self._first
        self._join(readers, first)
        await _until(lambda: bool(first.view.position) or first.ended)
        if first.ended:
            return
        if self._browser:
            _open_page(f"{self._supervisor.url}/console/viewers/{first.view.id}", self._stage)
        self._join(readers, Viewer("twin", "at the start, by GET", View(first.view.id)))
        await _until(lambda: first.tokens >= LATE_AT or first.ended)
        self._join(readers, Viewer("late", f"late, at token {first.tokens}", View(first.view.id)))
        await _until(lambda: first.tokens >= MIDDLE_AT or first.ended)
        here = View(first.view.id, first.view.position)
        middle = Viewer("middle", f"at position {here.position}", here, before=first.text, skipped=first.tokens)
        self._join(readers, middle)
        await _until(lambda: first.tokens >= KILL_AT or first.ended)
        if self._browser:
            await self._audience()
        old = self._supervisor.pids()["api"]
        self._supervisor.kill("api")
        self._stage.say(f"[bold red]the API (PID {old}) is killed with SIGKILL[/bold red] at token {first.tokens}")
        self._join(readers, Viewer("after", "while the API was dead", View(first.view.id)))
        killed = time.monotonic()
        await _until(lambda: self._supervisor.pids().get("api", old) != old)
        with contextlib.suppress(CannotStart):  # then no viewer is whole, and the verdict says so
            await self._supervisor.wait_ready(WHOLE_SHOW_S)
            new = self._supervisor.pids()["api"]
            self._stage.say(f"[green]the API is back (PID {new})[/green] after {time.monotonic() - killed:.1f} s")

    async def _audience(self) -> None:
        """Waits for the browser, for some time."""
        with contextlib.suppress(TimeoutError, StreamspoolError):
            async with asyncio.timeout(BROWSER_S):
                while True:
                    state = await self._client.state(self._first.view.id)
                    if state["viewers"] >= AUDIENCE or self._first.ended:
                        return
                    await asyncio.sleep(_TICK_S)

    def _join(self, readers: asyncio.TaskGroup, viewer: Viewer) -> None:
        self._stage.viewers.append(viewer)
        self._stage.say(f"viewer [bold]{viewer.name}[/bold] joins {viewer.joined}")
        readers.create_task(self._read(viewer))

    async def _read(self, viewer: Viewer) -> None:
        try:
            async with asyncio.timeout(WHOLE_SHOW_S):
                if viewer is self._first:
                    await self._client.submit(self._request, viewer.view, viewer.show)
                else:
                    await self._client.watch(viewer.view, viewer.show)
        except StreamspoolError as error:
            viewer.trouble = error.message
        except TimeoutError:
            viewer.trouble = f"not ended after {WHOLE_SHOW_S:g} s"
        finally:
            viewer.ended = True

    async def _judge(self) -> bool:
        if not self._first.view.id:
            raise StreamspoolError(f"The answer could not be started: {self._first.trouble}")
        state = await self._client.state(self._first.view.id)
        choices = (await self._client.answer(self._first.view.id))["choices"]
        answer = str(choices[0]["message"]["content"]) if choices else ""
        table = Table(title="What each viewer got", title_justify="left")
        for column in ("viewer", "joined", "tokens", "reconnects", "gaps", "duplicates", "whole"):
            table.add_column(column, justify="left" if column in ("viewer", "joined") else "right")
        tokens = (state.get("usage") or {}).get("completion_tokens")
        whole = tokens == TOKENS
        for viewer in self._stage.viewers:
            well = viewer.is_whole(answer)
            whole = whole and well
            counts = (viewer.tokens, viewer.view.reconnects, viewer.gaps, viewer.duplicates)
            verdict = "[green]yes[/green]" if well else f"[red]no[/red] {viewer.trouble}"
            table.add_row(viewer.name, viewer.joined, *map(str, counts), verdict)
        self._stage.show(table)
        self._stage.say(f"{tokens} of {TOKENS} tokens stored, status {state['status']}")
        self._stage.say(f"upstream calls: {state['attempts']} (the worker never noticed the API's death)")
        return whole and state["attempts"] == 1

    def farewell(self, locked: bool) -> None:
        header = "-H 'Authorization: Bearer YOUR-KEY' " if locked else ""
        self._stage.say(f"still up at {self._supervisor.url}; Ctrl-C ends it. Read the answer again, or from anywhere:")
        print(f"  curl -N {header}{self._supervisor.url}/v1/streams/{self._first.view.id}", flush=True)
        page = f"{self._supervisor.url}/console/r/{self._first.view.id}"
        if has_display() and not self._browser:
            _open_page(page, self._stage)
        else:
            self._stage.say(f"or look at it in a browser: {page}")


def has_display() -> bool:
    """Whether a browser that is opened would be seen by who runs this."""
    return sys.stdout.isatty() and (
        sys.platform == "darwin" or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
    )


def _open_page(url: str, stage: _Stage) -> None:
    opened = has_display() and webbrowser.open(url)
    stage.say(f"{'opened' if opened else 'open'} in a browser: {url}")


async def run(settings: Settings, *, once: bool, browser: bool = False) -> int:
    """The whole demo; returns the exit code, 0 only if every viewer got the whole answer from one upstream call.

    Raises StreamspoolError when something needed is not there.
    """
    stage = _Stage()
    code = _INTERRUPTED
    with _backstage(settings) as (settings, output), contextlib.suppress(asyncio.CancelledError):
        key = next((keys[0].get_secret_value() for keys in (settings.api_keys or settings.admin_keys).values()), None)
        supervisor = Supervisor(settings, commands(1), output=output)
        with ending_on_signals(supervisor.hurry):
            model = f", and the model {NAME}" if settings.local_model else ""
            stage.say(f"starting Valkey, a worker and the API{model}")
            async with supervisor:
                await supervisor.wait_ready()
                stage.say(f"ready at {supervisor.url}")
                slower = {"model": f"fake/lorem?tokens={TOKENS}&rate={SLOWER_TOKENS_PER_S}"} if browser else {}
                request = LOCAL_REQUEST if settings.local_model else REQUEST | slower
                show = _Show(supervisor, Client(supervisor.url, key), stage, request, browser=browser)
                code = 0 if await show.play() else 1
                if not once:
                    show.farewell(locked=key is not None)
                    await asyncio.Event().wait()
    return code


@contextlib.contextmanager
def _backstage(settings: Settings) -> Iterator[tuple[Settings, IO[bytes]]]:
    """A data directory and a log that are gone afterwards; the log's end is printed if nothing could be shown."""
    with tempfile.TemporaryDirectory(prefix="streamspool-demo-") as directory:
        log = Path(directory, "log")
        logging.basicConfig(filename=log, level=logging.INFO)
        changes = {"data_dir": Path(directory), "port": _free_port(settings), "drain_s": DRAIN_S}
        try:
            with log.open("ab") as output:
                yield settings.model_copy(update=changes), output
        except CannotStart:
            lines = log.read_text(errors="replace").splitlines(keepends=True)
            sys.stderr.write("".join(lines[-_LOG_LINES:]))
            raise
        finally:
            logging.shutdown()


def _free_port(settings: Settings) -> int:
    """The port that was asked for; the default one only if it is free."""
    if "port" in settings.model_fields_set:
        return settings.port
    try:
        listen(settings.host, settings.port).close()
    except CannotStart:
        return 0
    return settings.port


async def _until(condition: Callable[[], bool]) -> None:
    """Waits for it, within the show's time; what did not happen by then shows in the verdict."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(WHOLE_SHOW_S):
            while True:
                if condition():
                    return
                await asyncio.sleep(_TICK_S / 5)
