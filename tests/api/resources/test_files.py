"""Files over HTTP: upload, list, retrieve, content and delete; and uploads that go wrong."""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from api.resources.files import byte_range
from shared.cli.embedded import EmbeddedValkey
from tests.harness.processes import Stack, wait_until
from tests.harness.store import emptied, open_store
from tests.harness.upstream import ScriptedUpstream
from tests.support.names import keys
from tests.support.s3 import S3
from tests.support.wire import KEY_A, KEY_B, Client, refused

FORM = {"purpose": "batch"}
BOUNDARY = b"--x"


@pytest.fixture(scope="module")
def keyed(
    valkey: EmbeddedValkey, upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """A server of this module's own: where other tests have batches, files come and go all the time."""
    url = emptied(valkey.url.replace("db=0", "db=11"))
    settings = {"STREAMSPOOL_API_KEYS": f"a:{KEY_A},b:{KEY_B}"}
    with Stack(url, upstream.base_url, tmp_path_factory.mktemp("files"), **settings) as running:
        yield running


@pytest.fixture
def alice(keyed: Stack) -> Iterator[Client]:
    with Client(keyed.url, KEY_A) as http:
        yield http


@pytest.fixture
def bob(keyed: Stack) -> Iterator[Client]:
    with Client(keyed.url, KEY_B) as http:
        yield http


@pytest.fixture
def uploaded(alice: Client) -> Iterator[list[str]]:
    """Ids of files that are deleted after the test."""
    ids: list[str] = []
    yield ids
    for file_id in ids:
        alice.http.delete(f"/v1/files/{file_id}")


def send(client: Client, content: Any = b"{}\n", name: str = "in.jsonl", **fields: str) -> httpx.Response:
    return client.http.post("/v1/files", files={"file": (name, content)}, data={**FORM, **fields})


def raw(client: Client, body: Any, boundary: bytes = b"x", *, encoding: str = "") -> httpx.Response:
    sent = {"content-type": f"multipart/form-data; boundary={boundary.decode()}"}
    if encoding:
        sent["content-encoding"] = encoding
    return client.http.post("/v1/files", content=body, headers=sent)


def part(name: bytes, value: bytes, more: bytes = b"") -> bytes:
    return b'--x\r\nContent-Disposition: form-data; name="' + name + b'"' + more + b"\r\n\r\n" + value + b"\r\n"


FILE = part(b"file", b"content", b'; filename="f"')
PURPOSE = part(b"purpose", b"batch")


def stored(stack: Stack) -> set[str]:
    directory = Path(stack.environment["STREAMSPOOL_DATA_DIR"]) / "files"
    places = os.walk(directory)  # a folder may go while it is looked into
    return {name for place, _, names in places for name in names if Path(place).name != "blobs-users"}


def test_a_file_is_kept_as_it_was_sent(alice: Client, bob: Client, uploaded: list[str]) -> None:
    content = uuid.uuid4().bytes * 500_000
    response = send(alice, content, 'naïve "名".jsonl')
    assert response.status_code == 200, response.text
    file = response.json()
    uploaded.append(file["id"])
    assert file == {
        "id": file["id"],
        "object": "file",
        "bytes": 8_000_000,
        "created_at": file["created_at"],
        "expires_at": file["created_at"] + 30 * 86400,
        "filename": file["filename"],
        "purpose": "batch",
        "status": "processed",
        "status_details": None,
    }
    assert alice.get(f"/v1/files/{file['id']}").json() == file
    whole = alice.get(f"/v1/files/{file['id']}/content")
    assert (whole.content == content, whole.headers["content-length"]) == (True, "8000000")
    assert whole.headers["content-type"] == "application/octet-stream"
    assert whole.headers["x-content-type-options"] == "nosniff"
    assert whole.headers["content-disposition"].startswith("attachment;")
    for path in ("", "/content"):
        refused(bob.get(f"/v1/files/{file['id']}{path}"), 404, "not_found")
    refused(bob.http.delete(f"/v1/files/{file['id']}"), 404, "not_found")
    assert file["id"] not in [one["id"] for one in bob.get("/v1/files").json()["data"]]


@pytest.mark.parametrize(
    ("wanted", "start", "end"),
    [("bytes=0-0", 0, 1), ("bytes=3-", 3, 10), ("bytes=-4", 6, 10), ("bytes=2-99", 2, 10), ("bytes=-99", 0, 10)],
)
def test_a_part_is_served(alice: Client, uploaded: list[str], wanted: str, start: int, end: int) -> None:
    uploaded.append(send(alice, b"0123456789").json()["id"])
    response = alice.get(f"/v1/files/{uploaded[0]}/content", headers={"range": wanted})
    assert (response.status_code, response.content) == (206, b"0123456789"[start:end])
    assert response.headers["content-range"] == f"bytes {start}-{end - 1}/10"
    assert response.headers["content-length"] == str(end - start)


def test_a_part_that_is_not_there_is_refused(alice: Client, uploaded: list[str]) -> None:
    uploaded.append(send(alice, b"0123456789").json()["id"])
    for wanted in ("bytes=10-", "bytes=-0", "bytes=99-100"):
        response = alice.get(f"/v1/files/{uploaded[0]}/content", headers={"range": wanted})
        refused(response, 416, "invalid_range")
        assert response.headers["content-range"] == "bytes */10"


@pytest.mark.parametrize(
    "header", [None, "", "bytes=", "bytes=-", "items=1-2", "bytes=5-4", "bytes=0-1,3-4", "bytes=a-b"]
)
def test_a_range_that_means_nothing_is_ignored(header: str | None) -> None:
    assert byte_range(header, 10) is None


def test_an_empty_file_is_a_file(alice: Client, uploaded: list[str]) -> None:
    uploaded.append(send(alice, b"").json()["id"])
    whole = alice.get(f"/v1/files/{uploaded[0]}/content")
    assert (whole.status_code, whole.content, whole.headers["content-length"]) == (200, b"", "0")


def test_files_are_listed_newest_first(alice: Client, uploaded: list[str]) -> None:
    for number in range(4):
        uploaded.append(send(alice, b"%d" % number, purpose="vision" if number == 1 else "user_data").json()["id"])
    page = alice.get("/v1/files", params={"purpose": "user_data"}).json()
    assert [file["id"] for file in page["data"]] == [uploaded[3], uploaded[2], uploaded[0]]
    assert (page["object"], page["first_id"], page["last_id"], page["has_more"]) == (
        "list",
        uploaded[3],
        uploaded[0],
        False,
    )
    page = alice.get("/v1/files", params={"order": "asc", "after": uploaded[0], "limit": 2}).json()
    assert [file["id"] for file in page["data"]] == uploaded[1:3]
    assert page["has_more"] is True
    for query in ({"limit": 0}, {"limit": 10_001}, {"order": "up"}):
        assert refused(alice.get("/v1/files", params=query), 400)["param"] in query
    refused(alice.get("/v1/files", params={"after": "file-1"}), 404)


def test_deleting_forgets(alice: Client, keyed: Stack) -> None:
    file_id = send(alice).json()["id"]
    assert file_id in stored(keyed)
    assert alice.http.delete(f"/v1/files/{file_id}").json() == {"id": file_id, "object": "file", "deleted": True}
    refused(alice.get(f"/v1/files/{file_id}"), 404, "not_found")
    refused(alice.get(f"/v1/files/{file_id}/content"), 404, "not_found")
    refused(alice.http.delete(f"/v1/files/{file_id}"), 404, "not_found")
    assert file_id not in stored(keyed)


def test_the_life_of_a_file_is_as_it_was_asked_for(alice: Client, uploaded: list[str]) -> None:
    life = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    file = send(alice, **life).json()
    uploaded.append(file["id"])
    assert file["expires_at"] == file["created_at"] + 3600


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"purpose": "batch_output"}, "purpose"),
        ({"purpose": ""}, "purpose"),
        ({"expires_after[anchor]": "created_at"}, "expires_after[seconds]"),
        ({"expires_after[seconds]": "3600"}, "expires_after[anchor]"),
        ({"expires_after[anchor]": "now", "expires_after[seconds]": "3600"}, "expires_after[anchor]"),
        ({"expires_after[anchor]": "created_at", "expires_after[seconds]": "3599"}, "expires_after[seconds]"),
        ({"filename": "x"}, "filename"),
        ({"purpose": "x" * 5000}, "purpose"),
    ],
)
def test_a_wrong_field_is_named_and_nothing_is_left(
    alice: Client, keyed: Stack, fields: dict[str, str], param: str
) -> None:
    before = stored(keyed)
    assert refused(send(alice, b"x" * 100_000, **fields), 400)["param"] == param
    assert stored(keyed) == before


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"nothing of the kind", None),
        (FILE + PURPOSE, None),
        (PURPOSE + b"--x--\r\n", "file"),
        (FILE + b"--x--\r\n", "purpose"),
        (FILE + FILE + PURPOSE + b"--x--\r\n", "file"),
        (part(b"file", b"content") + PURPOSE + b"--x--\r\n", "file"),
        (PURPOSE + PURPOSE + FILE + b"--x--\r\n", "purpose"),
        (part(b"", b"") + FILE + b"--x--\r\n", None),
        (b"--x\r\nContent-Type: text/plain\r\n\r\nx\r\n--x--\r\n", None),
    ],
)
def test_a_form_that_is_none_is_refused(alice: Client, keyed: Stack, body: bytes, param: str | None) -> None:
    before = stored(keyed)
    assert refused(raw(alice, body), 400)["param"] == param
    assert stored(keyed) == before


