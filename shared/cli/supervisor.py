"""One machine's Streamspool: socket, Valkey, local model, API and workers, started, kept alive and ended together.

Hidden here: the socket is bound once and handed to each API process, so that connections wait in its backlog while the
API restarts, and no process that ends takes any with it (docs/decisions/0020); whatever dies is started again (after
0.2 s, doubling to 5 s, forgotten after 10 s of life); APIs are replaced one after the other, each by one that serves
already; the order of the end is API and workers first, all at once, then what they work with: the model, and last Valkey.
On Linux nothing survives the supervisor, not even its SIGKILL.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from importlib.util import find_spec
from types import TracebackType
from typing import IO, Literal, Self

from shared.cli.children import Child, End, end_all
from shared.cli.client import Client, url_of
from shared.cli.embedded import CannotStart, EmbeddedValkey
from shared.cli.local_model import Address, find_model
from shared.config.environ import FILE
from shared.config.notices import SILENT, weak_keys
from shared.config.settings import Settings
from shared.errors import StreamspoolError, Unusable
from shared.lib.process import LISTEN_FD, WRONG_SETTINGS, inherited
from shared.lib.process import listen as listen_at

HISTORY = "history.sqlite3"
"""In the data directory."""
FIRST_BACKOFF_S = 0.2
LAST_BACKOFF_S = 5.0
SETTLED_S = 10.0
"""A child that lived this long was well: the next back-off starts from the beginning."""

GIVE_UP_STARTS = 4
"""A child started this often before the first readiness is broken, not unlucky."""

_POLL_S = 0.05
_READY_POLL_S = 0.1
_READY_TIMEOUT_S = 3.0
_MODEL = "local-model"
_FIRST_WORKER = "worker-1"

logger = logging.getLogger(__name__)


def listen(host: str, port: int, option: str = "--port") -> socket.socket:
    """A TCP socket that queues connections from now on. Raises CannotStart with the way out when that cannot be had:
    `option` is what to change."""
    try:
        first, *others = listen_at(host, port)
        for other in others:
            other.close()
        return first
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            reason = f"it is taken. End the program that uses it, or choose another with {option} (0: any free one)"
        elif error.errno == errno.EACCES:
            reason = f"that needs more rights. Choose a port over 1023 with {option}"
        else:
            reason = f"{error.strerror}. Choose an address of this machine with --host"
        raise CannotStart(f"Cannot listen on port {port} of {host}: {reason}.") from None


def command(end: str) -> list[str]:
    """Starts `api`, `worker` or another module: ours, whatever stands in the current directory (-P)."""
    return [sys.executable, "-P", "-m", end]


def commands(workers: int, apis: int = 1) -> dict[str, list[str]]:
    """What a whole Streamspool consists of: `{"api": argv, "worker-1": argv, …}`; further APIs are `api-2`, ….

    All APIs accept from one socket."""
    ends = {"api": command("api"), **{f"api-{number}": command("api") for number in range(2, apis + 1)}}
    return {**ends, **{f"worker-{number}": command("worker") for number in range(1, workers + 1)}}


def _is_api(name: str) -> bool:
    return name == "api" or name.startswith("api-")


class Supervisor:
    """Everything runs from `__aenter__` to `__aexit__`; enter it in the main thread.

    `children` maps names to argv (see `commands`); those called `api…` get the listening socket, and one of their own if the
    settings have a port for it. `output` takes what the children print, by default this process's stderr. Names for `kill`
    and `pids`: the children's, `valkey` and, if the settings ask for it, `local-model`.
    `url` is where clients on this machine reach the API, once entered.

    Raises CannotStart: port taken, data directory in use, no Valkey to be had, local model not installed. Raises
    Unusable for settings that can never work: a wrong REDIS_URL, a public address without API keys.
    """

    def __init__(
        self, settings: Settings, children: Mapping[str, Sequence[str]], *, output: IO[bytes] | None = None
    ) -> None:
        self._settings = settings
        self._commands = children
        self._output = output
        self._valkey: EmbeddedValkey | None = None
        self._model: Address | None = None
        self._ends: dict[str, End] = {}
        self._stopping = asyncio.Event()
        self._replacing = asyncio.Event()
        self._stack = AsyncExitStack()
        self._port = 0
        self.url = ""

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            handed = [stack.enter_context(one) for one in inherited()]
            listener = handed[0] if handed else stack.enter_context(listen(self._settings.host, self._settings.port))
            host, port = listener.getsockname()[:2]
            self._refuse_open_door(host)
            own = self._own_listeners(stack)
            self._port, self.url = port, url_of(host, port)
            if self._settings.local_model:
                find_model()
                self._model = stack.enter_context(Address())
            if self._settings.redis_url is not None:
                from shared.store.contact import check_servers  # not needed by most, and not quick

                await check_servers(self._settings)
            else:
                self._valkey = EmbeddedValkey(self._settings.data_dir, maxmemory=self._settings.embedded_maxmemory)
                stack.push_async_callback(asyncio.to_thread, self._valkey.stop)
                self._valkey.launch()
                await asyncio.to_thread(self._valkey.wait_ready)
            keepers = await stack.enter_async_context(asyncio.TaskGroup())
            stack.push_async_callback(self._end_children)
            if self._valkey is not None:
                keepers.create_task(self._keep("valkey", self._valkey))
            model = {_MODEL: command("shared.cli.local_model")} if self._model else {}
            for name, argv in {**model, **self._commands}.items():
                fds = (listener.fileno(), *own.get(name, ())) if _is_api(name) else ()
                self._ends[name] = End(argv, self._environment(name, fds), fds, self._output)
                keepers.create_task(self._keep(name, self._ends[name]))
            keepers.create_task(self._replace())
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # A TaskGroup would hide what ended its body in a group, in which nobody looks for it. Its tasks end by themselves.
        told = (None, None, None) if isinstance(error, Exception) else (kind, error, traceback)
        await self._stack.__aexit__(*told)

    def pids(self) -> dict[str, int]:
        """Of everything that runs at this instant."""
        running: dict[str, Child] = {**self._ends, **({"valkey": self._valkey} if self._valkey else {})}
        return {name: pid for name, child in running.items() if (pid := child.pid) is not None}

    def kill(self, name: str, sign: signal.Signals = signal.SIGKILL) -> None:
        """Sends a signal to one part, which is started again when it ends. Raises KeyError when it does not run."""
        os.kill(self.pids()[name], sign)

    def hurry(self) -> None:
        """Ends the children without letting them drain; only of use while stopping."""
        for end in self._ends.values():
            end.kill()

    def replace_apis(self) -> None:
        """Has each API process followed by a new one, one after the other; the new ones read the settings anew, but for what
        the command line and the environment say. Asked for once more meanwhile, it begins again afterwards."""
        self._replacing.set()

    async def wait_ready(self, timeout_s: float = 60, wanted: Literal["both", "serve"] = "both") -> None:
        """Returns when GET /readyz says ok, and the model server its /health. Raises CannotStart when time is up or a
        child keeps ending; Unusable when one says that it can never start like this."""
        deadline = time.monotonic() + timeout_s
        client = Client(self.url)
        while missing := await self._missing(client, wanted):
            for name, end in self._ends.items():
                if end.exit_code == WRONG_SETTINGS:
                    raise Unusable(f"{name} cannot start with these settings; what it printed says why.")
                if end.starts >= GIVE_UP_STARTS:
                    raise CannotStart(f"{name} keeps ending as soon as it is started; what it printed says why.")
            if time.monotonic() > deadline:
                raise CannotStart(f"Not ready after {timeout_s:g} s. {missing}")
            await self._pause(_READY_POLL_S)

    async def _missing(self, client: Client, wanted: str) -> str:
        """What is not ready; empty when all is."""
        try:
            async with asyncio.timeout(_READY_TIMEOUT_S):
                readiness = await client.ready(wanted)
        except (StreamspoolError, TimeoutError) as error:
            return f"{self.url}/readyz: no answer ({type(error).__name__})"
        if readiness.get("status") != "ok":
            return f"{self.url}/readyz: {readiness.get('checks')}"
        return "" if self._model is None or await self._model.is_answering() else "The local model does not answer."

    async def _keep(self, name: str, child: Child) -> None:
        delay = FIRST_BACKOFF_S
        while not self._stopping.is_set():
            started = time.monotonic()
            try:
                child.launch()
                while child.pid is not None:
                    await self._pause(_POLL_S)
                    if self._stopping.is_set():
                        return
                reason = "it ended"
            except (OSError, CannotStart) as error:
                reason = str(error)
            if time.monotonic() - started >= SETTLED_S:
                delay = FIRST_BACKOFF_S
            logger.warning("%s: %s; starting it again in %.1f s", name, reason, delay)
            await self._pause(delay)
            delay = min(2 * delay, LAST_BACKOFF_S)

    async def _replace(self) -> None:
        """Whenever it is asked for. One that does not come to serve ends the round: the others stay as they are."""
        apis = {name: end for name, end in self._ends.items() if _is_api(name)}
        while not self._stopping.is_set():
            if not self._replacing.is_set():
                await self._pause(_POLL_S)
                continue
            self._replacing.clear()
            try:
                for name, end in apis.items():
                    if not self._stopping.is_set():
                        await end.follow(self._settings.drain_s)
                        logger.info("%s: replaced", name)
            except (OSError, CannotStart) as error:
                logger.error("%s: not replaced: %s. It goes on as it was, and so do those after it", name, error)

    async def _pause(self, seconds: float) -> None:
        """Sleeps, but not past the order to stop."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    async def _end_children(self) -> None:
        self._stopping.set()
        await end_all([end for name, end in self._ends.items() if name != _MODEL], self._settings.drain_s)
        # Draining workers still need it, so it is asked last.
        await end_all([end for name, end in self._ends.items() if name == _MODEL], 0)

    def _own_listeners(self, stack: AsyncExitStack) -> dict[str, tuple[int]]:
        """Where one API alone is reached, by its name: consecutive ports. Bound here, so that a successor has them, too."""
        first, found = self._settings.api_metrics_port, {}
        for nth, name in enumerate(filter(_is_api, self._commands) if first else ()):
            listener = listen(self._settings.host, first + nth, "STREAMSPOOL_API_METRICS_PORT")
            found[name] = (stack.enter_context(listener).fileno(),)
        return found

    def _refuse_open_door(self, address: str) -> None:
        if not ipaddress.ip_address(address).is_loopback and not self._settings.keyed:
            raise Unusable(
                f"{self._settings.host} can be reached from other machines, and no API keys are set: anybody could "
                "spend your providers' money. Set STREAMSPOOL_API_KEYS=tenant:key, or listen on 127.0.0.1."
            )
        if weak := weak_keys(self._settings):
            raise Unusable(weak)

    def _environment(self, name: str, fds: tuple[int, ...]) -> dict[str, str]:
        """The settings as a child reads them, so that it also learns what this process was told on its command line."""
        settings = self._settings
        environment = {**os.environ, "HOST": settings.host, "PORT": str(self._port)}
        environment["STREAMSPOOL_DATA_DIR"] = str(settings.data_dir.absolute())
        if settings.history_url is None and find_spec("sqlalchemy"):
            environment["STREAMSPOOL_HISTORY_URL"] = f"sqlite:///{settings.data_dir.absolute() / HISTORY}"
        environment.pop(LISTEN_FD, None)
        if fds:
            environment[LISTEN_FD] = ",".join(map(str, fds))
        environment.pop("REDIS_URL" + FILE, None)
        environment.pop(SILENT, None)
        if name != _FIRST_WORKER:  # they have the same settings, and that one also knows which providers are on
            environment[SILENT] = "1"
        if self._valkey is not None:
            environment["REDIS_URL"] = self._valkey.url
        elif settings.redis_url is not None:
            environment["REDIS_URL"] = settings.redis_url.get_secret_value()
        if self._model is not None:
            environment.update(self._model.environment)
        workers = [other for other in self._commands if not _is_api(other)]
        if settings.worker_metrics_port and name in workers:
            # One port cannot serve several workers: they take consecutive ones.
            nth = workers.index(name)
            environment["STREAMSPOOL_WORKER_METRICS_PORT"] = str(settings.worker_metrics_port + nth)
        return environment


