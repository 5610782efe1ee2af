"""What is measured: a `Target` starts its processes on the server's core and says where to ask and where to watch.

Here are our own stack, the provider itself (`direct`) and the kernel's limit (`ceiling`); the others are in peers/.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from shared.cli.embedded import EmbeddedValkey
from tests.bench.load import ROOT, Load, Publisher, Upstream, Viewers, post, start_server
from tests.bench.machine import Cores, Processes, move, on_core
from tests.bench.revisions import Build, current
from tests.harness.archives import archive
from tests.harness.processes import Stack

GATEWAY, FAN, REPLAY = "gateway", "fan", "replay"
"""What a target can be measured at: one request for one viewer, many viewers of one stream, a finished stream."""


@dataclass(frozen=True)
class Running:
    """A stream to be watched at `url`; `go` lets a gated one speak, `finish` returns when it has ended."""

    url: str
    end: str
    go: Callable[[], None]
    finish: Callable[[], object]


class Target:
    """A context manager: started on entry, stopped on exit."""

    name: ClassVar[str]
    title: ClassVar[str]
    does: ClassVar[frozenset[str]]
    warm_up: ClassVar[int] = 5
    """Requests that are made before anything is measured."""
    headers: Sequence[str] = ()
    chat_url: str = ""

    def __init__(self, cores: Cores, upstream: Upstream, directory: Path) -> None:
        self.cores, self.upstream, self.directory = cores, upstream, directory
        self.processes = Processes(directory, cores.server)
        self._streams = 0

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.processes.__exit__()

    def start(self) -> None:
        raise NotImplementedError

    def model(self, model: str) -> str:
        """What this target calls the provider's model."""
        return model

    def body(self, model: str) -> str:
        asked = {"model": self.model(model), "stream": True, "messages": [{"role": "user", "content": "hello"}]}
        return json.dumps(asked, separators=(",", ":"))

    def ask(self, chunks: int, rate: int, viewers: int = 1, **options: Any) -> Load:
        """So many requests for a stream each, to the end."""
        body = self.body(Upstream.model(chunks, rate))
        run = Viewers(
            self.cores.load, self.chat_url, chunks=chunks, viewers=viewers, body=body, headers=self.headers, **options
        )
        return run.result()

    def publish(self, chunks: int, rate: int, *, gated: bool) -> Running:
        """Starts one stream that any number of viewers can watch."""
        raise NotImplementedError

    def new_id(self) -> str:
        self._streams += 1
        return f"stream{self._streams}"

    def watch(self, running: Running, chunks: int, viewers: int, **options: Any) -> Viewers:
        return Viewers(
            self.cores.load,
            running.url,
            chunks=chunks,
            viewers=viewers,
            headers=self.headers,
            end=running.end,
            **options,
        )


class Published(Target):
    """A broker that chunks are posted to, without anything that asks a provider. `FORM` are its URLs."""

    does = frozenset({FAN, REPLAY})
    end = "done"
    final = "[DONE]"
    publish_headers: Sequence[str] = ("content-type: application/json",)

    def urls(self, stream_id: str) -> tuple[str, str]:
        """Where to publish, and where to watch."""
        raise NotImplementedError

    def publish(self, chunks: int, rate: int, *, gated: bool) -> Running:
        to, at = self.urls(self.new_id())
        publisher = Publisher(
            self.cores.load,
            to,
            chunks=chunks,
            rate=rate,
            final=self.final,
            gated=gated,
            headers=self.publish_headers,
        )
        return Running(at, self.end, publisher.go, publisher.result)


class Direct(Target):
    """The provider, asked by the load itself: what there is to be added to."""

    name, title, does = "direct", "the provider itself", frozenset({GATEWAY})

    def start(self) -> None:
        self.chat_url = f"{self.upstream.url}/chat/completions"
        self.processes.pids = [self.upstream.pid]


class Ceiling(Published):
    """Bare epoll and send(), in C, without anything a broker needs: what the kernel can do."""

    name, title, end = "ceiling", "bare C and epoll", "whole"
    _server: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self._server, port = start_server("ceiling", self.cores.server)
        self._url = f"http://127.0.0.1:{port}/"
        self.processes.pids = [self._server.pid]

    def urls(self, stream_id: str) -> tuple[str, str]:
        return self._url, self._url

    def __exit__(self, *_: object) -> None:
        if self._server:
            self._server.terminate()
            self._server.communicate()


