"""Proxies in front of an API, each started with its recipe of docs/PROXIES.md.

Hidden here: what a package's own main file says around a recipe (where temporary files are, that it stays in the foreground),
which addresses of the recipe are examples, and how a proxy is looked for. `Relay` is the network between proxy and API.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Self

import trustme

from tests.docs.snippets import blocks
from tests.harness.loopback import LoopThread, stop_listening
from tests.harness.processes import ROOT, free_port, wait_until

DOCUMENT = "docs/PROXIES.md"
LONGEST_S = 300
"""For one request, from its start on: on a busy machine a dozen streams through seven proxies take a while to be under way, and
curl that gives up on the first of them looks like a proxy that cut it."""
HOST = "llm.example.com"
_NEW_CADDY = ROOT / ".venv-proxies/bin/caddy"
_TRAEFIK = ROOT / ".venv-proxies/bin/traefik"
_ROOT = os.geteuid() == 0
"""Those that give up root's rights could not write to a test's directory then."""
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"


class Files(NamedTuple):
    """Where a proxy may write, and what it proves its name with."""

    directory: Path
    certificate: Path
    key: Path


class Kind(NamedTuple):
    """A proxy: what the document calls it, its `program` and how that tells its version, and what starts it with a recipe."""

    name: str
    title: str
    program: str
    version: str
    command: Callable[[str, str, Files, int], list[str]]
    tls: bool = True
    recipe: str = ""
    """By another name."""

    @property
    def path(self) -> str | None:
        return shutil.which(self.program, path=_PATH)

    def installed(self) -> str:
        """Its version, "" if it is not here."""
        if self.path is None:
            return ""
        done = subprocess.run([self.path, *self.version.split()], capture_output=True, text=True, timeout=90)
        found = re.search(r"\d+\.\d+\.\d+", done.stdout + done.stderr)
        assert found, done
        return found[0]


def _write(files: Files, name: str, text: str) -> str:
    path = files.directory / name
    path.write_text(text)
    return str(path)


def _nginx(program: str, recipe: str, files: Files, port: int) -> list[str]:
    places = "".join(
        f"{one}_temp_path {files.directory}/{one};\n" for one in "client_body proxy fastcgi uwsgi scgi".split()
    )
    user = "user root; " if _ROOT else ""
    main = f"{user}daemon off; pid {files.directory}/pid; error_log stderr; events {{}}\n"
    main += f"http {{ access_log off;\n{places}{recipe}}}"
    return [program, "-e", "stderr", "-p", str(files.directory), "-c", _write(files, "nginx.conf", main)]


def _caddy(program: str, recipe: str, files: Files, port: int) -> list[str]:
    site = recipe.replace(f"{HOST} {{", f"{HOST}:{port} {{\n    tls {files.certificate} {files.key}", 1)
    main = f"{{\n    admin off\n    auto_https off\n    storage file_system {files.directory}\n}}\n{site}"
    return [program, "run", "--adapter", "caddyfile", "--config", _write(files, "Caddyfile", main)]


def _haproxy(program: str, recipe: str, files: Files, port: int) -> list[str]:
    return [program, "-db", "-f", _write(files, "haproxy.cfg", recipe)]


_APACHE_MODULES = "mpm_event authz_core headers http2 proxy proxy_http ssl"


def _apache(program: str, recipe: str, files: Files, port: int) -> list[str]:
    modules = "".join(
        f"LoadModule {one}_module /usr/lib/apache2/modules/mod_{one}.so\n" for one in _APACHE_MODULES.split()
    )
    main = (
        f"ServerName localhost\nServerRoot {files.directory}\nPidFile {files.directory}/pid\nErrorLog /dev/stderr\n"
        f"DocumentRoot {files.directory}/empty\nMutex file:{files.directory} default\nDefaultRuntimeDir {files.directory}\n"
        f"User nobody\nGroup nogroup\n{modules}Listen 127.0.0.1:{port}\n{recipe}"
    )
    (files.directory / "empty").mkdir()
    return [program, "-D", "FOREGROUND", "-f", _write(files, "apache.conf", main)]


def _lighttpd(program: str, recipe: str, files: Files, port: int) -> list[str]:
    main = f'server.document-root = "{files.directory}"\nserver.bind = "127.0.0.1"\n'
    main += f'server.upload-dirs = ("{files.directory}")\n{recipe}'
    return [program, "-D", "-f", _write(files, "lighttpd.conf", main)]


def _h2o(program: str, recipe: str, files: Files, port: int) -> list[str]:
    main = f"{'user: root' if _ROOT else ''}\nerror-log: /dev/stderr\nnum-threads: 1\n{recipe}"
    return [program, "-m", "worker", "-c", _write(files, "h2o.yaml", main)]


def _varnish(program: str, recipe: str, files: Files, port: int) -> list[str]:
    vcl = _write(files, "default.vcl", recipe)
    listen = ["-a", f"127.0.0.1:{port}", "-f", vcl, "-n", str(files.directory / "work")]
    return [program, "-F", "-j", "none", "-s", "malloc,32m", *listen]


def _traefik(program: str, recipe: str, files: Files, port: int) -> list[str]:
    """The recipe has two files: what it starts with, and what it may read again."""
    main, _, routes = recipe.partition("\n---\n")
    main = main.replace("/etc/traefik/llm.yml", _write(files, "llm.yml", routes))
    return [program, f"--configFile={_write(files, 'traefik.yml', main)}"]


KINDS = (
    Kind("nginx", "nginx", "nginx", "-v", _nginx),
    Kind("caddy", "Caddy", "caddy", "version", _caddy),
    Kind("caddy-new", "Caddy", str(_NEW_CADDY), "version", _caddy, recipe="caddy"),
    Kind("haproxy", "HAProxy", "haproxy", "-v", _haproxy),
    Kind("apache", "Apache", "apache2", "-v", _apache),
    Kind("lighttpd", "lighttpd", "lighttpd", "-v", _lighttpd, tls=False),
    Kind("h2o", "h2o", "h2o", "--version", _h2o),
    Kind("varnish", "Varnish", "varnishd", "-V", _varnish, tls=False),
    Kind("traefik", "Traefik", str(_TRAEFIK), "version", _traefik),
)


def recipe(name: str) -> str:
    """As it stands in the document."""
    (found,) = [block.code for block in blocks(ROOT, DOCUMENT) if block.words[:1] == (name,)]
    return found


class Front:
    """One proxy, running; `url` is where clients find it, `trust` what they have to believe in."""

    def __init__(self, kind: Kind, api: Relay, directory: Path, authority: trustme.CA) -> None:
        self.kind, self.relay, self.port = kind, api, free_port()
        self.url = f"http{'s' if kind.tls else ''}://{HOST if kind.tls else '127.0.0.1'}:{self.port}"
        self.authority = directory / "ca.pem"
        self._log = directory / "log"
        proof = authority.issue_cert(HOST)
        files = Files(directory, directory / "llm.pem", directory / "llm.key")
        files.certificate.write_bytes(
            b"".join(pem.bytes() for pem in proof.cert_chain_pems) + proof.private_key_pem.bytes()
        )
        files.key.write_bytes(proof.private_key_pem.bytes())
        authority.cert_pem.write_to_path(str(self.authority))
        assert kind.path is not None
        self._command = kind.command(kind.path, self._here(recipe(kind.recipe or kind.name), files), files, self.port)
        self._process: subprocess.Popen[bytes] | None = None

    def _here(self, text: str, files: Files) -> str:
        """With this machine's addresses in place of the examples."""
        text = text.replace("/etc/ssl/llm.pem", str(files.certificate)).replace("/etc/ssl/llm.key", str(files.key))
        text = re.sub(r"\b443\b", f"{self.port}", text)
        text = text.replace("127.0.0.1:8000", f"127.0.0.1:{self.relay.port}")
        return re.sub(r"\b8000\b", f"{self.relay.port}", text)

    def start(self) -> None:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, "PATH": _PATH}
            )

    def wait(self) -> None:
        """Until it listens."""

        def listens() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, self._log.read_text()
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return True
            return False

        wait_until(listens, 90, what=f"{self.kind.name} listens")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def connect(self, timeout_s: float = 90) -> socket.socket:
        """A connection for HTTP/1.1."""
        plain = socket.create_connection(("127.0.0.1", self.port), timeout_s)
        if not self.kind.tls:
            return plain
        context = ssl.create_default_context(cafile=str(self.authority))
        return context.wrap_socket(plain, server_hostname=HOST)

    def curl(self, *arguments: str) -> list[str]:
        """The command by which curl asks it."""
        trust = ["--cacert", str(self.authority), "--resolve", f"{HOST}:{self.port}:127.0.0.1"] if self.kind.tls else []
        return [
            "curl",
            "--silent",
            "--show-error",
            "--no-buffer",
            "--noproxy",
            "*",
            "--max-time",
            str(LONGEST_S),
            *trust,
            *arguments,
        ]


