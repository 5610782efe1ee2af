"""The recipes of docs/PROXIES.md, each run between a client and a real API: what passes, when, and how it breaks off."""

from __future__ import annotations

import json
import signal
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import trustme

from shared.cli.embedded import EmbeddedValkey
from tests.harness.processes import Stack, wait_until
from tests.harness.upstream import Pause, ScriptedUpstream, ending, words
from tests.support.fronts import KINDS, LONGEST_S, Front, Kind, Relay, start_all, table
from tests.support.wire import KEY_A, ask

UPLOAD_BYTES = 20_000_000
HTTP = ("--http1.1", "--http2")
pytestmark = pytest.mark.timeout(2 * LONGEST_S)


@pytest.fixture(scope="module")
def api(
    valkey: EmbeddedValkey, upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    url = valkey.url.replace("db=0", "db=6")
    settings = {
        "STREAMSPOOL_API_KEYS": f"a:{KEY_A}",
        "STREAMSPOOL_TRUSTED_PROXIES": "127.0.0.1",
        "STREAMSPOOL_DRAIN_S": "2",
        "STREAMSPOOL_HOLD_HEADERS_S": "0.2",
        "STREAMSPOOL_KEEPALIVE_S": "0.2",
    }
    with Stack(url, upstream.base_url, tmp_path_factory.mktemp("api"), **settings) as running:
        yield running


@pytest.fixture(scope="module")
def fronts(api: Stack) -> Iterator[dict[str, Front]]:
    """All that are installed, by name, each with a network of its own to the API."""
    authority = trustme.CA()
    with ExitStack() as exits:
        place = Path(exits.enter_context(TemporaryDirectory()))
        place.chmod(0o755)  # some work as another user
        found = {}
        for kind in KINDS:
            if kind.path is not None:
                (place / kind.name).mkdir()
                relay = exits.enter_context(Relay(api.port))
                found[kind.name] = Front(kind, relay, place / kind.name, authority)
        for front in found.values():
            exits.callback(front.stop)
        start_all(found.values())
        yield found


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def front(request: pytest.FixtureRequest, fronts: dict[str, Front]) -> Front:
    kind: Kind = request.param
    if kind.name not in fronts:
        pytest.skip(f"no {kind.program} here")
    return fronts[kind.name]


class Asked:
    """One request by curl; what comes is read as it comes."""

    def __init__(self, front: Front, path: str, *arguments: str, http: str = HTTP[0]) -> None:
        key = ["-H", f"Authorization: Bearer {KEY_A}"]
        command = front.curl(http, *key, *arguments, front.url + path)
        self._curl = subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0)
        self.body = b""

    def until(self, text: bytes) -> None:
        assert self._curl.stdout is not None
        while text not in self.body and (piece := self._curl.stdout.read(65536)):
            self.body += piece
        assert text in self.body

    def end(self) -> int:
        """Until there is no more: curl's exit code, which is 0 if the response ended as it should."""
        rest, _ = self._curl.communicate(timeout=LONGEST_S)
        self.body += rest
        return self._curl.returncode

    def close(self) -> None:
        self._curl.kill()
        self._curl.communicate()


@contextmanager
def half_an_answer(upstream: ScriptedUpstream, *places: tuple[Front, str]) -> Iterator[tuple[Pause, list[Asked]]]:
    """Chat streams through these proxies, each in its HTTP, that have shown three words and wait."""
    pause, name = Pause(), f"half-{uuid.uuid4().hex}"
    upstream.script(name, [*words(3), pause, *words(6)[4:], *ending()])
    body = ["-H", "Content-Type: application/json", "-d", json.dumps(ask(f"scripted/{name}", stream=True))]
    with ExitStack() as exits:
        streams = []
        for front, http in places:
            streams.append(Asked(front, "/v1/chat/completions", *body, http=http))
            exits.callback(streams[-1].close)
        exits.callback(pause.go)
        for stream in streams:
            stream.until(b"w2 ")
        yield pause, streams


def get(front: Front, path: str, *arguments: str) -> Any:
    asked = Asked(front, path, *arguments)
    assert asked.end() == 0
    return json.loads(asked.body)


def offered(front: Front) -> tuple[str, ...]:
    return HTTP if front.kind.tls else HTTP[:1]


