"""A server that forgets what it acknowledged: killed before it wrote it down, or replaced by a replica that is behind."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.chaos.promises import Promises
from tests.harness.processes import Stack, wait_until
from tests.harness.upstream import Pause, ScriptedUpstream, ending, whole, words
from tests.support.forgetful import Follower, compiler, path_of, slow_sync
from tests.support.rewind import Rewindable
from tests.support.rig import QUICK, Rig

LEASE = {"STREAMSPOOL_LEASE_S": "4"}


def killed(upstream: ScriptedUpstream, directory: Path) -> dict[str, object]:
    with slow_sync(directory, 1.0), Rig(upstream, directory, **LEASE) as rig:
        promises = Promises(rig)
        promises.until_in_the_middle()
        rig.kill_valkey()
        rig.start_valkey()
        return promises.judged()


def failed_over(upstream: ScriptedUpstream, directory: Path) -> dict[str, object]:
    with Rig(upstream, directory, **LEASE) as rig, Follower(directory / "follower", rig.valkey, 0.7) as follower:
        promises = Promises(rig)
        promises.until_in_the_middle()
        follower.promote()
        rig.proxy.refuse()  # whoever held a connection to the old one loses it
        rig.proxy.lead_to(path_of(follower.valkey))
        return promises.judged()


@pytest.mark.skipif(compiler() is None, reason="no C compiler: no disk can be made slow (apt install gcc libc6-dev)")
def test_f50_valkey_killed_before_it_wrote_down_what_it_acknowledged(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    found = killed(upstream, tmp_path)
    assert not found["wrong"], found
    assert found["mended"], "nothing was forgotten: the test shows nothing"


def test_f51_a_failover_to_a_replica_that_is_behind(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    found = failed_over(upstream, tmp_path)
    assert not found["wrong"], found
    assert found["mended"], "nothing was forgotten: the test shows nothing"


def test_f56_a_viewer_comes_back_at_an_api_that_nobody_has_asked_before(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """The server started again without the answer. Its worker, which writes it again, has not got to it yet."""
    pause, (role, *said) = Pause(), words(5)
    upstream.script("forgotten", [role, *said, pause, *ending()])
    (tmp_path / "data").mkdir()
    with Rewindable(tmp_path / "data") as server:
        stack = Stack(server.url, upstream.base_url, tmp_path, **{**QUICK, **LEASE})
        other = stack.at("api-2")
        stack.start("api-2")
        with stack, ThreadPoolExecutor() as threads, httpx.Client(trust_env=False, timeout=100) as http:
            wait_until(lambda: stack.answers("api-2"), what="the other API is up")
            server.remember()
            body = {"model": "scripted/forgotten", "messages": [{"role": "user", "content": "x"}], "background": True}
            path = f"/v1/chat/completions/{http.post(f'{stack.url}/v1/chat/completions', json=body).json()['id']}"
            wait_until(lambda: http.get(f"{stack.url}{path}").json()["choices"], what="it has begun")
            stack.kill("worker", signal.SIGSTOP)
            server.rewind()
            found = threads.submit(http.get, f"{other}{path}")
            wait_until(lambda: server.client.dbsize() > 0 or found.done())
            stack.kill("worker", signal.SIGCONT)
            assert found.result().status_code == 200, found.result().text
            pause.go()
            done = wait_until(lambda: (told := http.get(f"{other}{path}").json())["usage"] and told, what="its end")
            assert done["choices"][0]["message"]["content"] == whole(5)
