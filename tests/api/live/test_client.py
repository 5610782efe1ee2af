"""Who is written to, over a connection that others use after it, and who is cut although it came late."""

from __future__ import annotations

from typing import Any

from api.live.client import AMONG, CONNECTION, Client
from api.live.viewers import Grant, Viewers
from shared.lib import sse
from shared.store.redis import ArqRedis


class Connection:
    """As much of one as a client sees."""

    on_lost: Any = None
    lost = needed = aborted = False
    comment = b""

    @property
    def transport(self) -> Connection:
        return self

    def asked(self) -> None:
        """It has nothing to ask."""

    def abort(self) -> None:
        self.aborted = True


def client_of(connection: Connection, **scope: Any) -> Client:
    async def nothing(*_: object) -> Any:
        """Nothing is received, and nothing sent."""

    return Client({"extensions": {CONNECTION: connection}, **scope}, nothing, nothing, 1.0)


async def test_what_ends_late_leaves_the_next_request_its_connection() -> None:
    """A seat is given back at Redis, while the next request of this connection is there already."""
    connection = Connection()
    first = client_of(connection)
    first.streaming(sse.KEEPALIVE)
    second = client_of(connection)
    assert connection.comment == b"", "the next answer may be no event stream"
    await first.close()
    connection.on_lost()
    assert (second.gone, first.gone) == (True, False)
    await second.close()
    assert connection.on_lost is None


async def test_who_comes_after_its_key_has_ended_is_cut_at_once(redis: ArqRedis) -> None:
    """A request that was let in may take its time until it shows something."""
    viewers, connection = Viewers(redis), Connection()
    early, late = viewers.of("key_1"), viewers.of("key_1", Grant("a session"))
    assert early is not None
    watching = client_of(connection, **{AMONG: early})
    viewers.turn_out("key_2")
    assert not watching.gone
    viewers.turn_out("key_1")
    assert (watching.gone, connection.aborted) == (True, True)
    other = Connection()
    assert client_of(other, **{AMONG: late}).gone
    assert other.aborted
    again = client_of(Connection(), **{AMONG: viewers.of("key_1")})
    assert not again.gone, "the name stands for another set then"
