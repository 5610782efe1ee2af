"""A canary: each part of uvicorn that is not its public interface, and is used here, is still there and is what it was.

Where this fails after an upgrade, read uvicorn's protocols/http/httptools_impl.py and flow_control.py beside
api/connection.py, and protocols/websockets/websockets_sansio_impl.py beside api/sockets/protocol.py, then raise the ceiling in
pyproject.toml.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import logging
import re
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import uvicorn
from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from uvicorn.server import ServerState

from api import connection, stand_ins
from api.sockets.protocol import SocketProtocol

ROOT = Path(__file__).parents[2]

PROTOCOL_CALLED = {
    "_unset_keepalive_if_required": "takes the keep-alive timer off; called at each byte, and before a connection lingers",
    "connection_made": "makes `flow`",
    "connection_lost": "wakes the application",
    "data_received": "replaced: bytes go to the parser in slices",
    "handle_websocket_upgrade": "makes `ws_protocol_class`, gives it the head again, and the transport to it",
    "on_message_begin": "makes `scope`",
    "on_header": "takes a header, or a trailer",
    "on_headers_complete": "makes `cycle`, or adds it to `pipeline`",
    "on_body": "feeds the cycle",
    "on_message_complete": "feeds the cycle",
    "on_response_complete": "starts the next of `pipeline`",
    "pause_writing": "called by the transport",
    "resume_writing": "called by the transport",
    "shutdown": "called when the server stops",
}
PROTOCOL_HELD: dict[str, type] = {
    "client": type(None),
    "config": uvicorn.Config,
    "cycle": type(None),
    "flow": type(None),
    "headers": type(None),
    "loop": asyncio.AbstractEventLoop,
    "parser": object,
    "pipeline": deque,
    "scope": type(None),
    "server": type(None),
    "server_state": ServerState,
    "timeout_keep_alive": int,
    "transport": type(None),
}
"""What each is in a protocol that was just made."""
ELSEWHERE_WRITTEN = {"url"}
"""Of the protocol, set when a message begins."""
FLOW = {"_is_writable_event", "pause_reading", "resume_reading"}
CYCLE = {
    "body",
    "chunked_encoding",
    "disconnected",
    "expected_content_length",
    "keep_alive",
    "message_event",
    "response_complete",
    "response_started",
    "scope",
    "transport",
    "waiting_for_100_continue",
}
STATE = {"connections", "default_headers", "total_requests"}
SERVER = {"config", "force_exit", "handle_exit", "server_state", "should_exit", "shutdown", "startup"}


SOCKET_CALLED = {
    "connection_lost": "tells the application",
    "data_received": "takes messages apart",
    "handle_connect": "makes `scope`",
    "handle_parser_exception": "replaced: tells the client, and closes at once",
    "handle_ping": "answers it",
    "pause_writing": "called by the transport",
    "receive": "gives the application what `queue` has, and reads on",
    "resume_writing": "called by the transport",
    "send_receive_event_to_app": "puts a whole message into `queue`",
    "shutdown": "called when the server stops",
}
SOCKET_HELD: dict[str, type] = {
    "close_sent": bool,
    "close_timer": type(None),
    "close_timeout": float,
    "config": uvicorn.Config,
    "conn": object,
    "handshake_complete": bool,
    "handshake_initiated": bool,
    "loop": asyncio.AbstractEventLoop,
    "queue": asyncio.Queue,
    "tasks": set,
    "transport": type(None),
}
"""The same of a WebSocket's. `scope` is set when it opens."""


class Transport(asyncio.Transport):
    """Goes nowhere."""


@pytest.fixture
async def protocol() -> HttpToolsProtocol:
    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    return HttpToolsProtocol(uvicorn.Config(app, log_config=None), ServerState(), {})


def cycle() -> RequestResponseCycle:
    logger = logging.getLogger()
    flow, scope = FlowControl(Transport()), cast(Any, {})
    return RequestResponseCycle(
        scope,
        Transport(),
        flow,
        logger,
        logger,
        False,
        [],
        asyncio.Event(),
        False,
        True,
        lambda: None,
    )


async def test_the_protocol_has_what_is_called_and_held(protocol: HttpToolsProtocol) -> None:
    assert [name for name in PROTOCOL_CALLED if not callable(getattr(protocol, name, None))] == []
    assert [name for name, kind in PROTOCOL_HELD.items() if not isinstance(getattr(protocol, name, ...), kind)] == []
    protocol.on_message_begin()
    assert set(vars(protocol)) >= ELSEWHERE_WRITTEN
    assert protocol.scope["type"] == "http"
    assert protocol.headers == []


