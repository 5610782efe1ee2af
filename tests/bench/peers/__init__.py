"""The peers, each in the form its manual shows first. Their set-ups are the files beside this one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from shared.cli.embedded import find_binary
from tests.bench.load import Upstream, Viewers, post
from tests.bench.machine import free_port
from tests.bench.peers import install
from tests.bench.targets import FAN, GATEWAY, REPLAY, Published, Running, Target

HERE = Path(__file__).parent
_NCHAN_CONNECTS_S = 2.0


def start_redis(target: Target) -> int:
    """The same Valkey as ours, over TCP, in memory only: peers are not made to keep what they do not promise to."""
    port = free_port()
    options = {"port": port, "bind": "127.0.0.1", "save": "", "appendonly": "no", "daemonize": "no"}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    target.processes.start("valkey", [str(find_binary()), *words], port=port)
    return port


def start_nginx(target: Target, *uses: str, redis_port: int = 0) -> int:
    """`uses`: `nchan`, and `nchan-redis`."""
    port = free_port()
    values = {
        "DIRECTORY": target.directory,
        "MODULES": install.nginx_modules(),
        "USER": "root" if os.geteuid() == 0 else "nobody",
        "UPSTREAM": target.upstream.port,
        "REDIS": redis_port,
        "PORT": port,
    }
    lines = (
        line.partition(" # ") for line in (HERE / "nginx.conf").read_text().splitlines() if not line.startswith("#")
    )
    text = "\n".join(line for line, _, needs in lines if not needs or needs in uses)
    for name, value in values.items():
        text = text.replace(f"@{name}@", str(value))
    (target.directory / "nginx.conf").write_text(text)
    words = ["-p", str(target.directory), "-c", f"{target.directory}/nginx.conf", "-e", "stderr"]
    target.processes.start(
        "nginx", [*install.nginx(), *words], port=port, env={"LD_LIBRARY_PATH": install.library_path()}
    )
    return port


class Nginx(Target):
    """A proxy that forwards bytes as they come; and a file from disk, the floor of every replay."""

    name, title, does = "nginx", "nginx", frozenset({GATEWAY, REPLAY})

    def start(self) -> None:
        self._port = start_nginx(self)
        self.chat_url = f"http://127.0.0.1:{self._port}/v1/chat/completions"

    def publish(self, chunks: int, rate: int, *, gated: bool) -> Running:
        """The finished stream, written into a file."""
        name = self.new_id()
        form = (
            'data: {"id":"chatcmpl-bench","object":"chat.completion.chunk","created":1700000000,"model":"bench",'
            '"choices":[{"index":0,"delta":{"content":"~%d:0~ xxxxxxxx"},"finish_reason":null}]}\n\n'
        )
        path = self.directory / "file" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(form % number for number in range(chunks)) + "data: [DONE]\n\n")
        return Running(f"http://127.0.0.1:{self._port}/file/{name}", "whole", _nothing, _nothing)


class Nchan(Published):
    """Publish and subscribe inside nginx, messages in its shared memory."""

    name, title = "nchan", "nchan"

    def start(self) -> None:
        self._port = start_nginx(self, "nchan")

    def urls(self, stream_id: str) -> tuple[str, str]:
        return f"http://127.0.0.1:{self._port}/pub/{stream_id}", f"http://127.0.0.1:{self._port}/sub/{stream_id}"


class NchanRedis(Nchan):
    """The same with messages in Redis: the same shape as ours."""

    name, title = "nchan-redis", "nchan with Redis"

    def start(self) -> None:
        self._port = start_nginx(self, "nchan", "nchan-redis", redis_port=start_redis(self))
        time.sleep(
            _NCHAN_CONNECTS_S
        )  # until it has reached Redis it answers 503, and there is nothing else to wait for


class LiteLLM(Target):
    name, title, does = "litellm", "LiteLLM", frozenset({GATEWAY})
    headers = ("authorization: Bearer sk-bench",)

    def start(self) -> None:
        port = free_port()
        words = [
            "--config",
            str(HERE / "litellm.yaml"),
            "--port",
            str(port),
            "--host",
            "127.0.0.1",
            "--num_workers",
            "1",
        ]
        env = {
            "BENCH_PROVIDER": self.upstream.url,
            "LITELLM_LOG": "ERROR",
            "LITELLM_TELEMETRY": "False",
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",
            "DISABLE_ADMIN_UI": "True",
            "NO_PROXY": "*",
        }
        self.processes.start("litellm", [str(install.LITELLM / "bin/litellm"), *words], port=port, env=env)
        self.chat_url = f"http://127.0.0.1:{port}/v1/chat/completions"


class Portkey(Target):
    name, title, does = "portkey", "Portkey", frozenset({GATEWAY})

    def start(self) -> None:
        port = free_port()
        program = install.PORTKEY / "node_modules/@portkey-ai/gateway/build/start-server.js"
        command = ["node", str(program), f"--port={port}", "--headless"]
        self.processes.start("portkey", command, port=port, env={"NODE_ENV": "production"})
        self.chat_url = f"http://127.0.0.1:{port}/v1/chat/completions"
        self.headers = (
            "x-portkey-provider: openai",
            f"x-portkey-custom-host: {self.upstream.url}",
            "authorization: Bearer sk-fake",
        )


class Resumable(Target):
    """A library: its producer's own response is the gateway's row, its followers are the viewers'. It has no replay."""

    name, title, does = "resumable", "resumable-stream", frozenset({GATEWAY, FAN})

    def start(self) -> None:
        redis_port, port = start_redis(self), free_port()
        program = install.NODE / "resumable.mjs"
        program.write_text((HERE / "resumable.mjs").read_text())  # node looks for packages beside the program
        env = {"REDIS_URL": f"redis://127.0.0.1:{redis_port}", "NODE_ENV": "production"}
        self.processes.start("resumable", ["node", str(program), str(port), self.upstream.url], port=port, env=env)
        self._url = f"http://127.0.0.1:{port}"
        self.chat_url = f"{self._url}/v1/chat/completions"

    def publish(self, chunks: int, rate: int, *, gated: bool) -> Running:
        name = self.new_id()
        body = self.body(Upstream.model(chunks, rate, gated=gated))
        producer = Viewers(self.cores.load, f"{self._url}/start/{name}", chunks=chunks, body=body)
        producer.ready()
        return Running(f"{self._url}/sub/{name}", "whole", self.upstream.go, producer.result)


class Durable(Published):
    """Its live answers do not end when the stream does: a viewer is done with the last chunk."""

    name, title, end, final = "durable", "durable-streams", "count", '"[DONE]"'

    def start(self) -> None:
        self._port = free_port()
        program = install.NODE / "durable.mjs"
        program.write_text((HERE / "durable.mjs").read_text())
        self.processes.start("durable", ["node", str(program), str(self._port)], port=self._port)

    def urls(self, stream_id: str) -> tuple[str, str]:
        url = f"http://127.0.0.1:{self._port}/{stream_id}"
        post(url, headers={"content-type": "application/json"}, method="PUT")
        return url, f"{url}?offset=-1&live=sse"


def _nothing() -> None:
    return None


Install = Callable[[], None]
PEERS: dict[type[Target], Install] = {
    Nginx: install.debian,
    Nchan: install.debian,
    NchanRedis: install.debian,
    Portkey: install.portkey,
    LiteLLM: install.litellm,
    Resumable: install.node,
    Durable: install.node,
}
"""Each peer, and what it needs."""