@pytest.mark.parametrize("order", [FILE + PURPOSE, PURPOSE + FILE])
@pytest.mark.parametrize("size", [1, 2, 7, 1000])
def test_the_order_of_fields_and_of_bytes_does_not_matter(
    alice: Client, uploaded: list[str], order: bytes, size: int
) -> None:
    body = order + b"--x--\r\nepilogue"
    response = raw(alice, iter([body[start : start + size] for start in range(0, len(body), size)]))
    assert response.status_code == 200, response.text
    uploaded.append(response.json()["id"])
    assert alice.get(f"/v1/files/{uploaded[0]}/content").content == b"content"


def test_only_forms_are_taken(alice: Client) -> None:
    refused(alice.http.post("/v1/files", json={"purpose": "batch"}), 415)
    refused(alice.http.post("/v1/files", content=b"x", headers={"content-type": "multipart/form-data"}), 415)
    refused(raw(alice, FILE + PURPOSE + b"--x--\r\n", encoding="gzip"), 400)


def test_a_boundary_that_no_form_has_is_refused(alice: Client, keyed: Stack) -> None:
    long = b"x" * 300
    body = (FILE + PURPOSE + b"--x--\r\n").replace(b"--x", b"--" + long)
    before = stored(keyed)
    assert refused(raw(alice, body, long), 400)["param"] == "content-type"
    assert stored(keyed) == before


