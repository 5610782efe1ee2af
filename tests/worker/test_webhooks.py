"""The courier: what a receiver gets, where it is sought, and what does not make a delivery."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
from openai import InvalidWebhookSignatureError

from shared.config.settings import Settings
from shared.features.webhooks import Webhooks
from shared.lib import post as posting
from shared.store.redis import ArqRedis
from tests.harness.fake_store import fake_client
from tests.harness.processes import free_port
from tests.support.names import keys
from tests.support.receiver import SECRET, Receiver
from worker import webhooks as courier_module
from worker.webhooks import WebhookSender

OTHER_SECRET = "whsec_" + "YW5vdGhlci1zZWNyZXQtb2YtYW5vdGhlci10ZW5hbnQ="
PUBLIC = "93.184.216.34"


@pytest.fixture
async def redis() -> AsyncIterator[ArqRedis]:
    client = fake_client()
    yield client
    await client.aclose(close_connection_pool=True)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as running:
        yield running


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, list[list[str]]]]:
    """What each look-up of a name finds, one after the other; the rest of the names are as they are."""
    found: dict[str, list[list[str]]] = {}
    real = socket.getaddrinfo

    def look_up(host: str, port: int, **how: Any) -> list[Any]:
        if host not in found:
            return real(host, port, **how)
        assert found[host], f"{host} was looked up once too often"
        addresses = found[host].pop(0)
        if not addresses:
            raise socket.gaierror(-2, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    yield found
    assert not any(found.values()), "looked up less often than expected"


class Post:
    """A courier at work on a store of its own."""

    def __init__(self, redis: ArqRedis, **given: Any) -> None:
        fields = {"webhook_secret": SECRET, "webhook_allow": ["127.0.0.1"], "webhook_retry_s": 0.01, **given}
        self.settings = Settings(**fields)
        self.redis = redis
        self.webhooks = Webhooks(redis, self.settings)
        self.courier = WebhookSender(self.webhooks, self.settings)
        self._targets: dict[str, Any] = {}

    async def queue(self, subject: str, url: str, *, tenant: str = "ann") -> None:
        self._targets[subject] = {"url": url, "default": False}
        async with self.redis.pipeline(transaction=True) as pipe:
            self.webhooks.queue(
                pipe, subject, self._targets[subject], tenant=tenant, event="batch.completed", created_at=7, kept_s=60
            )
            await pipe.execute()

    async def state(self, subject: str) -> dict[str, Any]:
        (state,) = await self.webhooks.shown([(subject, self._targets[subject], True)])
        assert state
        return state

    async def until(self, subject: str, ready: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        async with asyncio.timeout(60):
            while not ready(state := await self.state(subject)):  # noqa: ASYNC110 - Redis does not wake us
                await asyncio.sleep(0.01)
        return state

    async def told(self, subject: str, url: str, **about: Any) -> dict[str, Any]:
        """The state after the first attempt, or the end."""
        await self.queue(subject, url, **about)
        return await self.until(subject, lambda state: state["error"] or state["status"] != "pending")


@asynccontextmanager
async def post(redis: ArqRedis, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> AsyncIterator[Post]:
    monkeypatch.setattr(courier_module, "POLL_S", 0.01)
    found = Post(redis, **settings)
    async with found.courier:
        running = asyncio.create_task(found.courier.run())
        yield found
        await found.courier.drain()
        await running


async def test_the_official_client_trusts_what_it_gets(
    redis: ArqRedis, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with post(redis, monkeypatch) as mail:
        state = await mail.told("batch_1", f"{receiver.url}?token=x")
    (hook,) = receiver.got
    event = hook.event()
    assert (event["type"], event["created_at"], event["data"]) == ("batch.completed", 7, {"id": "batch_1"})
    assert event["id"] == state["event_id"] == hook.headers["webhook-id"]
    assert hook.path == "/hook?token=x"
    assert hook.headers["content-type"] == "application/json"
    assert hook.headers["host"] == f"127.0.0.1:{receiver.port}"
    assert hook.headers["user-agent"].startswith("streamspool/")
    assert (state["status"], state["attempts"], state["last_status"]) == ("delivered", 1, 200)
    forged = hook._replace(body=hook.body.replace(b"batch_1", b"batch_2"))
    for wrong, secret in ((forged, SECRET), (hook, OTHER_SECRET)):
        with pytest.raises(InvalidWebhookSignatureError):
            wrong.event(secret)


async def test_tenants_have_secrets_of_their_own_and_may_change_them(
    redis: ArqRedis, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with post(redis, monkeypatch, webhook_secret=f"ann:{SECRET},bob:{OTHER_SECRET} {SECRET}") as mail:
        await mail.told("batch_1", receiver.url)
        await mail.told("batch_2", receiver.url, tenant="bob")
        assert (await mail.told("batch_3", receiver.url, tenant="eve"))["error"] == "no_secret"
    first, second = receiver.got
    first.event(SECRET)
    with pytest.raises(InvalidWebhookSignatureError):
        first.event(OTHER_SECRET)
    for secret in (SECRET, OTHER_SECRET):
        assert second.event(secret)["data"] == {"id": "batch_2"}


async def test_it_is_sent_again_with_the_same_id_until_it_is_taken(
    redis: ArqRedis, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    statuses = iter([500, 404, 429, 202])
    receiver.answer = lambda _: next(statuses)
    async with post(redis, monkeypatch) as mail:
        await mail.queue("batch_1", receiver.url)
        state = await mail.until("batch_1", lambda state: state["status"] == "delivered")
    assert (state["attempts"], state["last_status"], state["error"]) == (4, 202, None)
    assert len({hook.headers["webhook-id"] for hook in receiver.got}) == 1
    assert {hook.body for hook in receiver.got} == {receiver.got[0].body}
    for hook in receiver.got:
        hook.event()


async def test_a_receiver_that_asks_to_be_left_alone_is(
    redis: ArqRedis, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    receiver.answer, receiver.headers = lambda _: 503, {"retry-after": "600"}
    before_s = time.time()
    async with post(redis, monkeypatch) as mail:
        state = await mail.told("batch_1", receiver.url)
    assert (state["status"], state["attempts"], state["last_status"]) == ("pending", 1, 503)
    assert 599 <= state["next_attempt_at"] - before_s <= 630


@pytest.mark.parametrize("said", ["9" * 400, "Fri, 31 Dec 9999 23:59:59 GMT", "nan", "-5"])
async def test_a_receiver_cannot_put_its_webhook_off_for_ever(
    redis: ArqRedis, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, said: str
) -> None:
    receiver.answer, receiver.headers = lambda _: 503, {"retry-after": said}
    before_s = time.time()
    async with post(redis, monkeypatch, webhook_retry_s=60) as mail:
        state = await mail.told("batch_1", receiver.url)
    assert (state["status"], state["attempts"]) == ("pending", 1)
    assert 30 <= state["next_attempt_at"] - before_s <= 3630


async def test_a_receiver_that_is_not_there_yet(redis: ArqRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    receiver = Receiver(port=free_port())  # one that nobody else is given meanwhile
    async with post(redis, monkeypatch) as mail:
        assert (await mail.told("batch_1", receiver.url))["error"] == "connect_error"
        with receiver:
            await mail.until("batch_1", lambda state: state["status"] == "delivered")


async def test_who_is_gone_is_left_alone(redis: ArqRedis, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    receiver.answer = lambda _: 410
    async with post(redis, monkeypatch) as mail:
        state = await mail.told("batch_1", receiver.url)
    assert (state["status"], state["error"], state["last_status"], len(receiver.got)) == ("failed", "gone", 410, 1)


async def test_redirects_are_not_followed(redis: ArqRedis, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    receiver.answer = lambda _: 307
    receiver.headers = {"location": f"http://127.0.0.1:{receiver.port}/elsewhere"}
    async with post(redis, monkeypatch, webhook_retry_s=60) as mail:
        state = await mail.told("batch_1", receiver.url)
    assert (state["status"], state["error"], state["last_status"]) == ("pending", "http_status", 307)
    assert [hook.path for hook in receiver.got] == ["/hook"]


async def test_a_receiver_that_does_not_answer(redis: ArqRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with post(redis, monkeypatch, webhook_timeout_s=0.2, webhook_retry_s=60) as mail:
            state = await mail.told("batch_1", f"http://127.0.0.1:{silent.getsockname()[1]}/")
    assert (state["error"], state["last_status"]) == ("timeout", None)


# ---- what an answer is: its status, once its head is there


@contextmanager
def answering(*pieces: bytes, then: Callable[[socket.socket], object] = lambda _: None) -> Iterator[str]:
    """The URL of somebody who answers every request with these bytes, piece by piece, and then does as told."""

    def serve() -> None:
        while True:
            try:
                connection = server.accept()[0]
            except OSError:
                return
            with connection:
                try:
                    request = b""
                    while b"}" not in request.partition(b"\r\n\r\n")[2]:
                        if not (piece := connection.recv(65536)):
                            raise ConnectionResetError
                        request += piece
                    for piece in pieces:
                        connection.sendall(piece)
                    then(connection)
                except OSError:
                    pass  # the other side has gone

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}/"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def drip(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"x")
        time.sleep(0.05)


def pour(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"x" * 65536)


def reset(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def be_silent(connection: socket.socket) -> None:
    connection.recv(1)


OK = b"HTTP/1.1 200 OK\r\n"
DELIVERIES: dict[str, tuple[tuple[bytes, ...], Callable[[socket.socket], object]]] = {
    "a body that drips": ((OK + b"content-length: 1000000\r\n\r\n",), drip),
    "a body without end": ((OK + b"content-length: 1000000000\r\n\r\n",), pour),
    "chunks without end": ((OK + b"transfer-encoding: chunked\r\n\r\n",), pour),
    "a body that never comes": ((OK + b"content-length: 10\r\n\r\n",), be_silent),
    "a body that is cut": ((OK + b"content-length: 10\r\n\r\nabc",), lambda _: None),
    "a body that is cut by a reset": ((OK + b"content-length: 10\r\n\r\nabc",), reset),
    "nothing after the head": ((OK + b"\r\n",), lambda _: None),
    "a connection that is kept": ((OK + b"content-length: 2\r\nconnection: keep-alive\r\n\r\nok",), be_silent),
    "204 with a body": ((b"HTTP/1.1 204 No Content\r\n\r\nbody",), drip),
    "299 without a phrase": ((b"HTTP/1.1 299\r\n\r\n",), lambda _: None),
    "HTTP/1.0": ((b"HTTP/1.0 200 OK\r\n\r\nok",), lambda _: None),
    "informational answers first": (
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK + b"\r\n",),
        lambda _: None,
    ),
    "garbage after it": ((OK + b"content-length: 2\r\n\r\nokHTTP/1.1 500 No\r\n\r\n\x00\xff",), lambda _: None),
    "a head byte by byte": (tuple(bytes([byte]) for byte in OK + b"a: b\r\n\r\n"), lambda _: None),
    "bare line feeds": ((b"HTTP/1.1 200 OK\na: b\n\n",), lambda _: None),
    "a length that is none": ((OK + b"content-length: some\r\n\r\n",), lambda _: None),
    "two lengths": ((OK + b"content-length: 1\r\ncontent-length: 2\r\n\r\nx",), lambda _: None),
    "a coding nobody knows": ((OK + b"transfer-encoding: rot13\r\n\r\nbx",), lambda _: None),
    "a header that is none": ((OK + b"\xff no header\r\n\r\n",), lambda _: None),
}


@pytest.mark.parametrize("kind", DELIVERIES)
async def test_a_2xx_is_a_delivery_whatever_comes_after_its_head(
    redis: ArqRedis, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    pieces, then = DELIVERIES[kind]
    with answering(*pieces, then=then) as url:
        async with post(redis, monkeypatch, webhook_timeout_s=30, webhook_retry_s=60) as mail:
            state = await mail.told("batch_1", url)
    assert (state["status"], state["attempts"], state["error"]) == ("delivered", 1, None)
    assert state["last_status"] == int(pieces[0][9:12] if "first" not in kind and len(pieces) == 1 else 200)


NO_ANSWERS = {
    "nothing": b"",
    "half a head": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n",
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
    "a version nobody speaks here": b"HTTP/2 200\r\n\r\n",
    "a status that is none": b"HTTP/1.1 2000 OK\r\n\r\n",
    "a head without end": OK + b"x: y\r\n" * 20_000,
    "a line without end": OK + b"x" * 200_000,
    "informational answers without end": b"HTTP/1.1 102 Processing\r\n\r\n" * 10_000,
}


@pytest.mark.parametrize("kind", NO_ANSWERS)
async def test_what_is_no_answer_is_tried_again(redis: ArqRedis, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    with answering(NO_ANSWERS[kind]) as url:
        async with post(redis, monkeypatch, webhook_retry_s=60) as mail:
            state = await mail.told("batch_1", url)
    assert (state["status"], state["error"], state["last_status"]) == ("pending", "connection_lost", None)


async def test_a_switch_of_protocols_is_no_delivery(redis: ArqRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n\r\n", then=be_silent) as url:
        async with post(redis, monkeypatch, webhook_retry_s=60) as mail:
            state = await mail.told("batch_1", url)
    assert (state["status"], state["error"], state["last_status"]) == ("pending", "http_status", 101)


async def test_a_short_body_is_let_come_so_that_the_receiver_sees_no_reset(
    redis: ArqRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(posting, "_LINGER_S", 30.0)
    seen: list[object] = []

    def look(connection: socket.socket) -> None:
        try:
            connection.shutdown(socket.SHUT_WR)
            seen.append(connection.recv(1))
        except OSError as error:
            seen.append(error)

    with answering(OK + b"content-length: 8192\r\n\r\n", *[b"x" * 1024] * 8, then=look) as url:
        async with post(redis, monkeypatch) as mail:
            await mail.told("batch_1", url)
    assert seen == [b""]


async def test_an_answer_without_end_is_not_read(redis: ArqRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    sent = []

    def count(connection: socket.socket) -> None:
        while True:
            sent.append(connection.send(b"x" * 65536))

    with answering(OK + b"content-length: 1000000000\r\n\r\n", then=count) as url:
        async with post(redis, monkeypatch) as mail:
            await mail.told("batch_1", url)
    assert sum(sent) < 100_000_000


# ---- where it is sought


@pytest.mark.parametrize("found", [["127.0.0.1"], [PUBLIC, "10.0.0.1"], ["169.254.169.254"]])
async def test_a_public_name_with_an_inner_address_is_refused(
    redis: ArqRedis, names: dict[str, list[list[str]]], monkeypatch: pytest.MonkeyPatch, found: list[str]
) -> None:
    names["rebinding.example.com"] = [found]
    async with post(redis, monkeypatch, webhook_allow=[]) as mail:
        state = await mail.told("batch_1", "https://rebinding.example.com/")
        assert await redis.zcard(keys.webhooks) == 0
    assert (state["status"], state["error"], state["attempts"]) == ("failed", "address_refused", 1)


async def test_a_name_is_looked_up_once_and_the_address_that_was_looked_at_is_called(
    redis: ArqRedis, receiver: Receiver, names: dict[str, list[list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second look-up would find another address: DNS rebinding."""
    names["hooks.internal"] = [["127.0.0.1"]]
    async with post(redis, monkeypatch, webhook_allow=["hooks.internal"]) as mail:
        state = await mail.told("batch_1", f"http://hooks.internal:{receiver.port}/x")
    assert state["status"] == "delivered"
    assert receiver.got[0].headers["host"] == f"hooks.internal:{receiver.port}"


