"""Which answered errors an SDK makes again by itself, and what that costs: the table "Repeats" of docs/API.md."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

import openai
import pytest

from api.errors import is_passing_refusal
from shared import errors
from tests.harness.processes import Stack, wait_until
from tests.harness.upstream import Pause, ScriptedUpstream, ending, words
from tests.support.clients import PROGRAMS, ROOT
from tests.support.wire import Client

pytestmark = pytest.mark.timeout(300)
ERROR = b'{"error": {"message": "It went wrong.", "type": "t", "param": null, "code": "c"}}'
SDKS = ("openai-python", "openai-node", "ai-sdk")


class Row(NamedTuple):
    """One of the table: a status, the header `x-should-retry` or nothing, codes, and how many requests each SDK makes."""

    status: int
    header: str
    codes: list[str]
    openai: int
    ai_sdk: int

    @property
    def case(self) -> str:
        return f"{self.status}-{self.header or 'none'}"


def rows() -> list[Row]:
    text = (ROOT / "docs/API.md").read_text("utf-8").partition("## Repeats")[2]
    found = re.findall(r"^\| (\d{3}) \| (–|`true`|`false`) \| (.+?) \| (\d) \| (\d) \|", text, re.M)
    return [
        Row(int(status), header.strip("–`"), re.findall(r"`(\w+)`", codes), int(one), int(other))
        for status, header, codes, one, other in found
    ]


@contextmanager
def answering() -> Iterator[tuple[str, Counter[str]]]:
    """A server whose answer is named by the path, `/SDK/STATUS-HEADER/…`; and how often each was asked for."""
    asked: Counter[str] = Counter()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            _, sdk, case, *_ = self.path.split("/")
            asked[f"{sdk} {case}"] += 1
            status, header = case.split("-")
            self.send_response(int(status))
            body = b"data: " + ERROR + b"\n\ndata: [DONE]\n\n" if status == "200" else ERROR
            self.send_header("content-type", "text/event-stream" if status == "200" else "application/json")
            self.send_header("content-length", str(len(body)))
            self.send_header("retry-after-ms", "1")
            if header != "none":
                self.send_header("x-should-retry", header)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128  # of 5, some connections of many at once have to be begun again, a second later

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


def node(*arguments: str) -> None:
    program = shutil.which("node")
    if not program or not (PROGRAMS / "node_modules/ai").exists():
        pytest.skip("no node, or no AI SDK in tests/clients: run `make clients`")
    subprocess.run([program, str(PROGRAMS / "repeats.mjs"), *arguments], timeout=250, check=True)


def test_a2_j1_each_sdk_makes_as_many_requests_as_the_table_says() -> None:
    table = rows()
    assert len(table) > 10
    with answering() as (url, asked):
        node(url, json.dumps([row.case for row in table]))
        for row in table:
            address = f"{url}/openai-python/{row.case}/v1"
            with openai.OpenAI(base_url=address, api_key="any") as client, suppress(openai.APIError):
                made = client.chat.completions.create(model="m", messages=[], stream=row.status == 200)
                list(made)
    found = {row.case: [asked[f"{sdk} {row.case}"] for sdk in SDKS] for row in table}
    assert found == {row.case: [row.openai, row.openai, row.ai_sdk] for row in table}


def test_the_table_has_each_error_of_a_generation_with_its_status_and_header() -> None:
    """Also: none of them is one that an SDK repeats because of its status alone."""
    table = {(row.status, row.header, code) for row in rows() for code in row.codes}
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    ended = [
        kind() for kind in kinds if issubclass(kind, errors.GenerationEnded) and kind is not errors.GenerationEnded
    ]
    for error in ended:
        stored = error.to_stored()
        if error.status >= 408:
            told = "true" if is_passing_refusal(stored) else "false"
            assert (error.status, told, error.code) in table, error
        assert error.headers()["x-should-retry"] == "false"


def test_what_was_cancelled_does_not_begin_again(stack: Stack, client: Client, upstream: ScriptedUpstream) -> None:
    """With the SDK that does not heed the header."""
    pause, name = Pause(), f"cancelled-{uuid.uuid4().hex[:8]}"
    upstream.script(name, [*words(2), pause, *ending()])
    listed = f"/v1/streams?model=scripted/{name}"
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(node, stack.url, json.dumps([f"scripted/{name}"]), "once", "{}")
        (state,) = wait_until(lambda: asking.done() or client.get(f"{listed}&status=in_progress").json()["data"], 60)
        assert client.cancel(state["id"]).status_code == 200
        asking.result(250)
    pause.go()
    assert [one["status"] for one in client.get(listed).json()["data"]] == ["cancelled"]


@pytest.mark.parametrize(("with_key", "generations"), [(False, 3), (True, 1)])
def test_only_an_idempotency_key_keeps_the_ai_sdk_from_paying_again(
    stack: Stack, client: Client, upstream: ScriptedUpstream, with_key: bool, generations: int
) -> None:
    name = f"cut-{uuid.uuid4().hex[:8]}"
    headers = {"Idempotency-Key": name} if with_key else {}
    script = upstream.script(name, words(2), end="cut")
    node(stack.url, json.dumps([f"scripted/{name}"]), "once", json.dumps(headers))
    states = client.get(f"/v1/streams?model=scripted/{name}").json()["data"]
    assert [one["status"] for one in states] == ["failed"] * generations
    assert len(script.calls) == generations