async def test_a_cycle_waits_for_more_of_its_request_and_says_how_far_its_response_is() -> None:
    one = cycle()
    assert set(vars(one)) >= CYCLE
    assert isinstance(one.message_event, asyncio.Event)
    assert (one.response_started, one.response_complete, one.chunked_encoding) == (False, False, None)
    assert (one.disconnected, one.keep_alive) == (False, True)


async def test_flow_control_waits_with_an_event_that_may_be_another_one() -> None:
    flow = FlowControl(Transport())
    assert all(hasattr(flow, name) for name in FLOW)
    writable = stand_ins.Writable()
    flow._is_writable_event = writable  # type: ignore[assignment]
    flow.pause_writing()
    waiting = asyncio.ensure_future(flow.drain())
    await asyncio.sleep(0)
    assert not waiting.done()
    flow.resume_writing()
    await waiting


def test_pipelined_requests_are_put_in_on_the_left_and_taken_from_the_right() -> None:
    """The list that stands for uvicorn's deque has no more than that."""
    source = Path(httptools_impl.__file__).read_text("utf-8")
    assert set(re.findall(r"self\.pipeline\.(\w+)", source)) == {"appendleft", "pop"}


def test_the_server_counts_and_ends_as_it_did() -> None:
    server = uvicorn.Server(uvicorn.Config("app", log_config=None))
    assert [name for name in SERVER if not hasattr(server, name)] == []
    assert [name for name in STATE if not hasattr(server.server_state, name)] == []
    assert "self.servers" in inspect.getsource(uvicorn.Server.startup)  # closed before the connections are told


async def test_the_protocol_of_sockets_has_what_is_called_and_held() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    protocol = WebSocketsSansIOProtocol(uvicorn.Config(app, log_config=None), ServerState(), {})
    assert [name for name in SOCKET_CALLED if not callable(getattr(protocol, name, None))] == []
    assert [name for name, kind in SOCKET_HELD.items() if not isinstance(getattr(protocol, name, ...), kind)] == []
    theirs = taken("self", "api/sockets/protocol.py") | taken("super()", "api/sockets/protocol.py")
    ours = {name for name in vars(SocketProtocol) if not hasattr(WebSocketsSansIOProtocol, name)}
    made = set(vars(SocketProtocol(uvicorn.Config(app, log_config=None), ServerState(), {}))) - set(vars(protocol))
    assert theirs - ours - made - {"__init__"} == {*SOCKET_CALLED, *SOCKET_HELD, "scope"}


def taken(owner: str, file: str = "api/connection.py") -> set[str]:
    """Attributes that a file reads or sets of `owner` (`self.flow`, …)."""
    tree = ast.parse((ROOT / file).read_text("utf-8"))
    return {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in (owner, owner.removeprefix("self."))
    }


def of_ours() -> Iterator[str]:
    """Names that the two protocol classes bring themselves."""
    for kind in (connection.Protocol, connection._Intake):
        yield from kind.__slots__
        yield from (name for name in vars(kind) if not hasattr(HttpToolsProtocol, name))


def test_every_part_that_is_used_is_named_here() -> None:
    assert taken("self.flow") == FLOW
    assert taken("self.cycle") == CYCLE
    assert taken("self.server_state") == STATE - {"connections"}
    theirs = (taken("self") | taken("super()")) - set(of_ours()) - {"__init__"}
    assert theirs == {*PROTOCOL_CALLED, *PROTOCOL_HELD, *ELSEWHERE_WRITTEN}


def test_no_other_file_looks_into_uvicorn() -> None:
    found = {
        str(path.relative_to(ROOT)): set(re.findall(r"^(?:import|from) (uvicorn[\w.]*)", path.read_text("utf-8"), re.M))
        for package in ("api", "shared", "worker")
        for path in (ROOT / package).rglob("*.py")
    }
    assert {name: modules for name, modules in found.items() if modules} == {
        "api/connection.py": {"uvicorn.protocols.http.httptools_impl"},
        "api/server.py": {"uvicorn"},
        "api/sockets/protocol.py": {"uvicorn.protocols.websockets.websockets_sansio_impl"},
    }


def test_the_version_has_a_ceiling() -> None:
    """One that this was read against: uvicorn moves these parts in minor versions."""
    (asked,) = re.findall(r'"uvicorn>=([\d.]+),<([\d.]+)"', (ROOT / "pyproject.toml").read_text("utf-8"))
    low, high = (tuple(map(int, version.split("."))) for version in asked)
    assert high == (*low[:1], low[1] + 1)