class Relay(LoopThread):
    """What one proxy takes for the API: passes everything on to a port, and knows what was asked in which HTTP."""

    def __init__(self, target: int) -> None:
        super().__init__()
        self._target = target
        self._links: set[asyncio.StreamWriter] = set()
        self.port = 0
        self.versions: set[str] = set()
        """`HTTP/1.1` and the like, of the requests so far."""

    def __enter__(self) -> Self:
        super().__enter__()
        self.call(self._open())
        return self

    def cut(self) -> None:
        """Ends all connections, as the death of the API does: what was said has come, and the end has not."""

        async def now() -> None:
            for writer in list(self._links):
                writer.close()

        self.call(now())

    async def _open(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        await stop_listening(self._server)
        await super()._close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            there, back = await asyncio.open_connection("127.0.0.1", self._target)
            self._links |= {writer, back}
            try:
                await asyncio.gather(self._pump(reader, back, asked=True), self._pump(there, writer))
            finally:
                self._links -= {writer, back}
                for one in (writer, back):
                    one.close()

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, asked: bool = False) -> None:
        with suppress(OSError):
            while data := await source.read(65536):
                if asked and (found := re.match(rb"[A-Z]+ \S+ (HTTP/\d\.\d)\r\n", data)):
                    self.versions.add(found[1].decode())
                target.write(data)
                await target.drain()
        target.close()


def start_all(fronts: Collection[Front]) -> None:
    """Side by side: some take a second."""
    for front in fronts:
        front.start()
    for front in fronts:
        front.wait()


class Seen(NamedTuple):
    """A row of the document's table."""

    cut_1: str
    cut_2: str
    stop: str
    to_api: str


def table() -> dict[tuple[str, str], Seen]:
    """What the document says of a proxy and its version."""
    text = (ROOT / DOCUMENT).read_text("utf-8").partition("## What was seen")[2].partition("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]
    return {(title, version): Seen(*cells) for title, version, *cells in rows[1:] if not title.startswith("---")}
