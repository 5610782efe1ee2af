"""HTTP as the world speaks it: offers of other protocols, HTTP/1.0, HEAD and OPTIONS, slashes, one host, clients that shut
their sending side, connections that stand idle. Raw bytes where it is about bytes, unchanged programs where there are some."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared.cli.embedded import EmbeddedValkey
from shared.config.settings import Settings
from tests.harness.processes import Stack, wait_until
from tests.harness.store import emptied
from tests.harness.upstream import Pause, ScriptedUpstream, ending, words
from tests.support.raw import Raw
from tests.support.wire import KEY_A, Client, Register, ask, refused

HOST = b"host: localhost\r\n"
H2C = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"
WEBSOCKET = b"connection: keep-alive, Upgrade\r\nupgrade: websocket\r\nsec-websocket-key: eHh4\r\n"
CHAT = b"POST /v1/chat/completions HTTP/1.1\r\ncontent-type: application/json\r\n" + HOST
GET = b"GET /healthz HTTP/1.1\r\n" + HOST


def said(answer: bytes) -> str:
    return str(json.loads(answer)["choices"][0]["message"]["content"])


def sized(head: bytes, body: bytes) -> bytes:
    return head + b"content-length: %d\r\n\r\n" % len(body) + body


def chunked(head: bytes, body: bytes) -> bytes:
    pieces = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (body[:7], body[7:]))
    return head + b"transfer-encoding: chunked\r\n\r\n" + pieces + b"0\r\n\r\n"


# ---- offers of other protocols


@pytest.mark.parametrize("offer", [H2C, WEBSOCKET, b"connection: upgrade\r\nupgrade: TLS/1.2, HTTP/2.0\r\n"])
@pytest.mark.parametrize("framed", [sized, chunked])
@pytest.mark.parametrize("step", [1, 100, 10_000])
def test_an_offered_upgrade_costs_no_body(
    raw: Raw, offer: bytes, framed: Callable[[bytes, bytes], bytes], step: int
) -> None:
    """Whatever the packets are; and the connection goes on, with another offer and without one."""
    request = framed(CHAT + offer, json.dumps(ask("fake/echo", "all of it")).encode())
    for whole in (request, request, GET + b"\r\n", GET + offer + b"\r\n", GET + b"\r\n"):
        for start in range(0, len(whole), step):
            raw.send(whole[start : start + step])
        answer = raw.answer()
        assert answer.status == 200, answer
        assert "connection" not in answer.headers
        if whole is request:
            assert said(answer.body) == "all of it"


def test_an_offer_in_1_0_is_one_of_1_0(raw: Raw) -> None:
    raw.send(sized(CHAT.replace(b"1.1", b"1.0") + H2C, json.dumps(ask("fake/echo", "all of it")).encode()))
    answer = raw.answer()
    assert "transfer-encoding" not in answer.headers
    assert said(answer.body) == "all of it"
    assert raw.ended()


def test_requests_behind_an_offer_are_answered_in_their_turn(raw: Raw) -> None:
    """All in one packet."""
    bodies = [json.dumps(ask("fake/echo", f"number {n}")).encode() for n in range(3)]
    raw.send(b"".join(sized(CHAT + H2C, body) + GET + H2C + b"\r\n" for body in bodies))
    for n in range(3):
        assert said(raw.answer().body) == f"number {n}"
        assert raw.answer().status == 200


def test_a_large_body_behind_an_offer_is_whole(raw: Raw) -> None:
    prompt = "word " * 100_000
    raw.send(sized(CHAT + H2C, json.dumps(ask("fake/echo", prompt, max_tokens=1)).encode()))
    assert raw.answer().status == 200


def test_an_offer_is_counted_as_any_head_is(raw: Raw) -> None:
    raw.send(GET + H2C + b"x-filler: " + b"x" * 70_000 + b"\r\n\r\n")
    raw.answer().check(431, "request_header_fields_too_large")


def test_a_tunnel_is_refused(raw: Raw) -> None:
    raw.send(b"CONNECT example.com:443 HTTP/1.1\r\nhost: example.com\r\n\r\n")
    raw.answer().check(405, "method_not_allowed")
    assert raw.ended()


def curl(*arguments: str) -> str:
    program = shutil.which("curl")
    if program is None:
        pytest.skip("there is no curl")
    done = subprocess.run([program, "-sS", "--noproxy", "*", *arguments], capture_output=True, timeout=100, check=True)
    return done.stdout.decode()


def test_curl_that_offers_http_2_gets_its_answer(stack: Stack) -> None:
    body = json.dumps(ask("fake/echo", "all of it"))
    json_type = "content-type: application/json"
    url = f"{stack.url}/v1/chat/completions"
    printed = curl("--http2", url, "-H", json_type, "-d", body, "--next", "-sS", "--http2", f"{stack.url}/healthz")
    assert "all of it" in printed
    assert printed.endswith('{"status":"ok"}')


JAVA = """
import java.net.URI;
import java.net.http.*;
import java.net.http.HttpRequest.BodyPublishers;
import java.net.http.HttpResponse.BodyHandlers;

