"""Receive webhooks, and believe only those that are signed. Python's standard library is enough.

    STREAMSPOOL_WEBHOOK_SECRET=whsec_… python examples/webhook_receiver.py [PORT]

The secret is the one that the server was started with. A server on this machine calls a receiver on loopback only where
STREAMSPOOL_WEBHOOK_ALLOW names it (`127.0.0.1`); elsewhere a receiver needs https.

The signature is that of standardwebhooks.com: `v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import sys
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

OLDEST_S = 300
"""An older delivery may be a recorded one that is sent again."""


class Untrusted(Exception):
    """The signature, or its age, is not what it should be."""


def verify(secret: str, headers: Mapping[str, str], body: bytes) -> None:
    """Raises Untrusted unless the body was signed with the secret within the last five minutes."""
    event_id, timestamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not timestamp.isdigit() or abs(time.time() - int(timestamp)) > OLDEST_S:
        raise Untrusted("webhook-timestamp is missing, or not of these minutes")
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.new(key, f"{event_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    expected = f"v1,{base64.b64encode(digest).decode()}"
    given = headers.get("webhook-signature", "").split(" ")  # two, while a secret is being changed
    if not any(hmac.compare_digest(expected.encode(), signature.encode()) for signature in given):
        raise Untrusted("webhook-signature does not match")


class Receiver(BaseHTTPRequestHandler):
    """Answers 204 to what is signed, and 401 to the rest."""

    secret = ""
    seen: set[str] = set()
    """Ids of events: one may be delivered more than once. A real receiver keeps them in its database."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        try:
            verify(self.secret, self.headers, body)
        except Untrusted as error:
            self.reply(401)
            print(f"refused: {error}", flush=True)
            return
        self.reply(204)  # first: what is done with the event must not keep the sender waiting
        event = json.loads(body)
        if event["id"] not in self.seen:
            self.seen.add(event["id"])
            print(f"{event['type']} {event['data']['id']}", flush=True)

    def reply(self, status: int) -> None:
        self.send_response(status)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing: what matters is printed above."""


if __name__ == "__main__":
    Receiver.secret = os.environ["STREAMSPOOL_WEBHOOK_SECRET"]
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1]) if len(sys.argv) > 1 else 8080), Receiver)
    print(f"listening on http://127.0.0.1:{server.server_port}/", flush=True)
    server.serve_forever()