class Ours(Target):
    """Embedded Valkey with its append-only file, workers and API processes (one of each), all on the server's core, but for
    those that have another one (`Cores.own`)."""

    name, title, does = "ours", "Streamspool", frozenset({GATEWAY, FAN, REPLAY})
    SETTINGS: ClassVar[dict[str, str]] = {
        "LOG_LEVEL": "warning",
        "STREAMSPOOL_WORKER_CONCURRENCY": "1000",
        "STREAMSPOOL_MODELS_REFRESH_S": "0",
    }

    build: ClassVar[Build | None] = None
    """What is started; None: this working tree."""

    def __init__(self, cores: Cores, upstream: Upstream, directory: Path, *, apis: int = 1, workers: int = 1) -> None:
        super().__init__(cores, upstream, directory)
        self._apis, self._workers = apis, workers
        self._valkey: EmbeddedValkey | None = None
        self._stack: Stack | None = None

    def start(self) -> None:
        with on_core(self.cores.server):
            self._valkey = EmbeddedValkey(self.directory / "data").__enter__()
            workers, apis = _names("worker", self._workers), _names("api", self._apis)
            started = {**self.SETTINGS, "processes": " ".join([*workers, *apis])}
            self._stack = Stack(self._valkey.url, self.upstream.url, self.directory, **started)
            build = self.build or current()
            self._stack.python = build.python
            self._stack.environment["PYTHONPATH"] = str(build.tree)
            # Any revision understands this much: what the tests say more of the provider, an earlier one may refuse.
            config = f'[providers.scripted]\nbase_url = "{self.upstream.url}"\nmodels = ["any"]\n'
            (self.directory / "streamspool.toml").write_text(config)
            self.ports = [self._stack.port_of(name) for name in apis]
            self._stack.__enter__()
        self._count()

    def __exit__(self, *_: object) -> None:
        if self._stack:
            self._stack.__exit__()
        if self._valkey:
            self._valkey.stop()

    def _count(self) -> None:
        self.url = self.stack.url
        self.chat_url = f"{self.url}/v1/chat/completions"
        names = [*_names("api", self._apis), *_names("worker", self._workers)]
        self.parts = {name: self.stack.process(name).pid for name in names}
        assert self._valkey
        assert self._valkey.pid
        self.parts["valkey"] = self._valkey.pid
        self.processes.pids = list(self.parts.values())
        for name, pid in self.parts.items():
            if (core := self.cores.own.get(name.partition("-")[0])) is not None:
                move(pid, core)

    @property
    def stack(self) -> Stack:
        assert self._stack
        return self._stack

    @property
    def redis_url(self) -> str:
        assert self._valkey
        return self._valkey.url

    def model(self, model: str) -> str:
        return f"scripted/{model}"

    def new_stream(self, chunks: int, rate: int, *, gated: bool) -> str:
        """The id of a stream whose first chunk is there."""
        body = self.body(Upstream.model(chunks, rate, gated=gated)).encode()
        return post(self.chat_url, body, {"content-type": "application/json"})["x-stream-id"]

    def publish(self, chunks: int, rate: int, *, gated: bool) -> Running:
        url = f"{self.url}/v1/streams/{self.new_stream(chunks, rate, gated=gated)}"

        def finish() -> None:
            Viewers(self.cores.load, url, chunks=chunks).result()

        return Running(url, "whole", self.upstream.go, finish)

    @property
    def archives(self) -> bool:
        """Whether this build makes objects of answers: an earlier revision may know none."""
        return self.build is None or self.build.tree == ROOT

    def archive(self, running: Running) -> None:
        """Makes an object of a finished stream, as a worker's reaper does."""
        archive(self.redis_url, self.directory, running.url.rpartition("/")[2])

    def restart_api(self, **settings: str) -> None:
        """A fresh API process, which knows nothing but what is stored."""
        process = self.stack.process("api")
        process.terminate()
        process.wait(30)
        with on_core(self.cores.server):
            self.stack.start("api", **settings)
        self.stack.wait_ready()
        self._count()


def _names(end: str, count: int) -> list[str]:
    """As they are called in the stack: `api`, `api-2`, `api-3`."""
    return [end, *(f"{end}-{number}" for number in range(2, count + 1))]