@contextlib.contextmanager
def ending_on_signals(again: Callable[[], None], renew: Callable[[], None] | None = None) -> Iterator[None]:
    """The first SIGINT, SIGTERM or SIGHUP cancels the current task, whose cleanup ends everything; more call `again`.

    With `renew`, SIGHUP calls that, unless the terminal that this was started in has gone, which is told by SIGHUP, too.
    A signal that is ignored stays ignored: that is how `nohup` works.
    """
    loop, task, seen, in_terminal = asyncio.get_running_loop(), asyncio.current_task(), 0, _has_terminal()

    def received() -> None:
        nonlocal seen
        seen += 1
        if seen == 1 and task is not None:
            task.cancel()
        else:
            again()

    def hung_up() -> None:
        if renew is None or (in_terminal and not _has_terminal()):
            received()
        else:
            renew()

    wanted = {signal.SIGINT: received, signal.SIGTERM: received, signal.SIGHUP: hung_up}
    signals = [sign for sign in wanted if signal.getsignal(sign) is not signal.SIG_IGN]
    for sign in signals:
        loop.add_signal_handler(sign, wanted[sign])
    try:
        yield
    finally:
        for sign in signals:
            loop.remove_signal_handler(sign)


def _has_terminal() -> bool:
    """Whether there is one that controls this process (tty(4))."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


async def serve(settings: Settings, children: Mapping[str, Sequence[str]], ready: Callable[[Supervisor], None]) -> None:
    """The whole of `up`, and of `api` with several processes: runs until a signal asks for the end; `ready` is called once
    everything answers. Several APIs are replaced by SIGHUP; without workers of its own it waits for no worker, nor for Redis.
    """
    supervisor = Supervisor(settings, children)
    renew = supervisor.replace_apis if sum(map(_is_api, children)) > 1 else None
    with ending_on_signals(supervisor.hurry, renew), contextlib.suppress(asyncio.CancelledError):
        async with supervisor:
            if all(map(_is_api, children)):
                await supervisor.wait_ready(math.inf, "serve")
            else:
                await supervisor.wait_ready()
            ready(supervisor)
            await asyncio.Event().wait()