public class Ask {
    public static void main(String[] given) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        for (int n = 0; n < 2; n++) {
            HttpRequest request = HttpRequest.newBuilder(URI.create(given[0] + "/v1/chat/completions"))
                .header("Content-Type", "application/json").POST(BodyPublishers.ofString(given[1 + n])).build();
            System.out.println(client.send(request, BodyHandlers.ofString()).body());
        }
    }
}
"""


@pytest.mark.timeout(300)
def test_a_java_client_with_its_defaults_gets_its_answers(stack: Stack, tmp_path: Path) -> None:
    """`HttpClient.newHttpClient()` offers h2c with each request, as all that is built upon it does (Spring, LangChain4j)."""
    java = shutil.which("java")
    if java is None or shutil.which("javac") is None:
        pytest.skip("there is no JDK")
    (tmp_path / "Ask.java").write_text(JAVA)
    bodies = [json.dumps(ask("fake/echo", "whole")), json.dumps(ask("fake/echo", "in pieces", stream=True))]
    done = subprocess.run(
        [java, "-Xshare:auto", "-XX:TieredStopAtLevel=1", "Ask.java", stack.url, *bodies],
        capture_output=True,
        timeout=180,
        cwd=tmp_path,
        check=False,
    )
    whole, _, streamed = done.stdout.decode().partition("\n")
    assert said(whole.encode()) == "whole", done.stderr
    assert "data: [DONE]" in streamed


# ---- HTTP/1.0


@pytest.mark.parametrize("stream", [False, True])
def test_http_1_0_gets_what_it_can_read(raw: Raw, stream: bool) -> None:
    """No chunks; the end is that of the connection."""
    body = json.dumps(ask("fake/echo", "all of it", stream=stream)).encode()
    raw.send(sized(CHAT.replace(b"1.1", b"1.0"), body))
    answer = raw.answer()
    assert answer.status == 200
    assert "transfer-encoding" not in answer.headers
    assert answer.headers["connection"] == "close"
    if stream:
        assert answer.body.startswith(b"data: {")
        assert answer.body.endswith(b"data: [DONE]\n\n")
    else:
        assert said(answer.body) == "all of it"
    assert raw.ended()


@pytest.mark.parametrize("path", ["/metrics", "/v1/models", "/nothing", "/openapi.json"])
def test_so_it_does_on_any_route(raw: Raw, path: str) -> None:
    raw.send(f"GET {path} HTTP/1.0\r\nConnection: keep-alive\r\n".encode() + HOST + b"\r\n")
    answer = raw.answer()
    assert "transfer-encoding" not in answer.headers
    assert answer.body
    assert raw.ended()


def test_k9_a_client_of_1_0_is_not_told_to_go_on(raw: Raw) -> None:
    """It would take the 100 for its answer (RFC 9110 §15.2)."""
    body = json.dumps(ask("fake/echo", "all of it")).encode()
    raw.send(sized(CHAT.replace(b"1.1", b"1.0") + b"expect: 100-continue\r\n", body)[: -len(body)])
    raw.send(body)
    answer = raw.answer()
    assert (answer.status, said(answer.body)) == (200, "all of it")
    assert raw.ended()


def test_k9_chunks_of_a_client_of_1_0_are_its_last_words(raw: Raw) -> None:
    """It may not send any (RFC 9112 §6.1): what it meant is answered, and nothing behind it is taken for a request."""
    body = json.dumps(ask("fake/echo", "all of it", stream=True)).encode()
    raw.send(chunked(CHAT.replace(b"1.1", b"1.0"), body) + GET + b"\r\n")
    answer = raw.answer()
    assert answer.body.endswith(b"data: [DONE]\n\n")
    assert answer.body.count(b"[DONE]") == 1
    assert raw.ended()


def test_k9_no_socket_is_opened_in_1_0(raw: Raw) -> None:
    offer = b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
    key = b"sec-websocket-key: %b\r\n" % base64.b64encode(bytes(16))
    raw.send(b"GET /v1/responses HTTP/1.0\r\n" + HOST + offer + key + b"\r\n")
    answer = raw.answer()  # the list of responses, as without the offer
    assert (answer.status, json.loads(answer.body)["object"]) == (200, "list")
    assert raw.ended()


def test_k9_files_and_heads_in_1_0(raw: Raw, client: Client) -> None:
    """What is streamed without a length ends with the connection, and what has no body has none."""
    lines = b"".join(b'{"n": %d}\n' % n for n in range(50_000))
    file = client.http.post("/v1/files", files={"file": ("a.jsonl", lines)}, data={"purpose": "batch"}).json()
    for method in ("GET", "HEAD"):
        one = Raw(str(client.http.base_url))
        one.send(f"{method} /v1/files/{file['id']}/content HTTP/1.0\r\n".encode() + HOST + b"\r\n")
        answer, ended = one.answer(method), one.ended()
        one.close()
        assert (answer.status, answer.body, ended) == (200, lines if method == "GET" else b"", True)
        assert "transfer-encoding" not in answer.headers
    raw.send(b"GET /v1/files/none/content HTTP/1.0\r\n" + HOST + b"\r\n")
    assert raw.answer().status == 404


def test_k9_a_refusal_in_1_0_is_seen_by_who_still_sends(raw: Raw) -> None:
    raw.send(CHAT.replace(b"1.1", b"1.0") + b"content-length: 900000000\r\n\r\n" + b"x" * 100_000)
    answer = raw.answer()
    assert (answer.status, answer.headers["connection"]) == (413, "close")
    assert raw.ended()


def test_curl_in_1_0_shows_a_live_stream_without_chunk_sizes(stack: Stack) -> None:
    body = json.dumps(ask("fake/lorem?tokens=20&rate=100", stream=True))
    printed = curl("-0N", f"{stack.url}/v1/chat/completions", "-H", "content-type: application/json", "-d", body)
    lines = [line for line in printed.split("\n") if line]
    assert all(line.startswith(("data: ", ":")) for line in lines), lines
    assert lines[-1] == "data: [DONE]"


def test_a_live_stream_in_1_0_is_resumed_and_kept_alive(keyed: Stack, scripted: Register) -> None:
    pause = Pause()
    model = scripted([*words(2), pause, *ending()]).model
    raw = Raw(keyed.url)
    body = json.dumps(ask(model, stream=True)).encode()
    head = f"POST /v1/chat/completions HTTP/1.0\r\ncontent-type: application/json\r\nauthorization: Bearer {KEY_A}\r\n"
    raw.send(sized(head.encode(), body))
    read = b""
    while b": ka\n" not in read:
        read += raw.socket.recv(4096)
    pause.go()
    assert raw.rest().endswith(b"data: [DONE]\n\n")
    raw.close()


# ---- HEAD and OPTIONS


READ = ["/healthz", "/readyz", "/metrics", "/v1/models", "/v1/models/fake/echo", "/v1/streams", "/v1/files", "/docs"]


@pytest.mark.parametrize(
    "path", [*READ, "/v1/chat/completions", "/v1/batches", "/v1/sessions", "/v1/usage", "/openapi.json"]
)
def test_head_is_where_get_is(raw: Raw, path: str) -> None:
    """The same status and headers, no body, and the connection goes on."""
    raw.send(
        f"HEAD {path} HTTP/1.1\r\n".encode() + HOST + b"\r\n" + f"GET {path} HTTP/1.1\r\n".encode() + HOST + b"\r\n"
    )
    head, get = raw.answer("HEAD"), raw.answer()
    assert (head.status, head.headers.keys() - {"content-length"}) == (200, get.headers.keys() - {"content-length"})


def test_head_of_a_stream_does_not_wait_for_it(client: Client, scripted: Register, raw: Raw) -> None:
    pause = Pause()
    with client.streaming(scripted([*words(2), pause, *ending()]).model) as viewer:
        for path in (f"/v1/streams/{viewer.id}", f"/v1/chat/completions/{viewer.id}?stream=true"):
            raw.send(f"HEAD {path} HTTP/1.1\r\n".encode() + HOST + b"\r\n" + GET + b"\r\n")
            answer = raw.answer("HEAD")
            assert answer.status == 200
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert raw.answer().status == 200
        wait_until(lambda: client.state(viewer.id)["viewers"] == 1)
        pause.go()


def test_head_has_the_status_that_get_would_have(client: Client) -> None:
    assert client.http.head("/v1/streams/unknown").status_code == 404
    assert client.http.head("/v1/chat/completions/unknown?stream=true").status_code == 404
    assert client.http.head("/v1/streams?limit=0").status_code == 400


def test_wget_spiders(stack: Stack) -> None:
    program = shutil.which("wget")
    if program is None:
        pytest.skip("there is no wget")
    done = subprocess.run(
        [program, "--spider", "--no-proxy", f"{stack.url}/v1/models"], capture_output=True, timeout=100
    )
    assert done.returncode == 0, done.stderr


def methods(response: httpx.Response) -> set[str]:
    return set(response.headers["allow"].split(", "))


def test_options_tells_what_may_be_done(keyed: Stack) -> None:
    """Without a key."""
    with Client(keyed.url) as stranger:
        for path, allowed in {
            "/v1/models": {"GET"},
            "/v1/chat/completions": {"GET", "POST"},
            "/v1/streams/x": {"GET", "DELETE"},
            "/v1/streams/x/cancel": {"POST"},
            "/healthz": {"GET"},
        }.items():
            response = stranger.http.options(path)
            assert (response.status_code, response.content) == (204, b"")
            assert methods(response) == allowed | {"OPTIONS"} | ({"HEAD"} if "GET" in allowed else set())
        assert stranger.http.options("/nothing").status_code == 404


def test_options_of_the_whole_server(raw: Raw) -> None:
    raw.send(b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n" + GET + b"\r\n")
    assert raw.answer().status == 204
    assert raw.answer().status == 200


def test_a_wrong_method_is_told_all_right_ones(client: Client) -> None:
    response = client.http.put("/v1/chat/completions")
    assert response.status_code == 405
    assert methods(response) == {"GET", "HEAD", "OPTIONS", "POST"}


# ---- the reference


@pytest.mark.parametrize(
    "accept",
    [
        "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8",
        "TEXT/HTML",
        "text/html;level=1;q=0.4",
        "application/json;q=0.5, text/html",
        "text/html, application/json",
    ],
)
def test_m8_whoever_names_a_page_first_is_shown_one(raw: Raw, accept: str) -> None:
    """In one line or in several, which mean the same (RFC 9110 §5.3)."""
    for lines in (f"accept: {accept}", "\r\n".join(f"accept: {one}" for one in accept.split(","))):
        raw.send(b"GET / HTTP/1.1\r\n" + HOST + lines.encode() + b"\r\n\r\n")
        answer = raw.answer()
        assert (answer.status, answer.headers["location"], answer.headers["vary"]) == (303, "/console/", "accept")


@pytest.mark.parametrize(
    "path",
    ["/docs/", "/docs?theme=dark", "/docs/swagger/", "/docs/swagger?url=https://evil.example/openapi.json"],
)
def test_m7_a_page_has_one_meaning_however_it_is_asked_for(client: Client, path: str) -> None:
    page = client.get(path)
    assert (page.status_code, page.headers["x-content-type-options"]) == (200, "nosniff")
    assert page.headers["content-security-policy"].startswith("default-src 'none';")
    assert "evil" not in page.text


@pytest.mark.parametrize(
    "name", ["..%2f..%2fpyproject.toml", "%2e%2e/openapi.json", "x.js", "swagger-ui.css.map", "%00"]
)
def test_m7_nothing_but_its_files_is_below_it(client: Client, name: str) -> None:
    refused(client.get(f"/docs/swagger/{name}"), 404)


def test_the_reference_runs_and_loads_nothing(client: Client) -> None:
    response = client.get("/docs", headers={"accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
    assert response.headers["content-type"].startswith("text/html")
    assert response.headers["content-security-policy"].startswith("default-src 'none';")
    assert not [word for word in ("<script", "http://", "https://", "src=") if word in response.text]
    linked = set(re.findall(r'href="(.+?)"', response.text))
    places = set(re.findall(r'id="(.+?)"', response.text))
    for link in linked:
        assert link[1:] in places if link.startswith("#") else client.get(link).status_code == 200, link


def test_the_reference_has_all_routes(client: Client) -> None:
    page = client.get("/docs").text
    assert all(path in page for path in client.get("/openapi.json").json()["paths"])


def test_swagger_ui_is_the_one_that_is_named(client: Client) -> None:
    """From the package, unchanged: what is served has the sums that the page has the browser check."""
    page = client.get("/docs/swagger")
    policy = page.headers["content-security-policy"]
    assert ("default-src 'none'; script-src 'self';" in policy, "unsafe-eval" in policy) == (True, False)
    assert re.findall(r"<script(?! src=)", page.text) == []
    assert not re.search(r"https?://", page.text)
    for tag in re.findall(r"<(?:script|link)[^>]+>", page.text):
        where = re.search(r'(?:src|href)="(/[^"]+)"', tag)
        wanted = re.search(r'integrity="sha256-([^"]+)"', tag)
        if where is None:
            continue
        for encoding in ("gzip", "identity"):
            file = client.get(where[1], headers={"accept-encoding": encoding})
            assert (file.status_code, file.headers["x-content-type-options"]) == (200, "nosniff")
            assert (file.headers.get("content-encoding") == "gzip") is (encoding == "gzip" and wanted is not None)
            if wanted is not None:
                assert base64.b64decode(wanted[1]) == hashlib.sha256(file.content).digest()
    assert len(re.findall("integrity=", page.text)) == 2
    for name in ("LICENSE", "..%2Freference.py", "start.js.gz", "swagger-ui-bundle.js.LICENSE.txt"):
        refused(client.get(f"/docs/swagger/{name}"), 404)


@pytest.mark.parametrize(
    "accept",
    [
        *(
            "*/*",
            "application/json",
            "text/html;q=0, */*",
            "text/html ; q=0.0",
            "text/html;level=1; q=0.0, */*",
            "nonsense",
        ),
        *(
            "application/json, text/html;q=0.9, */*;q=0.1",
            "application/json, text/html",
            "text/*",
            "application/xhtml+xml",
        ),
    ],
)
def test_the_root_answers_a_program_with_json(client: Client, accept: str) -> None:
    response = client.get("/", headers={"accept": accept})
    found = response.json()
    assert response.headers["vary"] == "accept"
    assert (found["object"], found["checks"]["accept"], found["links"]["docs"]) == ("server", "ok", "/docs")
    assert client.http.head("/").status_code == 200


# ---- paths


@pytest.mark.parametrize("path", ["/v1/models/", "/v1//models", "//v1/models", "/v1/models//", "///v1///models///"])
def test_slashes_too_many_are_the_same_route(raw: Raw, path: str) -> None:
    """Not by httpx, which takes `//v1` for a host."""
    raw.send(f"GET {path} HTTP/1.1\r\n".encode() + HOST + b"\r\n")
    answer = raw.answer()
    assert answer.status == 200, answer
    assert json.loads(answer.body)["object"] == "list"


def test_no_post_is_redirected(client: Client) -> None:
    for path in ("/v1/chat/completions/", "/v1//chat/completions", "/v1/chat//completions//"):
        response = client.http.post(path, json=ask("fake/echo", "all of it"))
        assert response.status_code == 200
        assert said(response.content) == "all of it"
    assert client.get("/v1/streams/").json()["object"] == "list"


@pytest.mark.parametrize("path", ["/metrics/", "//metrics", "/%6detrics", "/metric%73/", "/./metrics"])
def test_metrics_have_one_spelling(raw: Raw, path: str) -> None:
    """Proxies keep them from the world by their name, and not all know another way to write it."""
    raw.send(b"GET /metrics HTTP/1.1\r\n" + HOST + b"\r\n")
    assert raw.answer().status == 200
    raw.send(f"GET {path} HTTP/1.1\r\n".encode() + HOST + b"\r\n")
    answer = raw.answer()
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (404, "not_found")


def test_slashes_in_a_name_stay(client: Client) -> None:
    assert client.get("/v1/models/fake%2Fecho").json()["id"] == "fake/echo"
    assert client.get("/v1/models/fake/echo/").json()["id"] == "fake/echo"


# ---- headers


def test_two_keys_are_not_taken_for_one(raw: Raw) -> None:
    """Whichever were taken, a repeat with the other would be paid again."""
    body = json.dumps(ask("fake/echo")).encode()
    raw.send(sized(CHAT + b"idempotency-key: x\r\nidempotency-key: y\r\n", body))
    answer = raw.answer()
    assert (answer.status, json.loads(answer.body)["error"]["param"]) == (400, "idempotency-key")
    raw.send(sized(CHAT + b"idempotency-key: x\r\nidempotency-key: x\r\n", body))
    assert raw.answer().status == 200


def test_nor_are_two_callers_or_two_places(keyed: Stack, client: Client, raw: Raw) -> None:
    """As an `Authorization` that a proxy adds to the client's own: whichever were taken, the other one did not ask."""
    with closing(Raw(keyed.url)) as other:
        bearer = f"authorization: Bearer {KEY_A}\r\n".encode()
        for second in (b"authorization: Bearer another\r\n", b"authorization: Basic YTpi\r\n"):
            for fields in (bearer + second, second + bearer):
                other.send(b"GET /v1/models HTTP/1.1\r\n" + HOST + fields + b"\r\n")
                answer = other.answer()
                assert (answer.status, json.loads(answer.body)["error"]["param"]) == (400, "authorization")
        other.send(b"GET /v1/models HTTP/1.1\r\n" + HOST + bearer + bearer + b"\r\n")
        assert other.answer().status == 200
    generation_id = client.stream("fake/echo", "one two three").headers["x-stream-id"]
    line = f"GET /v1/streams/{generation_id} HTTP/1.1\r\n".encode() + HOST
    raw.send(line + b"last-event-id: 1-1\r\nlast-event-id: 1-2\r\n\r\n")
    refusal = raw.answer()
    assert (refusal.status, json.loads(refusal.body)["error"]["code"]) == (400, "invalid_cursor")
    raw.send(line + b"last-event-id: 1-2\r\nlast-event-id: 1-2\r\n\r\n")
    assert raw.answer().body == client.whole(generation_id, headers={"last-event-id": "1-2"})


