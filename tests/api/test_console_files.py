"""The console's files: what others wrote is as they wrote it, nothing names another host, and browsers may keep them."""

from __future__ import annotations

import gzip
import hashlib
import re
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from starlette.testclient import TestClient

from api.app import create_app
from api.console.assets import STATIC, Assets
from api.console.routes import POLICY
from api.live.drain import Drain
from api.resources import reference
from shared.config.settings import load_settings
from tests.harness.processes import ROOT
from tests.support.wire import Client

VENDOR = STATIC / "vendor"
SOURCES = sorted(
    path
    for path in STATIC.rglob("*")
    if path.suffix in {".js", ".mjs", ".css", ".html", ".svg"} and VENDOR not in path.parents
)
LONGEST = 400
BYTES = 150_000
"""What a first visit may take over the wire before any content."""
NAMESPACES = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xhtml", "http://www.w3.org/1998/Math/MathML"}
CREDITS = re.compile(r"https://github\.com/(leeoniya/uPlot|markedjs/marked|babel/babel/)")
BROWSER = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


def digests() -> dict[str, str]:
    lines = (VENDOR / "SHA256SUMS").read_text().splitlines()
    return {name: digest for digest, name in (line.split(maxsplit=1) for line in lines)}


def test_what_others_wrote_is_as_it_was_taken() -> None:
    found = {
        path.relative_to(VENDOR).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in VENDOR.rglob("*")
        if path.is_file() and path.parent != VENDOR
    }
    assert found == digests()


def test_each_library_has_its_licence_and_stands_in_the_list() -> None:
    told = (VENDOR / "README.md").read_text()
    for folder in (path for path in VENDOR.iterdir() if path.is_dir()):
        assert (folder / "LICENSE").stat().st_size > 500, folder
        for file in folder.iterdir():
            assert file.name == "LICENSE" or f"`{folder.name}/{file.name}`" in told


def test_nothing_names_another_host() -> None:
    code = [path for path in STATIC.rglob("*") if path.suffix in {".js", ".mjs", ".css", ".html", ".svg"}]
    for path in code:
        for address in re.findall(r"https?://[\w.-]+[^\s\"'`)]*", path.read_text("utf-8")):
            assert address in NAMESPACES or CREDITS.match(address), f"{path}: {address}"
        assert not re.search(r"(?:src|href)=[\"']?//", path.read_text("utf-8")), path


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(STATIC).as_posix())
def test_our_files_are_small_say_what_they_are_and_have_no_inline_script(path: Path) -> None:
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= LONGEST
    if path.suffix == ".js":
        assert text.startswith("// ")
        assert "innerHTML" not in text or path.name == "markdown.js"
        assert not re.search(r"\beval\(|new Function|document\.write", text)
    if path.suffix == ".html":
        assert re.findall(r"<script(?![^>]* src=)|<style| on\w+=|style=", text) == []


def test_every_import_leads_to_a_file() -> None:
    for path in STATIC.rglob("*.js"):
        if ".min." in path.name or "uPlot" in path.name:
            continue
        for target in re.findall(r"(?:from|import) ?\"(\.[^\"]+)\"", path.read_text("utf-8")):
            assert (path.parent / target).resolve().is_file(), f"{path}: {target}"


def test_a_first_visit_is_small() -> None:
    assets = Assets()
    page = assets.page("")
    paths = set(re.findall(r"/console/assets/\w+/([^\"]+)", page.body.decode()))
    found = [assets.find(path) for path in paths]
    assert all(found)
    total = len(page.packed) + sum(len(one.packed) for one in found if one)
    assert total <= BYTES, f"{total} bytes"


def test_the_digest_is_of_all_files() -> None:
    first, second = Assets(), Assets()
    assert first.digest == second.digest
    second._files["app.js"] += b" "
    second._digest = ""
    second._files = {}
    assert second.digest == first.digest
    assert re.fullmatch("[0-9a-f]{16}", first.digest)


# ---- over the wire


@pytest.fixture(scope="module")
def page(client: Client) -> httpx.Response:
    return client.get("/console/", headers=BROWSER)


