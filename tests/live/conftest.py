"""A whole Streamspool with a real model in it: `up --local`, llama.cpp's server and SmolLM2."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared.cli.embedded import CannotStart
from shared.cli.local_model import find_model
from shared.config.providers import BASE_URL_VARIABLE, KEY_VARIABLE
from tests.support.up import Up, starting, until
from tests.support.wire import Client


class Live:
    """`up`, a client of its API, and a look at its model server."""

    def __init__(self, up: Up) -> None:
        self.up = up
        self.client = Client(up.url)

    def pid(self) -> int | None:
        """Of the model server, if it runs."""
        return self.up.children().get("local-model")

    def server(self, path: str) -> Any:
        """What the model server itself says; None while it does not."""
        address = self.address()
        headers = {"authorization": f"Bearer {address[KEY_VARIABLE]}"}
        try:
            response = httpx.get(address[BASE_URL_VARIABLE] + path, headers=headers, trust_env=False, timeout=60)
        except httpx.TransportError:
            return None
        return response.json() if response.status_code == 200 else None

    def address(self) -> dict[str, str]:
        """The variables by which the worker knows it, as the worker has them."""
        variables = Path(f"/proc/{self.up.children()['worker']}/environ").read_text().split("\0")
        return dict(line.partition("=")[::2] for line in variables if line.startswith("LOCAL_MODEL_"))

    def busy(self) -> int:
        """How many answers the model server works on."""
        slots = self.server("/../slots")
        assert slots, "the model server does not answer"
        return sum(slot["is_processing"] for slot in slots)

    def wait_idle(self) -> None:
        until(lambda: self.busy() == 0)


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Live]]:
    """Starts one more, on a data directory of its own."""
    if not sys.platform.startswith("linux"):
        pytest.skip("reads /proc")
    try:
        find_model()
    except CannotStart as missing:
        pytest.skip(missing.message)
    with starting(tmp_path_factory.mktemp("live"), STREAMSPOOL_DRAIN_S="60") as start_up:  # a model may be slow

        def started() -> Live:
            up = start_up("--local", "--data-dir", str(tmp_path_factory.mktemp("data")))
            up.wait_ready("local-model")
            return Live(up)

        yield started


@pytest.fixture(scope="session")
def live(start: Callable[..., Live]) -> Iterator[Live]:
    """The one all tests share: leave it as it was."""
    one = start()
    with one.client:
        yield one