@pytest.fixture
def small(own_stack: Stack) -> Iterator[Client]:
    own_stack.kill("api")
    own_stack.start("api", STREAMSPOOL_MAX_FILE_BYTES="100000")
    own_stack.wait_ready()
    with Client(own_stack.url) as client:
        yield client


def test_a_file_over_the_limit_is_refused_and_leaves_nothing(small: Client, own_stack: Stack) -> None:
    assert send(small, b"x" * 100_000).status_code == 200
    before = stored(own_stack)
    told = refused(send(small, b"x" * 300_000), 413, "request_too_large")
    assert "STREAMSPOOL_MAX_FILE_BYTES" in told["message"]

    def endless() -> Iterator[bytes]:
        yield PURPOSE + part(b"file", b"", b'; filename="f"')[:-2]
        for _ in range(3):
            yield b"x" * 50_000

    refused(raw(small, endless()), 413, "request_too_large")
    assert stored(own_stack) == before


def test_a_client_that_leaves_leaves_nothing(alice: Client, keyed: Stack) -> None:
    before = stored(keyed)
    head = (
        f"POST /v1/files HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY_A}\r\nContent-Length: 9000000\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", keyed.port)) as connection:
        connection.sendall(head.encode() + FILE[:-9] + b"x" * 6_000_000)
        wait_until(lambda: stored(keyed) - before, what="the file has begun")
    wait_until(lambda: stored(keyed) == before, what="the file is gone")


def test_an_upload_whose_server_is_killed_is_cleaned_up(own_stack: Stack) -> None:
    head = (
        "POST /v1/files HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000000\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", own_stack.port)) as connection:
        connection.sendall(head.encode() + FILE[:-9] + b"x" * 6_000_000)
        wait_until(lambda: stored(own_stack))
        own_stack.kill("api")
    assert stored(own_stack)
    with open_store(own_stack.redis_url) as store:
        (file_id,) = store.zrange(keys.files_end, 0, -1)
        store.zadd(keys.files_end, {file_id: 1})  # as if its time were over
        wait_until(lambda: not stored(own_stack), 60, "the reaper has removed it")
        wait_until(lambda: not store.exists(keys.files_end))
    own_stack.start("api")
    own_stack.wait_ready()


def test_the_api_keeps_files_in_a_bucket(own_stack: Stack, tmp_path: Path) -> None:
    with S3(tmp_path) as s3:
        own_stack.kill("api")
        own_stack.start("api", STREAMSPOOL_FILES_URL=s3.url, **s3.environment)
        own_stack.wait_ready()
        with Client(own_stack.url) as client:
            content = uuid.uuid4().bytes * 800_000
            file_id = send(client, content).json()["id"]
            assert s3.names() == {file_id}
            assert client.get(f"/v1/files/{file_id}/content").content == content
            middle = client.get(f"/v1/files/{file_id}/content", headers={"range": "bytes=6000000-6000009"})
            assert middle.content == content[6_000_000:6_000_010]
            refused(raw(client, FILE[:-9] + b"x" * 11_000_000), 400)
            assert (s3.names(), s3.unfinished()) == ({file_id}, [])
            client.http.delete(f"/v1/files/{file_id}")
            assert s3.names() == set()
            s3.__exit__()
            refused(send(client), 503, "storage_unavailable")