@pytest.mark.parametrize("path", ["/console", "/console/", "/console/r/chatcmpl-1", "/console/requests?status=failed"])
def test_every_address_is_the_page(client: Client, page: httpx.Response, path: str) -> None:
    response = client.get(path)
    assert (response.status_code, response.content) == (200, page.content)


def test_the_page_may_load_nothing_of_others(page: httpx.Response) -> None:
    policy = page.headers["content-security-policy"]
    assert policy == POLICY
    told = dict(part.split(" ", 1) for part in policy.split("; "))
    assert told["default-src"] == "'none'"
    assert told["script-src"] == told["connect-src"] == "'self'"
    assert told["require-trusted-types-for"] == "'script'"
    assert "unsafe" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "no-referrer"
    assert page.headers["cache-control"] == "no-cache"


def test_files_are_kept_for_ever_under_their_digest_and_asked_for_again_under_another(
    client: Client, page: httpx.Response
) -> None:
    (path,) = re.findall(r'<script src="([^"]+/app\.js)"', page.text)
    response = client.get(path)
    assert response.headers["content-type"] == "text/javascript; charset=utf-8"
    assert response.headers["cache-control"] == "public, max-age=31536000, immutable"
    older = client.get(path.replace(path.split("/")[3], "0" * 16))
    assert older.content == response.content
    assert older.headers["cache-control"] == "no-cache"
    again = client.get(path, headers={"if-none-match": response.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize(("accepted", "packed"), [("gzip, br", True), ("identity", False), ("gzip;q=0", False)])
def test_files_are_packed_for_those_who_take_it(
    client: Client, page: httpx.Response, accepted: str, packed: bool
) -> None:
    (path,) = re.findall(r'<script src="([^"]+/app\.js)"', page.text)
    with client.http.stream("GET", path, headers={"accept-encoding": accepted}) as response:
        raw = b"".join(response.iter_raw())
    assert (response.headers.get("content-encoding") == "gzip") is packed
    assert (gzip.decompress(raw) if packed else raw) == (STATIC / "app.js").read_bytes()
    assert response.headers["vary"] == "accept-encoding"


@pytest.mark.parametrize(
    "path", ["index.html", "nothing.js", "..%2froutes.py", "vendor/SHA256SUMS", "vendor/README.md"]
)
def test_nothing_but_its_files_is_served(client: Client, path: str) -> None:
    assert client.http.get(f"/console/assets/{'0' * 16}/{path}").status_code == 404


def test_browsers_are_sent_there_and_programs_are_not(client: Client) -> None:
    response = client.http.get("/", headers=BROWSER, follow_redirects=False)
    assert (response.status_code, response.headers["location"]) == (303, "/console/")
    assert response.headers["vary"] == "accept"
    assert client.get("/").json()["links"]["console"] == "/console/"


def test_the_console_may_be_off(monkeypatch: pytest.MonkeyPatch) -> None:
    async def checks(_: object) -> dict[str, str]:
        return {"accept": "ok"}

    monkeypatch.setattr(reference, "checks", checks)
    settings = load_settings(console="off")
    app = create_app(settings, Drain())
    vars(app)["services"] = SimpleNamespace(settings=settings)
    quiet = TestClient(app, base_url="http://127.0.0.1")
    for path in ("/console/", "/console/requests", f"/console/assets/{'0' * 16}/app.js"):
        assert quiet.get(path).status_code == 404
    shown = quiet.get("/", headers=BROWSER)
    assert shown.headers["content-security-policy"].startswith("default-src 'none';")
    assert not [word for word in ("<script", "http://", "https://", "src=", "console") if word in shown.text]
    assert "console" not in quiet.get("/").json()["links"]


def test_without_keys_whoever_is_on_this_machine_sees_the_workers(client: Client) -> None:
    assert client.get("/v1/workers").json()["data"]
    assert client.get("/v1/keys").status_code == 403


def test_the_shortcuts_are_those_that_are_described() -> None:
    told = (ROOT / "docs/console.md").read_text("utf-8")
    code = (STATIC / "lib/keys.js").read_text("utf-8")
    keys = {key for keys in re.findall(r'^  \["([^"]+)", "', code, re.M) for key in keys.split()}
    described = set(re.findall(r"`([^`]{1,5})`", told.partition("## Keys")[2].partition("## When")[0]))
    assert keys == described