def test_blanks_around_a_value_are_no_part_of_it(client: Client, raw: Raw) -> None:
    generation_id = client.stream("fake/echo", "one two three").headers["x-stream-id"]
    body = json.dumps(ask("fake/echo")).encode()
    found = set()
    for key in (b"blank", b"blank ", b"\t blank \t"):
        raw.send(sized(CHAT + b"idempotency-key:" + key + b"\r\n", body))
        found.add(json.loads(raw.answer().body)["id"])
    assert len(found) == 1
    raw.send(f"GET /v1/streams/{generation_id} HTTP/1.1\r\nLast-Event-ID: 1-2 \r\n".encode() + HOST + b"\r\n")
    assert raw.answer().body == client.whole(generation_id, headers={"last-event-id": "1-2"})


@pytest.mark.parametrize("fields", [b"", HOST + HOST, HOST + b"Host: other\r\n"])
def test_a_request_names_one_host(raw: Raw, fields: bytes) -> None:
    raw.send(b"GET /healthz HTTP/1.1\r\n" + fields + b"\r\n")
    raw.answer().check(400, "invalid_http")
    assert raw.ended()


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
@pytest.mark.parametrize(
    "host",
    [
        b"a b",
        b"localhost, other",
        b"localhost/",
        b"user@localhost",
        b"localhost:port",
        b"localhost:123456",
        b"[::1",
        b"::1",
        b"[::1]x",
        b"[fe80::1%]",
        b"localhost#",
        b"local%host",
        b"localh\xc3\xb6st",
        b"http://localhost",
    ],
)
def test_and_what_it_names_is_one(raw: Raw, host: bytes, version: bytes) -> None:
    raw.send(b"GET /healthz HTTP/" + version + b"\r\nhost: " + host + b"\r\n\r\n")
    raw.answer().check(400, "invalid_http")
    assert raw.ended()


