"""Redis answers, but not what one hopes: replies lost, no memory, no disk, no data, read-only, loading, busy, full."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
import redis

from shared.cli.embedded import EmbeddedValkey
from tests.harness.processes import Stack, free_port, wait_until
from tests.harness.store import Store, open_store
from tests.harness.upstream import Pause, ScriptedUpstream, ending, words
from tests.support.names import WAITING, keys
from tests.support.proxy import LOADING
from tests.support.rig import LEASE_S, Rig
from tests.support.wire import Client

# ---- replies that are lost


@pytest.mark.parametrize("command", [b"XADD", b"EXEC", b"XREVRANGE"])
def test_f18_replies_lost(rig: Rig, command: bytes) -> None:
    """What was asked for is done, and who asked is told that the connection broke: append and seal."""
    before = rig.proxy.lost
    barrier = Pause()
    viewers = rig.streams(4, chunks=50, pause_s=0.03, barrier=barrier)
    rig.proxy.lose_replies(command, 8)
    barrier.go()
    for viewer in viewers:
        viewer.end()
    rig.proxy.heal()
    assert rig.proxy.lost > before
    rig.whole(viewers)


def test_f18_the_reply_to_create_is_lost(rig: Rig) -> None:
    """The client is answered as ever: its generation is there, and is rung for at once."""
    rig.answers_again()
    rig.proxy.lose_replies(b"$1\r\nb\r\n", 1)
    response = rig.post()
    assert response.status_code == 200, response.text
    assert rig.proxy.to_lose == 0
    said = "".join(map(rig.stack.log, ("api", "worker", "worker-2"))).splitlines()
    assert not [line for line in said if "rang again" in line and response.headers["x-stream-id"] in line], (
        "by the reaper"
    )


def test_f18_the_reply_to_claim_is_lost(rig: Rig) -> None:
    rig.answers_again()
    rig.proxy.lose_replies(b"$1\r\na\r\n", 1)
    viewers = rig.streams(1, chunks=5)
    assert rig.proxy.to_lose == 0
    rig.whole(viewers)


def test_f18_the_reply_to_the_lease_is_lost(rig: Rig) -> None:
    """The worker finds out that the lease is its own, and does not wait until it lapses."""
    rig.answers_again()
    rig.proxy.lose_replies(keys.lease("").encode(), 1)
    assert rig.post().status_code == 200
    assert rig.proxy.to_lose == 0


# ---- no memory


@contextmanager
def full(rig: Rig) -> Iterator[None]:
    rig.redis.config_set("maxmemory", 1)
    try:
        yield
    finally:
        rig.redis.config_set("maxmemory", 0)


def kept(rig: Rig) -> set[bytes]:
    """What waits, or is open."""
    return {*rig.redis.zrange(WAITING, 0, -1), *rig.redis.zrange(keys.open(0), 0, -1)}


def test_f19_no_memory_pauses_streams_and_refuses_new_ones(rig: Rig) -> None:
    barrier = Pause()
    viewers = rig.streams(5, chunks=40, barrier=barrier)
    refused = rig.upstream.script("refused", [])
    with full(rig):
        before = kept(rig)
        response = rig.post("scripted/refused")
        assert (response.status_code, response.json()["error"]["code"]) == (503, "storage_full")
        assert response.headers["retry-after"]
        assert kept(rig) <= before
        assert rig.state(viewers[0].id)["status"] == "in_progress"
        time.sleep(1.5 * LEASE_S)  # no lease may lapse meanwhile
    barrier.go()
    rig.whole(viewers)
    assert not refused.calls


def test_f19_no_memory_still_lets_streams_end(rig: Rig) -> None:
    """A cancel needs no room: it frees some."""
    barrier = Pause()
    viewer = rig.streams(1, chunks=10, barrier=barrier)[0]
    with full(rig):
        url = f"{rig.stack.url}/v1/streams/{viewer.id}/cancel"
        response = httpx.post(url, timeout=60, trust_env=False)
        assert (response.status_code, response.json()["status"]) == (200, "cancelled")
        viewer.end()
        wait_until(lambda: not viewer.script.live, what="the provider is hung up on")
    assert viewer.expected.startswith(viewer.text)


# ---- no disk


def test_f45_no_disk_pauses_streams_and_refuses_new_ones(rig: Rig) -> None:
    """The server cannot save, and takes no write until it can; that lasts longer than a lease."""
    blocked = Path(rig.redis.config_get("dir")["dir"], "dump.rdb")
    blocked.mkdir()
    barrier = Pause()
    viewers = rig.streams(4, chunks=20, barrier=barrier)
    rig.redis.config_set("save", "3600 1")
    wait_until(lambda: saved(rig.redis) == "err", what="saving fails")
    try:
        response = rig.post()
        assert response.status_code == 503
        time.sleep(1.5 * LEASE_S)
    finally:
        rig.redis.config_set("save", "")
        blocked.rmdir()
        wait_until(lambda: saved(rig.redis) == "ok", what="saving works")
    barrier.go()
    rig.whole(viewers)


def saved(client: Store) -> str:
    """Has it begun, unless it is under way, or the log is written anew; how it went last."""
    with suppress(redis.ResponseError):
        client.bgsave()
    return str(client.info("persistence")["rdb_last_bgsave_status"])


# ---- no data


def test_f20_all_data_lost_is_told(rig: Rig) -> None:
    viewers = rig.streams(3, barrier=Pause())
    rig.redis.flushall()
    for viewer in viewers:
        assert (viewer.end().error or {}).get("code") == "stream_lost", viewer.text[-100:]
    wait_until(lambda: not any(viewer.script.live for viewer in viewers), what="the provider is hung up on")
    url = f"{rig.stack.url}/v1/streams/{viewers[0].id}"
    assert httpx.get(url, trust_env=False, timeout=60).status_code == 404


def test_f20_a_whole_answer_whose_log_is_wiped_is_told_as_lost(rig: Rig) -> None:
    """A 404 would say that nothing had been accepted: it was, and may have been paid."""
    rig.answers_again()
    barrier = Pause()
    script = rig.upstream.script("wiped", [*words(3), barrier, *ending()])
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(rig.post, "scripted/wiped", **fields) for fields in ({}, {}, {"max_tokens_per_s": 1})]
        wait_until(lambda: spoken(rig, "scripted/wiped", "w2 ") == 3, what="all have said something")
        rig.redis.flushall()
        responses = [one.result() for one in waiting]
    for response in responses:
        assert (response.status_code, response.json()["error"]["code"]) == (500, "stream_lost"), response.text
        assert response.headers["x-should-retry"] == "false"
    barrier.go()
    wait_until(lambda: not script.live, what="the provider is hung up on")


def spoken(rig: Rig, model: str, word: str) -> int:
    """How many answers of the model have got so far."""
    logs = [str(rig.redis.xrange(name)) for name in rig.redis.scan_iter(keys.log("*"), count=1000)]
    return sum(model in log and word in log for log in logs)


def test_f20_a_viewer_ahead_of_the_log_is_told(rig: Rig) -> None:
    """The server came back with less than it had said: what is missing is not passed over in silence."""
    viewer = rig.streams(1, chunks=10, barrier=(barrier := Pause()))[0]
    wait_until(lambda: viewer.says("w9 "))
    key = keys.log(viewer.id)
    newest = [entry_id for entry_id, _ in rig.redis.xrevrange(key, count=3)]
    kept = rig.redis.xrange(key)[:-3]
    with rig.redis.pipeline(transaction=True) as pipe:  # XDEL would keep the last id; a restored server does not
        pipe.delete(key)
        for entry_id, fields in kept:
            pipe.xadd(key, fields, id=entry_id)
        pipe.expire(key, 600)
        pipe.execute()
    assert len(newest) == 3
    viewer.end()
    assert viewer.error is not None
    barrier.go()
    wait_until(lambda: rig.state(viewer.id)["status"] != "in_progress", what="an end")
    response = httpx.get(f"{rig.stack.url}/v1/streams/{viewer.id}", timeout=60, trust_env=False)
    assert b'"error"' in response.content, response.content[-300:]


# ---- not now


def test_f21_read_only(rig: Rig) -> None:
    """What a demoted master says, for longer than a lease; and another one is asked on a new connection."""
    barrier = Pause()
    viewers = rig.streams(4, chunks=20, barrier=barrier)
    rig.redis.replicaof("127.0.0.1", free_port())
    try:
        response = rig.post()
        assert (response.status_code, response.json()["error"]["code"]) == (503, "storage_unavailable")
        time.sleep(1.5 * LEASE_S)
    finally:
        rig.redis.replicaof("NO", "ONE")
    barrier.go()
    rig.whole(viewers)


def test_f22_loading(rig: Rig) -> None:
    barrier = Pause()
    viewers = rig.streams(4, chunks=20, barrier=barrier)
    rig.proxy.answer(LOADING)
    response = rig.post()
    assert (response.status_code, response.json()["error"]["code"]) == (503, "storage_unavailable")
    time.sleep(1.5 * LEASE_S)
    rig.proxy.heal()
    barrier.go()
    rig.whole(viewers)


def test_f22_busy_with_a_script(rig: Rig) -> None:
    barrier = Pause()
    viewers = rig.streams(4, chunks=20, barrier=barrier)
    rig.redis.config_set("busy-reply-threshold", 50)
    with open_store(rig.valkey.url) as other:
        script = threading.Thread(target=loop_for_ever, args=(other,))
        script.start()
        try:
            wait_until(lambda: busy(rig.redis), what="the server is busy")
            assert rig.post().status_code == 503
        finally:
            rig.redis.script_kill()
            script.join()
    barrier.go()
    rig.whole(viewers)


def loop_for_ever(client: Store) -> None:
    with suppress(redis.ResponseError):
        client.eval("while true do end", 0)


def busy(client: Store) -> bool:
    try:
        return not client.ping()
    except redis.exceptions.BusyLoadingError:
        return False
    except redis.ResponseError as error:
        return "BUSY" in str(error)


def test_f22_connections_do_not_grow_with_viewers_and_running_out_is_survived(rig: Rig) -> None:
    barrier = Pause()
    viewers = rig.streams(2, chunks=20, barrier=barrier)
    clients = [httpx.Client(timeout=60, trust_env=False, verify=False) for _ in range(60)]
    rig.redis.config_set("maxclients", 60)
    try:
        url = f"{rig.stack.url}/v1/streams/{viewers[0].id}"
        streams = [client.send(client.build_request("GET", url), stream=True) for client in clients]
        assert {response.status_code for response in streams} == {200}
        assert rig.proxy.live <= 60  # 20 for each of three processes
        rig.redis.config_set("maxclients", 10)
        rig.redis.client_kill_filter(_type="normal", skipme=True)
        time.sleep(1)
        rig.redis.config_set("maxclients", 1000)
        barrier.go()
        rig.whole(viewers)
        assert all(response.read().endswith(b"data: [DONE]\n\n") for response in streams)
    finally:
        rig.redis.config_set("maxclients", 1000)
        for client in clients:
            client.close()


# ---- at the start


def start(command: str, url: str, directory: Path) -> subprocess.Popen[str]:
    """`python -m MODULE`, or `streamspool COMMAND`."""
    program, *words = command.split()
    environment = {
        **os.environ,
        "REDIS_URL": url,
        "PORT": str(free_port()),
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "NO_COLOR": "1",
    }
    arguments = [sys.executable, *(words if program == "python" else ("-m", "shared.cli.main", *words))]
    return subprocess.Popen(
        arguments, env=environment, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


WRONG = {
    "password": ("redis://nobody:canary@127.0.0.1:{port}/0", "password"),
    "database": ("redis://127.0.0.1:{port}/4711", "DB index"),
    "TLS": ("rediss://:canary@127.0.0.1:{port}/0?ssl_cert_reqs=none", "does not speak TLS"),
    "option": (
        "redis://:canary@127.0.0.1:{port}/0?socket_timeout=0.05&max_connections=1",
        "`socket_timeout` cannot be set",
    ),
    "certificate": ("rediss://:canary@127.0.0.1:{port}/0?ssl_ca_certs=/nowhere", "names certificates"),
    "port": ("redis://:canary@127.0.0.1:http/0", "port"),
    "sentinel": ("redis+sentinel://:canary@127.0.0.1:{port}/mymaster/one", "database"),
}


@pytest.mark.parametrize("command", ["python -m worker", "python -m api", "streamspool up", "streamspool worker"])
@pytest.mark.parametrize("wrong", WRONG)
def test_f45_what_can_never_work_ends_the_start_with_the_reason(
    shared_rig: Rig, tmp_path: Path, command: str, wrong: str
) -> None:
    url, says = WRONG[wrong]
    process = start(command, url.format(port=shared_rig.proxy.port), tmp_path)
    try:
        printed, _ = process.communicate(timeout=200)
    finally:
        process.kill()
    assert process.returncode == 2, printed
    lines = [line for line in printed.splitlines() if "no API keys" not in line]  # the API's, which is no error
    assert len(lines) == 1, printed
    assert says in lines[0]
    assert "REDIS_URL" in lines[0]
    assert "canary" not in printed


@pytest.mark.parametrize("command", ["python -m worker", "python -m api"])
def test_f45_what_may_heal_is_waited_for_and_says_why(tmp_path: Path, command: str) -> None:
    process = start(command, "rediss://:canary@nowhere.invalid/0", tmp_path)
    assert process.stdout is not None
    printed = ""
    try:
        while not ('"redis failed"' in printed and '"waiting for redis"' in printed):
            printed += (line := process.stdout.readline())
            assert line, printed
    finally:
        process.terminate()
        process.communicate(timeout=100)
    assert "name not known" in printed or "name cannot be looked up" in printed
    assert "canary" not in printed


def test_f45_redis_that_is_not_there_yet_is_waited_for(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """Containers start in any order."""
    valkey = EmbeddedValkey(tmp_path / "data")
    stack = Stack(valkey.url, upstream.base_url, tmp_path)
    try:
        for name in ("worker", "api"):
            stack.start(name)
            wait_until(lambda name=name: "waiting for redis" in stack.log(name), what=f"{name} says so")
        valkey.launch()
        stack.wait_ready()
    finally:
        stack.__exit__()
        valkey.stop()


def test_f45_processes_end_in_peace_while_redis_is_away(tmp_path: Path, upstream: ScriptedUpstream) -> None:
    """What they would have told it, others find out by themselves."""
    valkey = EmbeddedValkey(tmp_path / "data")
    valkey.launch()
    stack = Stack(valkey.url, upstream.base_url, tmp_path, STREAMSPOOL_DRAIN_S="0.5")
    try:
        for name in ("worker", "api"):
            stack.start(name)
        stack.wait_ready()
        pause = Pause()
        script = upstream.script("cut", [b"data: {}\n\n", pause])
        with Client(stack.url) as client, client.streaming("scripted/cut"):
            wait_until(lambda: script.calls, what="the provider is asked")
            valkey.stop()
            for name in ("api", "worker"):
                stack.process(name).terminate()
            assert [stack.process(name).wait(60) for name in ("api", "worker")] == [0, 0]
        pause.go()
        assert "Traceback" not in stack.log("api") + stack.log("worker")
    finally:
        stack.__exit__()
        valkey.stop()


def test_f20_risks_are_told_at_the_start(shared_rig: Rig, tmp_path: Path) -> None:
    shared_rig.redis.config_set("appendonly", "no")
    shared_rig.redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        process = start("python -m worker", f"redis://127.0.0.1:{shared_rig.proxy.port}/7", tmp_path)
        assert process.stdout is not None
        printed = ""
        while "worker started" not in printed:
            printed += (line := process.stdout.readline())
            assert line, printed
        process.terminate()
        process.communicate(timeout=100)
    finally:
        shared_rig.redis.config_set("maxmemory-policy", "noeviction")
        shared_rig.redis.config_set("appendonly", "yes")
    assert "nothing on disk" in printed
    assert "may evict" in printed