async def test_every_attempt_looks_anew(
    redis: ArqRedis, receiver: Receiver, names: dict[str, list[list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    names["hooks.example.com"] = [[], ["127.0.0.1"]]
    async with post(redis, monkeypatch, webhook_allow=[]) as mail:
        await mail.queue("batch_1", f"https://hooks.example.com:{receiver.port}/")
        state = await mail.until("batch_1", lambda state: state["status"] == "failed")
    assert (state["error"], state["attempts"], receiver.got) == ("address_refused", 2, [])


async def test_the_next_address_is_tried_when_one_cannot_be_reached(
    redis: ArqRedis, receiver: Receiver, names: dict[str, list[list[str]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    names["hooks.internal"] = [["127.0.0.2", "127.0.0.1"]]
    async with post(redis, monkeypatch, webhook_allow=["hooks.internal"]) as mail:
        state = await mail.told("batch_1", f"http://hooks.internal:{receiver.port}/")
    assert (state["status"], state["attempts"]) == ("delivered", 1)


async def test_what_was_allowed_once_need_not_be_now(
    redis: ArqRedis, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with post(redis, monkeypatch, webhook_allow=[]) as mail:
        state = await mail.told("batch_1", receiver.url)
    assert (state["status"], state["error"], receiver.got) == ("failed", "address_refused", [])


@pytest.mark.parametrize(("certified", "status"), [("hooks.internal", "delivered"), ("other.internal", "pending")])
async def test_the_certificate_is_the_names_and_not_the_addresss(
    redis: ArqRedis,
    names: dict[str, list[list[str]]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    certified: str,
    status: str,
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(certified, "127.0.0.1").configure_cert(context)
    asked: list[str | None] = []
    context.sni_callback = lambda _, name, __: asked.append(name)
    names["hooks.internal"] = [["127.0.0.1"]]
    with Receiver(tls=context) as receiver:
        async with post(redis, monkeypatch, webhook_allow=["hooks.internal"], webhook_retry_s=60) as mail:
            state = await mail.told("batch_1", f"https://hooks.internal:{receiver.port}/")
    assert state["status"] == status
    assert asked == ["hooks.internal"]
    assert state["error"] == (None if status == "delivered" else "connect_error")
    assert len(receiver.got) == (status == "delivered")


# ---- many at once


async def test_a_receiver_that_hangs_does_not_keep_others_from_theirs(
    redis: ArqRedis, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(courier_module, "AT_ONCE", 3)
    monkeypatch.setattr(courier_module, "AT_ONCE_EACH", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with post(redis, monkeypatch, webhook_timeout_s=30, drain_s=0) as mail:
            for number in range(5):
                await mail.queue(f"a{number}", f"http://127.0.0.1:{silent.getsockname()[1]}/")
            await mail.until("a1", lambda state: state["attempts"])
            for number in range(5):
                await mail.queue(f"b{number}", receiver.url)
            for number in range(5):
                await mail.until(f"b{number}", lambda state: state["status"] == "delivered")
            assert [(await mail.state(f"a{number}"))["attempts"] for number in range(5)] == [1, 1, 0, 0, 0]


async def test_a_stopping_worker_finishes_what_it_began(
    redis: ArqRedis, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answer = threading.Event(), threading.Event()

    def hold(_: object) -> int:
        asked.set()
        return 200 if answer.wait(60) else 500

    receiver.answer = hold
    async with post(redis, monkeypatch) as mail:
        await mail.queue("batch_1", receiver.url)
        assert await asyncio.to_thread(asked.wait, 60)
        draining = asyncio.create_task(mail.courier.drain())
        answer.set()
        await draining
        assert (await mail.state("batch_1"))["status"] == "delivered"
        await mail.queue("batch_2", receiver.url)
    assert [json.loads(hook.body)["data"]["id"] for hook in receiver.got] == ["batch_1"]