@pytest.mark.parametrize(
    "host",
    [
        b"",
        b"LOCALHOST",
        b"localhost:",
        b"localhost.:80",
        b"a_b.internal:8000",
        b"[::1]:80",
        b"[fe80::1%eth0]:80",
        b"[fe80::1%25eth0]",
        b"x%2Dy",
        b"1.2.3.4",
    ],
)
def test_names_of_all_kinds_are_hosts(raw: Raw, host: bytes) -> None:
    raw.send(b"GET /healthz HTTP/1.1\r\nhost: " + host + b"\r\n\r\n")
    assert raw.answer().status == 200


def test_a_request_in_1_0_may_name_none(raw: Raw) -> None:
    raw.send(b"GET /healthz HTTP/1.0\r\n\r\n")
    assert raw.answer().status == 200


# ---- clients that shut their sending side


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_client_that_has_said_all_gets_its_answer(raw: Raw, scripted: Register, stream: bool, version: str) -> None:
    pause = Pause()
    model = scripted([*words(2), pause, *ending()]).model
    body = json.dumps(ask(model, stream=stream)).encode()
    raw.send(sized(CHAT.replace(b"1.1", version.encode()), body))
    raw.shut()
    pause.go()
    answer = raw.answer()
    assert answer.status == 200
    assert answer.body.endswith(b"data: [DONE]\n\n") if stream else said(answer.body)
    assert raw.ended()