def test_what_the_document_says_was_seen_is_of_proxies_that_are_tried(fronts: dict[str, Front]) -> None:
    rows = table()
    assert {title for title, _ in rows} == {kind.title for kind in KINDS}
    for row in rows.values():
        assert {row.cut_1, row.cut_2} <= {"seen", "hidden", "–"}, row
        assert (row.stop, row.to_api) == ("told", "HTTP/1.1"), row


def test_a_large_upload_arrives_whole(front: Front, tmp_path: Path) -> None:
    (tmp_path / "large.jsonl").write_bytes(b"x" * UPLOAD_BYTES)
    found = get(front, "/v1/files", "-F", "purpose=user_data", "-F", f"file=@{tmp_path}/large.jsonl")
    assert found["bytes"] == UPLOAD_BYTES


@pytest.mark.parametrize("http", HTTP)
def test_events_come_before_the_answer_is_over(front: Front, upstream: ScriptedUpstream, http: str) -> None:
    if http not in offered(front):
        http = HTTP[0]
    with half_an_answer(upstream, (front, http)) as (pause, (stream,)):
        pause.go()
        assert stream.end() == 0
    assert stream.body.endswith(b"data: [DONE]\n\n")
    assert front.relay.versions == {"HTTP/1.1"}


@pytest.mark.parametrize("http", HTTP)
def test_a_cut_is_what_the_document_says_it_is(front: Front, upstream: ScriptedUpstream, http: str) -> None:
    """Of a version that it does not name, nothing is asked but that no end is made up."""
    if http not in offered(front):
        http = HTTP[0]
    with half_an_answer(upstream, (front, http)) as (_, (stream,)):
        front.relay.cut()
        seen = stream.end() != 0
    assert b"[DONE]" not in stream.body
    assert b'"error"' not in stream.body
    row = table().get((front.kind.title, front.kind.installed()))
    if row is not None:
        assert ("seen" if seen else "hidden") == (row.cut_1 if http == HTTP[0] else row.cut_2)


def test_behind_each_a_client_is_told_that_the_api_stops(
    api: Stack, fronts: dict[str, Front], upstream: ScriptedUpstream
) -> None:
    """Whether it hides cuts or not, in either HTTP: half an answer looks whole to nobody."""
    places = [(front, http) for front in fronts.values() for http in offered(front)]
    with half_an_answer(upstream, *places) as (_, streams):
        api.kill("api", signal.SIGTERM)
        for stream in streams:
            stream.end()
        assert api.process("api").wait(LONGEST_S) == 0
    api.start("api")
    api.wait_ready()
    for (front, http), stream in zip(places, streams, strict=True):
        last = stream.body.rstrip(b"\n").rpartition(b"retry: 2000\ndata: ")[2]
        assert last.startswith(b'{"error"'), (front.kind.name, http, stream.body[-300:])
        assert json.loads(last)["error"]["code"] == "draining"
        assert b"[DONE]" not in stream.body


def test_links_have_the_prefix_that_the_proxy_says_and_no_other(front: Front) -> None:
    body = ["-H", "Content-Type: application/json", "-d", json.dumps(ask("fake/echo", background=True))]
    for path, prefix in (("", ""), ("/llm", "/llm")):
        for more in ([], ["-H", "X-Forwarded-Prefix: /elsewhere"]):
            found = get(front, f"{path}/v1/chat/completions", *body, *more)
            assert found["object"] == "stream", found
            assert set(found["links"].values()) >= {f"{prefix}/v1/streams/{found['id']}"}, found["links"]


@pytest.mark.parametrize(
    "path",
    ["/metrics", "/metrics/", "//metrics", "/%6Detrics", "/llm/metrics", "/llm//metrics", "/metrics?x=1", "/METRICS"],
)
def test_metrics_are_not_for_the_world(front: Front, path: str) -> None:
    """However they are spelled: a proxy compares names, and the API is asked what is left."""
    asked = Asked(front, path, "--path-as-is", "--location")
    asked.end()
    assert b"streamspool_" not in asked.body


def test_what_was_cut_is_there_by_its_id(front: Front, upstream: ScriptedUpstream) -> None:
    with half_an_answer(upstream, (front, HTTP[0])) as (pause, (stream,)):
        front.relay.cut()
        stream.end()
        pause.go()
    (first, *_) = [json.loads(line[6:]) for line in stream.body.split(b"\n") if line.startswith(b"data: ")]
    path = f"/v1/streams/{first['id']}"
    wait_until(lambda: get(front, path, "-H", "Accept: application/json")["status"] == "completed")
