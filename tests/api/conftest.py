"""The API as its clients find it: a server without keys (`client`), and one with two tenants (`keyed`)."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pytest

from shared.cli.embedded import EmbeddedValkey
from tests.harness.processes import Stack
from tests.harness.store import Store, open_store
from tests.harness.upstream import Pause, ScriptedUpstream
from tests.support.raw import Raw
from tests.support.wire import ADMIN_KEY, KEY_A, KEY_B, PROVIDER_KEY, Client, Register, Scripted


@pytest.fixture
def scripted(upstream: ScriptedUpstream) -> Iterator[Register]:
    """Registers a script under a name of its own; whatever still waits at a Pause goes on after the test. Parts without an
    end are no Sequence, and hold none."""
    pauses: list[Pause] = []

    def register(
        parts: Iterable[bytes | float | Pause] = (), *, provider: str = "scripted", **options: Any
    ) -> Scripted:
        name = f"s{uuid.uuid4().hex[:10]}"
        if isinstance(parts, Sequence):
            pauses.extend(part for part in parts if isinstance(part, Pause))
        return Scripted(f"{provider}/{name}", upstream.script(name, parts, **options))

    yield register
    for pause in pauses:
        pause.go()


@pytest.fixture(scope="session")
def client(stack: Stack) -> Iterator[Client]:
    with Client(stack.url) as http:
        yield http


@pytest.fixture
def store(valkey: EmbeddedValkey, stack: Stack) -> Iterator[Store]:
    """The shared stack's database, for looking at it or damaging it behind the broker's back."""
    with open_store(valkey.url) as connection:
        yield connection


@pytest.fixture(scope="session")
def keyed(
    valkey: EmbeddedValkey, upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """A stack with two tenants, quick keep-alives, verbose logs and a provider with a key. Shared: leave it running.

    Its headers go out after 0.3 s: on a busy machine an early failure may be a frame here, and have no status.
    """
    url = valkey.url.replace("db=0", "db=9")
    settings = {
        "STREAMSPOOL_API_KEYS": f"a:{KEY_A},b:{KEY_B}",
        "STREAMSPOOL_ADMIN_KEYS": f"ops:{ADMIN_KEY}",
        "STREAMSPOOL_KEEPALIVE_S": "0.1",
        "STREAMSPOOL_HOLD_HEADERS_S": "0.3",
        "STREAMSPOOL_SEND_TIMEOUT_S": "3",
        "STREAMSPOOL_BUDGET_RUNNING": "stop",
        "LOG_LEVEL": "debug",
        "OPENAI_API_KEY": PROVIDER_KEY,
        "OPENAI_BASE_URL": upstream.base_url,
    }
    with Stack(url, upstream.base_url, tmp_path_factory.mktemp("keyed"), **settings) as running:
        yield running


@pytest.fixture(scope="session")
def alice(keyed: Stack) -> Iterator[Client]:
    """Tenant `a` of the keyed server."""
    with Client(keyed.url, KEY_A) as http:
        yield http


@pytest.fixture(scope="session")
def bob(keyed: Stack) -> Iterator[Client]:
    """Tenant `b` of the keyed server."""
    with Client(keyed.url, KEY_B) as http:
        yield http


@pytest.fixture(scope="session")
def admin(keyed: Stack) -> Iterator[Client]:
    """Who looks after the keyed server; of the tenant `ops`."""
    with Client(keyed.url, ADMIN_KEY) as http:
        yield http


@pytest.fixture
def newcomer(keyed: Stack, admin: Client) -> Iterator[Client]:
    """A tenant of the keyed server that has nothing there yet: all that its lists and figures show, its test made.

    Those of `a`, or of a server without keys, have what other tests made, and end where enough was looked at.
    """
    made = admin.http.post("/v1/keys", json={"tenant": f"new-{uuid.uuid4().hex[:12]}"})
    assert made.status_code == 200, made.text
    with Client(keyed.url, made.json()["key"]) as http:
        yield http


@pytest.fixture
def connect(stack: Stack) -> Iterator[Callable[[], Raw]]:
    """Connections that are written to byte for byte, closed in the end."""
    made: list[Raw] = []

    def begin() -> Raw:
        made.append(Raw(stack.url))
        return made[-1]

    yield begin
    for one in made:
        one.close()


@pytest.fixture
def raw(connect: Callable[[], Raw]) -> Raw:
    return connect()
