"""The webhook sender: carries queued webhooks to their receivers, from the only process that calls out.

Hidden here: the signature (standardwebhooks.com; openai.webhooks.unwrap checks it), the look-up of the receiver's name
in threads of its own, the connection to an address that was looked at first, and that no receiver, however slow,
takes all there is. What is due, whose it is and when it is tried again: shared/features/webhooks.py. What HTTP it takes:
shared/lib/post.py.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import socket
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from ipaddress import ip_address
from typing import Self
from urllib.parse import urlsplit

from shared.config.settings import Settings
from shared.features.webhooks import Delivery, Result, Webhooks
from shared.lib import http
from shared.lib.egress import Address, Place, Refused
from shared.lib.post import NotAnswered, NotConnected, posted
from shared.lib.tasks import cancel
from shared.lib.telemetry import WEBHOOKS, get_logger
from shared.store.redis import RedisError, log_redis_error
from worker import spans
from worker.providers.errors import retry_after

logger = get_logger(__name__)

POLL_S = 1.0
AT_ONCE = 32
AT_ONCE_EACH = 8
"""Deliveries at once, of a worker and of one host: a receiver that hangs must not keep the others from theirs."""

_LOOKED_THROUGH = 256
_RESOLVERS = 4
_ADDRESSES_TRIED = 3


def signature(keys: Sequence[bytes], event_id: str, timestamp: int, body: bytes) -> str:
    """The header `webhook-signature`: one `v1,BASE64` for each key, HMAC-SHA256 over `id.timestamp.body`."""
    signed = b".".join((event_id.encode(), str(timestamp).encode(), body))
    digests = (hmac.new(key, signed, hashlib.sha256).digest() for key in keys)
    return " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)


class WebhookSender:
    """An async context manager; `run` loops for ever, `drain` lets what is under way come to its end."""

    def __init__(self, webhooks: Webhooks, settings: Settings) -> None:
        self._webhooks, self._settings = webhooks, settings
        self._under_way: dict[asyncio.Task[None], str] = {}
        """Task → the receiver's host and port, as the URL has them."""
        self._stack = AsyncExitStack()
        self._draining = False

    async def __aenter__(self) -> Self:
        self._tls = http.public_tls()
        self._resolvers = ThreadPoolExecutor(_RESOLVERS, "webhook-resolver")
        self._stack.callback(self._resolvers.shutdown, wait=False, cancel_futures=True)
        return self

    async def __aexit__(self, *_: object) -> None:
        await cancel(*self._under_way)
        await self._stack.aclose()

    async def run(self) -> None:
        """Begins what is due. Raises RedisError, OSError; what is under way goes on."""
        while not self._draining:
            await self._look()
            await asyncio.sleep(POLL_S)

    async def drain(self) -> None:
        """Begins nothing more and waits for what was begun, `drain_s` at most. What is cut off then, others do again."""
        self._draining = True
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=self._settings.drain_s)

    async def _look(self) -> None:
        for task in [task for task in self._under_way if task.done()]:
            del self._under_way[task]
            if not task.cancelled() and (error := task.exception()):
                log_redis_error("webhook", error)  # a bug; this one's lease lapses, and the others go on
        if len(self._under_way) >= AT_ONCE:
            return
        each, busy = Counter(self._under_way.values()), []
        for subject, url in await self._webhooks.due(_LOOKED_THROUGH):
            receiver = _receiver(url)
            if each[receiver] >= AT_ONCE_EACH:
                busy.append(subject)
            elif len(self._under_way) < AT_ONCE and not self._draining:
                each[receiver] += 1
                self._under_way[asyncio.create_task(self._deliver(subject))] = receiver
        if busy:
            await self._webhooks.postpone(busy, POLL_S)

    async def _deliver(self, subject: str) -> None:
        try:
            delivery = await self._webhooks.begin(subject)
            if delivery is None:
                return
            async with AsyncExitStack() as connection:  # closed, which may take a moment, when all is written down
                with spans.delivering(delivery):
                    tried = await self._attempt(delivery, connection)
                    spans.delivered(tried)
                self._tell(delivery, await self._webhooks.end(delivery, tried))
        except (RedisError, OSError) as error:
            log_redis_error("webhook", error, subject=subject)  # its lease lapses, and it is due again

    def _tell(self, delivery: Delivery, result: Result) -> None:
        WEBHOOKS.labels(result.outcome).inc()
        about = {"subject": delivery.subject, "event_id": delivery.event_id, "attempt": delivery.attempt}
        if result.outcome == "delivered":
            logger.info("webhook delivered", **about, status=result.status)
        elif result.outcome == "retried":
            logger.info("webhook retried", **about, status=result.status, error_code=result.error)
        else:
            logger.warning("webhook failed", **about, status=result.status, error_code=result.error)

    async def _attempt(self, delivery: Delivery, connection: AsyncExitStack) -> Result:
        """One try, up to the answer's status, which ends in time and in no exception."""
        try:
            async with asyncio.timeout(self._settings.webhook_timeout_s):
                place = self._webhooks.policy.check_url(delivery.url)
                addresses = await self._look_up(place)
                return await self._post(delivery, place, addresses, connection)
        except Refused:
            return Result("failed", error="address_refused")
        except TimeoutError:
            return Result("retried", error="timeout")
        except socket.gaierror:
            return Result("retried", error="dns_error")
        except NotConnected:
            return Result("retried", error="connect_error")
        except NotAnswered:
            return Result("retried", error="connection_lost")

    async def _look_up(self, place: Place) -> list[Address]:
        """The host's addresses, each of them one that may be called. Raises Refused, gaierror."""
        found = await asyncio.get_running_loop().run_in_executor(
            self._resolvers, lambda: socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
        )
        addresses = list(dict.fromkeys(ip_address(one[4][0]) for one in found))
        for address in addresses:
            self._webhooks.policy.check_address(place.host, address)
        return addresses

    async def _post(
        self, delivery: Delivery, place: Place, addresses: list[Address], connection: AsyncExitStack
    ) -> Result:
        keys = self._webhooks.secrets(delivery.tenant)
        if not keys:
            return Result("retried", error="no_secret")
        timestamp = int(time.time())
        headers = {
            "user-agent": http.user_agent(),
            "content-type": "application/json",
            "webhook-id": delivery.event_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature(keys, delivery.event_id, timestamp, delivery.event),
        }
        tried = list(
            dict.fromkeys((*addresses[: _ADDRESSES_TRIED - 1], addresses[-1]))
        )  # the last one is often of the other family
        for address in tried:
            request = posted(place, address, headers=headers, content=delivery.event, tls=self._tls)
            try:
                answer = await connection.enter_async_context(request)
                break
            except NotConnected:
                if address == tried[-1]:
                    raise
        if 200 <= answer.status < 300:
            return Result("delivered", answer.status)
        if answer.status == 410:  # "do not send me this any more"
            return Result("failed", 410, "gone")
        return Result("retried", answer.status, "http_status", retry_after(answer.headers))


def _receiver(url: str) -> str:
    """Host and port; what cannot be read is refused later."""
    try:
        return urlsplit(url).netloc
    except ValueError:
        return ""
