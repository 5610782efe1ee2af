"""Sentinels with users and passwords of their own, with TLS, and ones that are away."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from shared.errors import Unusable
from shared.store.contact import check_server
from shared.store.redis import connect
from tests.harness.processes import free_port
from tests.support.sentinels import MASTER, Sentinels
from tests.support.server import Certificates


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sentinels]:
    with Sentinels(tmp_path_factory.mktemp("guarded"), passwords=True) as running:
        yield running


async def role(url: str) -> str:
    """Of the server that a client of this URL gets to."""
    client = connect(url, max_connections=2)
    try:
        return str((await client.info("replication"))["role"])
    finally:
        await client.aclose(close_connection_pool=True)


async def test_sentinels_have_a_user_and_a_password_of_their_own(guarded: Sentinels) -> None:
    await check_server(guarded.url)
    assert await role(guarded.url) == "master"


async def test_their_password_is_told_from_the_masters(guarded: Sentinels) -> None:
    without = guarded.url.partition("?")[0]
    with pytest.raises(Unusable, match="has sentinels, one of which refuses the password or user .`sentinel_password`"):
        await check_server(without)
    with pytest.raises(Unusable, match="has sentinels"):
        await check_server(f"{without}?sentinel_password=canary")
    wrong_master = guarded.url.replace(guarded.url.partition("//:")[2].partition("@")[0], "canary", 1)
    with pytest.raises(Unusable, match=r"/0 refuses the password or user: invalid") as refused:
        await check_server(wrong_master)
    assert "canary" not in str(refused.value)


async def test_a_master_that_no_sentinel_knows_is_waited_for(guarded: Sentinels) -> None:
    with structlog.testing.capture_logs() as logs:
        await check_server(guarded.url.replace(f"/{MASTER}/", "/other/"))
    assert [log["reason"] for log in logs] == ["sentinels: no master called other"]


async def test_a_sentinel_that_is_away_is_passed_over(guarded: Sentinels) -> None:
    assert await role(guarded.url.replace("@127.0.0.1:", f"@127.0.0.1:{free_port()},127.0.0.1:")) == "master"


async def test_sentinels_and_servers_speak_tls(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path / "certificates", "127.0.0.1")
    with Sentinels(tmp_path, passwords=True, tls=certificates) as running:
        assert await role(running.url) == "master"
        with pytest.raises(Unusable, match="has sentinels, one of which cannot be used: certificate verify failed"):
            await check_server(running.url.partition("&ssl_ca_certs")[0])
