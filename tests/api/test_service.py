"""Models, probes, metrics, documentation; and what the process says when it refuses to start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import quote

import httpx
import pytest
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from api.app import create_app
from api.live.drain import Drain
from shared import __version__
from shared.config.settings import Settings
from shared.errors import Unavailable
from shared.lib import telemetry
from shared.lib.tasks import FairTurns
from tests.harness.processes import READY_S, Stack, free_port, wait_until
from tests.harness.store import Store
from tests.support.wire import Client, ask, error_of, refused


def test_the_models_are_listed(client: Client) -> None:
    listed = client.get("/v1/models").json()
    assert listed["object"] == "list"
    models = {model["id"]: model for model in listed["data"]}
    assert {"fake/echo", "fake/lorem", "scripted/any"} <= models.keys()
    for model in models.values():
        assert model.keys() >= {"id", "object", "created", "owned_by"}
        assert model["object"] == "model"
        assert isinstance(model["created"], int)
    assert models["scripted/any"]["owned_by"] == "scripted"


@pytest.mark.parametrize("spelled", ["fake/echo", "fake%2Fecho", "fake%2fecho"])
def test_a_model_by_its_name(client: Client, spelled: str) -> None:
    assert client.get(f"/v1/models/{spelled}").json()["id"] == "fake/echo"


def test_a_listed_model_is_the_same_by_its_name(client: Client) -> None:
    for model in client.get("/v1/models").json()["data"]:
        assert client.get(f"/v1/models/{quote(model['id'], safe='')}").json() == model


@pytest.mark.parametrize(
    "name", ["fake", "fake/", "%2F", "fake/none", "nobody/any", "%20", "fake%2F", "fake/echo/more"]
)
def test_an_unknown_model_is_not_found(client: Client, name: str) -> None:
    error = refused(client.get(f"/v1/models/{name}"), 404, "model_not_found")
    assert error["param"] == "model"


@pytest.mark.parametrize("path", ["/healthz", "/health", "/readyz"])
def test_the_probes_answer(client: Client, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 200
    assert response.json()["status"] == "ok"


def test_no_request_has_to_wait_for_what_each_has_to_know(client: Client, store: Store) -> None:
    """Which models there are, say: an API process looks by itself, before what it knows is too old."""
    assert client.get("/healthz").status_code == 200
    looks = 0
    with store.monitor() as monitor:
        while looks < 3:
            words = monitor.next_command()["command"].lower().split()
            looks += words[0] == "get" and words[1].endswith(":catalogue")


def test_the_metrics_count(client: Client) -> None:
    before = client.metric("streamspool_generations_submitted_total")
    client.stream("fake/echo")
    assert client.metric("streamspool_generations_submitted_total") == before + 1
    response = client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")


def test_metric_labels_are_bounded(client: Client) -> None:
    client.get("/canary-path")
    client.get("/v1/streams/canary-id")
    assert "canary" not in client.get("/metrics").text


def test_the_documentation_is_there(client: Client) -> None:
    assert client.get("/docs").status_code == 200
    paths = client.get("/openapi.json").json()["paths"]
    assert {
        "/v1/chat/completions",
        "/v1/chat/completions/{generation_id}",
        "/v1/streams",
        "/v1/streams/{generation_id}",
        "/v1/streams/{generation_id}/cancel",
        "/v1/models",
        "/v1/models/{model}",
    } <= paths.keys()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("PUT", "/v1/chat/completions"),
        ("POST", "/v1/streams"),
        ("DELETE", "/v1/models/fake/echo"),
        ("GET", "/v1/streams/x/cancel"),
        ("PATCH", "/healthz"),
    ],
)
def test_a_wrong_method_is_refused(client: Client, method: str, path: str) -> None:
    response = client.http.request(method, path)
    refused(response, 405, "method_not_allowed")
    assert response.headers["allow"]


@pytest.mark.parametrize(
    "path", ["/nothing", "/v1", "/v1/", "/v2/chat/completions", "/v1/chat", "/v1/completion", "/%00", "/..%2f"]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_unknown_path_is_not_found(client: Client, method: str, path: str) -> None:
    refused(client.http.request(method, path), 404)


@pytest.mark.parametrize("hastened", [False, True])
async def test_a_bug_of_ours_is_an_answer_in_shape_with_a_request_id(hastened: bool) -> None:
    app = create_app(Settings(redis_url="redis://127.0.0.1:1", _env_file=None), Drain())
    vars(app)["services"] = SimpleNamespace(hub=SimpleNamespace(rounds=FairTurns(1)))

    @app.post("/broken")
    async def broken() -> None:
        raise RuntimeError("canary-detail")

    async def answer(_: Request) -> Response:
        await broken()
        return Response()

    if hastened:
        app.hasten("POST", cast("APIRoute", app.routes[-1]), answer)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        response = await http.post("/broken")
    assert response.status_code == 500
    assert error_of(response.json())["code"] == "internal_error"
    assert "canary" not in response.text
    assert "x-request-id" in response.headers, "the message names it as what finds the bug in the log"


class Known:
    """A catalogue that says what a test wants; a failure is what Redis would be."""

    def __init__(self, workers: int | Unavailable, probe: Unavailable | None) -> None:
        self._workers, self._probe = workers, probe

    async def workers(self) -> dict[str, Any]:
        if isinstance(self._workers, Unavailable):
            raise self._workers
        return {str(number): {} for number in range(self._workers)}

    async def probe(self) -> None:
        if self._probe:
            raise self._probe


AWAY, FULL = Unavailable("away", code="storage_unavailable"), Unavailable("full", code="storage_full")


@pytest.mark.parametrize(
    ("workers", "probe", "stopping", "checks"),
    [
        (2, None, False, ("ok", "ok", "ok", "2 alive")),
        (0, None, False, ("no_worker", "ok", "ok", "0 alive")),
        (2, FULL, False, ("storage_full", "ok", "storage_full", "2 alive")),
        (0, FULL, False, ("storage_full", "ok", "storage_full", "0 alive")),
        (AWAY, None, False, ("storage_unavailable", "storage_unavailable", "storage_unavailable", "unknown")),
        (2, None, True, ("stopping", "stopping", "ok", "2 alive")),
        (AWAY, None, True, ("stopping", "stopping", "storage_unavailable", "unknown")),
        (2, None, "followed", ("ok", "ok", "ok", "2 alive")),  # who asks next, asks the one in its place
        (2, FULL, "followed", ("storage_full", "ok", "storage_full", "2 alive")),
    ],
)
async def test_the_probe_says_what_can_be_done(
    workers: int | Unavailable, probe: Unavailable | None, stopping: bool | str, checks: tuple[str, str, str, str]
) -> None:
    settings = Settings(redis_url="redis://127.0.0.1:1", _env_file=None)
    app, drain = create_app(settings, Drain()), Drain()
    drain.native, drain.followed = bool(stopping), stopping == "followed"
    vars(app)["services"] = SimpleNamespace(catalogue=Known(workers, probe), drain=drain, settings=settings)
    told = dict(zip(("accept", "serve", "redis", "workers"), checks, strict=True))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost") as http:
        for query, well in (
            ("", told["accept"] == told["serve"] == "ok"),
            ("?for=both", told["accept"] == told["serve"] == "ok"),
            ("?for=accept", told["accept"] == "ok"),
            ("?for=serve", told["serve"] == "ok"),
        ):
            response = await http.get(f"/readyz{query}")
            assert response.json() == {"status": "ok" if well else "unavailable", "checks": told}
            assert response.status_code == (200 if well else 503)
        response = await http.get("/readyz?for=everything")
    assert (response.status_code, error_of(response.json())["param"]) == (400, "for")


# ---- starting


def start(tmp_path: Path, module: str = "api", **settings: str) -> subprocess.CompletedProcess[str]:
    ours = ("STREAMSPOOL_", "REDIS_", "HOST", "PORT")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2]), "PORT": str(free_port()), **settings}
    return subprocess.run(
        [sys.executable, "-m", module],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=READY_S,
        check=False,
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "127.attacker.example"])
def test_a_public_bind_without_keys_is_refused(tmp_path: Path, host: str) -> None:
    ended = start(tmp_path, REDIS_URL="redis://127.0.0.1:1", HOST=host)
    assert ended.returncode == 2
    assert "STREAMSPOOL_API_KEYS" in ended.stderr
    assert host in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_public_bind_with_a_weak_key_is_refused(tmp_path: Path) -> None:
    ended = start(tmp_path, REDIS_URL="redis://127.0.0.1:1", HOST="0.0.0.0", STREAMSPOOL_API_KEYS="a:canary")
    assert ended.returncode == 2
    assert "a key of tenant a can be guessed" in ended.stderr
    assert "openssl" in ended.stderr
    assert "canary" not in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("module", ["api", "worker"])
def test_no_redis_is_refused(tmp_path: Path, module: str) -> None:
    ended = start(tmp_path, module)
    assert ended.returncode == 2
    assert "REDIS_URL" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("module", ["api", "worker"])
def test_wrong_settings_are_named_without_showing_keys(tmp_path: Path, module: str) -> None:
    wrong = {"STREAMSPOOL_API_KEYS": "a:canary-key,b", "STREAMSPOOL_LEASE_S": "0", "REDIS_URL": "redis://127.0.0.1:1"}
    ended = start(tmp_path, module, **wrong)
    assert ended.returncode == 2
    assert "STREAMSPOOL_API_KEYS" in ended.stderr
    assert "lease_s" in ended.stderr.lower()
    assert "canary-key" not in ended.stderr + ended.stdout


@pytest.mark.parametrize(
    ("module", "variable"),
    [("api", "REDIS_URL"), ("api", "AWS_SECRET_ACCESS_KEY"), ("worker", "OPENAI_API_KEY"), ("worker", "LAB_KEY")],
)
def test_a_secrets_file_that_cannot_be_read_is_one_line_and_the_end(tmp_path: Path, module: str, variable: str) -> None:
    (tmp_path / "streamspool.toml").write_text('[providers.lab]\nbase_url = "http://lab/v1"\napi_key_env = "LAB_KEY"\n')
    settings = {"REDIS_URL": "redis://127.0.0.1:1", "LAB_KEY": "x", "STREAMSPOOL_FILES_URL": "s3://bucket/x"}
    settings.pop(variable, None)
    ended = start(tmp_path, module, **settings, **{f"{variable}_FILE": "/canary/no-such-file"})
    assert ended.returncode == 2
    assert ended.stderr == f"{variable}_FILE names a file that cannot be read: No such file or directory\n"


def test_a_running_server_can_be_asked_by_every_loopback_name(stack: Stack) -> None:
    for host in ("localhost", "127.0.0.1", "127.0.0.1:9999", "[::1]:8000", "LOCALHOST"):
        answer = httpx.get(f"{stack.url}/v1/models", headers={"host": host}, trust_env=False, timeout=60)
        assert answer.status_code == 200


def scraped(client: Client) -> str:
    """By a scrape that was not held up: Redis has a second to answer it."""
    text: str = wait_until(
        lambda: (text := client.get("/metrics").text) and "\nstreamspool_redis_up 1.0\n" in text and text,
        what="Redis answers in time",
    )
    return text


def test_a_scrape_tells_what_waits_and_who_answered_what(own_stack: Stack) -> None:
    with Client(own_stack.url) as client:
        client.stream("fake/lorem?tokens=5")
        client.post(ask("fake/echo?error=429"))
        text = scraped(client)
        figures = {line.rpartition(" ")[0]: line.rpartition(" ")[2] for line in text.splitlines() if line[:1] != "#"}
        assert figures["streamspool_redis_up"] == figures["streamspool_workers"] == "1.0"
        assert figures['streamspool_queue_waiting{lane="generation"}'] == "0.0"
        assert figures['streamspool_queue_oldest_seconds{lane="generation"}'] == "0.0"
        assert float(figures["streamspool_redis_memory_bytes"]) > 0
        assert f'streamspool_build_info{{version="{__version__}"}}' in figures
        assert "_created" not in text
        own_stack.stop("worker")
        accepted = client.post(ask("fake/echo", background=True)).json()
        waiting = 'streamspool_queue_waiting{lane="background"}'
        assert f"{waiting} 1.0" in scraped(client)
        client.http.post(f"/v1/streams/{accepted['id']}/cancel")
        assert f"{waiting} 0.0" in scraped(client)


def test_a_worker_counts_by_provider_and_model(own_stack: Stack) -> None:
    port = free_port()
    own_stack.stop("worker")
    own_stack.start("worker", STREAMSPOOL_WORKER_METRICS_PORT=str(port))
    with Client(own_stack.url) as client:
        client.stream("fake/lorem?tokens=5")
        client.post(ask("fake/echo?error=429"))
    expected = (
        'streamspool_generations_sealed_total{provider="fake",status="completed",tenant=""} 1.0',
        'streamspool_generations_sealed_total{provider="fake",status="failed",tenant=""} 1.0',
        'streamspool_tokens_total{model="fake/lorem",provider="fake",tenant="",type="completion"} 5.0',
        'streamspool_upstream_request_seconds_count{provider="fake",status="200"} 1.0',
        'streamspool_time_to_first_chunk_seconds_count{model="fake/lorem",provider="fake"} 1.0',
        'streamspool_time_per_chunk_seconds_count{model="fake/lorem",provider="fake"} 1.0',
        'streamspool_generation_seconds_count{model="fake/lorem",provider="fake"} 1.0',
        'streamspool_generation_seconds_bucket{le="3600.0",model="fake/lorem",provider="fake"} 1.0',
        'streamspool_upstream_errors_total{code="status_429",provider="fake"} 1.0',
    )

    def counted() -> str | None:
        """What is counted of an answer may be counted once its client has it."""
        text = httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False, timeout=60).text
        return text if all(series in text for series in expected) else None

    assert "tokens=" not in wait_until(counted, what=f"{expected}")


def test_models_that_are_made_up_have_one_label() -> None:
    models = telemetry._Names(200)
    labels = [models.label(f"fake/made-up-{number}") for number in range(1000)]
    assert (labels[0], labels[-1], len(set(labels))) == ("fake/made-up-0", "other", 201)
    assert models.label("fake/made-up-0") == "fake/made-up-0"
    assert telemetry.answered_by("fake/lorem?tokens=3") == {"provider": "fake", "model": "fake/lorem"}
    assert telemetry.answered_by(None) == {"provider": "none", "model": "none"}