def test_so_it_does_with_many_requests(raw: Raw) -> None:
    raw.send((GET + b"\r\n") * 20 + b"GET /unfinished HT")
    raw.shut()
    for _ in range(20):
        assert raw.answer().status == 200
    assert raw.ended()


def test_and_with_a_refusal_behind_them(raw: Raw) -> None:
    raw.send(GET + b"\r\nwhat is this\r\n\r\n")
    raw.shut()
    assert raw.answer().status == 200
    raw.answer().check(400, "invalid_http")
    assert raw.ended()


def test_one_that_is_gone_is_noticed_at_once(client: Client, scripted: Register, raw: Raw) -> None:
    """Its stream is silent, and the next keep-alive far away: it is written to."""
    pause = Pause()
    with client.streaming(scripted([*words(2), pause, *ending()]).model) as viewer:
        viewer.take(2)
        raw.send(f"GET /v1/streams/{viewer.id} HTTP/1.1\r\n".encode() + HOST + b"\r\n")
        raw.socket.recv(100)
        wait_until(lambda: client.state(viewer.id)["viewers"] == 2)
        raw.close()
        wait_until(lambda: client.state(viewer.id)["viewers"] == 1)
        pause.go()


def test_one_whose_answer_is_to_end_with_it_counts_as_gone(client: Client, scripted: Register, raw: Raw) -> None:
    pause = Pause()
    asked = scripted([*words(2), pause, *ending()])
    body = json.dumps(ask(asked.model, on_disconnect="cancel")).encode()
    raw.send(sized(CHAT, body))
    wait_until(lambda: asked.script.calls)
    raw.shut()
    assert raw.ended()
    pause.go()


# ---- idle connections


@pytest.fixture(scope="module")
def quick(
    valkey: EmbeddedValkey, upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """A server whose idle connections are closed soon, behind a prefix, for two pages of other origins."""
    settings = {
        "STREAMSPOOL_CONNECTION_IDLE_S": "0.5",
        "STREAMSPOOL_ROOT_PATH": "/llm",
        "STREAMSPOOL_TRUSTED_PROXIES": "127.0.0.1",
        "STREAMSPOOL_CORS_ORIGINS": "https://app.example.com, http://localhost:5173",
    }
    url = emptied(valkey.url.replace("db=0", "db=11"))
    with Stack(url, upstream.base_url, tmp_path_factory.mktemp("door"), **settings) as running:
        yield running


def test_an_idle_connection_is_closed_when_the_setting_says(quick: Stack) -> None:
    raw = Raw(quick.url)
    raw.send(GET + b"\r\n")
    assert raw.answer().status == 200
    assert raw.ended()
    raw.close()


def test_by_default_it_outlives_a_balancer() -> None:
    """uvicorn's own 5 s are shorter than all of theirs."""
    assert Settings.model_fields["connection_idle_s"].default > 60


# ---- prefixes


@pytest.fixture
def behind(quick: Stack) -> Iterator[Client]:
    """With a connection for each request: one that is kept may be closed in the moment in which it is used again."""
    with Client(quick.url) as http:
        http.http.headers["connection"] = "close"
        yield http


@pytest.mark.parametrize("kept", ["", "/llm"])
@pytest.mark.parametrize("told", [None, "/other", "/other/"])
def test_what_is_said_of_ourselves_has_the_prefix(behind: Client, kept: str, told: str | None) -> None:
    """Whether the proxy takes it off or leaves it on; what it tells itself beats the setting."""
    headers = {"x-forwarded-prefix": told, "x-forwarded-proto": "https"} if told else {}
    prefix = "/other" if told else "/llm"
    path = prefix if kept else ""
    posted = behind.http.post(f"{path}/v1/chat/completions", json=ask("fake/echo", stream=True), headers=headers)
    generation_id = posted.headers["x-stream-id"]
    assert posted.headers["location"] == f"{prefix}/v1/streams/{generation_id}"
    accept = {"accept": "application/json"}
    state = behind.get(f"{path}/v1/streams/{generation_id}", headers=headers | accept).json()
    assert state["links"]["self"] == posted.headers["location"]
    assert all(link.startswith(f"{prefix}/v1/") for link in state["links"].values())
    listed = behind.get(f"{path}/v1/streams?limit=1", headers=headers).json()["data"][0]
    assert listed["links"] == state["links"]
    assert f"{prefix}/openapi.json" in behind.get(f"{path}/docs", headers=headers).text
    assert behind.get(f"{path}/openapi.json", headers=headers).json()["servers"][0]["url"] == prefix


@pytest.mark.parametrize("told", ["//evil.example", "https://evil.example", "/a b", "/a?b", "x", '/a"b', "/..//"])
def test_a_prefix_that_is_none_is_not_taken(behind: Client, told: str) -> None:
    posted = behind.http.post("/v1/chat/completions", json=ask("fake/echo"), headers={"x-forwarded-prefix": told})
    assert posted.headers["location"].startswith("/llm/v1/streams/")


def test_nor_is_any_from_a_proxy_that_is_not_named(client: Client) -> None:
    posted = client.post(ask("fake/echo"), headers={"x-forwarded-prefix": "/other"})
    assert posted.headers["location"].startswith("/v1/streams/")


# ---- pages of other origins

PAGE = {"origin": "https://app.example.com"}


def test_a_page_that_is_named_may_ask_and_read(behind: Client) -> None:
    preflight = behind.http.options(
        "/v1/chat/completions",
        headers=PAGE
        | {
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,content-type,idempotency-key",
        },
    )
    assert preflight.status_code == 204
    headers = preflight.headers
    assert headers["access-control-allow-origin"] == PAGE["origin"]
    assert "POST" in headers["access-control-allow-methods"]
    assert headers["access-control-allow-headers"] == "authorization,content-type,idempotency-key"
    assert int(headers["access-control-max-age"]) > 0
    posted = behind.post(ask("fake/echo"), headers=PAGE)
    assert posted.status_code == 200
    for response in (posted, behind.post({}, headers=PAGE), behind.get("/nothing", headers=PAGE)):
        assert response.headers["access-control-allow-origin"] == PAGE["origin"]
        assert "origin" in response.headers.get_list("vary", split_commas=True)
        exposed = response.headers["access-control-expose-headers"].lower()
        assert all(name in exposed for name in ("x-stream-id", "x-request-id", "location", "retry-after"))


@pytest.mark.parametrize(
    "origin", ["https://other.example.com", "http://app.example.com", "null", "https://app.example.com:8"]
)
def test_no_other_page_may(behind: Client, origin: str) -> None:
    asked: dict[str, Any] = {"access-control-request-method": "POST"}
    preflight = behind.http.options("/v1/chat/completions", headers={"origin": origin, **asked})
    assert "access-control-allow-origin" not in preflight.headers
    posted = behind.post(ask("fake/echo"), headers={"origin": origin})
    assert posted.status_code == 403
    assert "access-control-allow-origin" not in posted.headers


def test_without_the_setting_nothing_is_said(client: Client) -> None:
    response = client.get("/v1/models", headers={"origin": "http://localhost:3000"})
    assert not any(name.startswith("access-control") for name in response.headers)


# ---- bodies nobody wants


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize(
    ("line", "fields", "status"),
    [
        ("POST /v1/chat/completions", "content-type: application/json\r\n", 413),
        ("POST /v1/chat/completions", "content-type: text/plain\r\n", 415),
        ("POST /v1/chat/completions", "content-type: application/json\r\norigin: https://x.example\r\n", 403),
        ("POST /nothing", "", 404),
        ("PUT /v1/models", "", 405),
        ("POST /v1/files", "content-type: text/plain\r\n", 415),
    ],
)
def test_a_refusal_is_seen_by_whoever_sends_first_and_reads_later(
    connect: Callable[[], Raw], version: str, line: str, fields: str, status: int
) -> None:
    """As urllib does, whose connection is closed after the answer: no reset takes it."""
    size = (56 if status == 413 else 24) * 1024 * 1024
    raw = connect()
    raw.send(
        f"{line} HTTP/{version}\r\n{fields}connection: close\r\ncontent-length: {size}\r\n".encode() + HOST + b"\r\n"
    )
    raw.send(b"x" * size)
    answer = raw.answer()
    assert answer.status == status
    assert json.loads(answer.body)["error"]["message"]
    assert raw.ended()
