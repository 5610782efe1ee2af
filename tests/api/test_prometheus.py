"""Debian's Prometheus scrapes a real stack, by our recipe and with our alerts, while all happens that there are panels for."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from shared.cli.embedded import EmbeddedValkey
from tests.harness.processes import ROOT, Stack, free_port, wait_until
from tests.harness.store import open_store
from tests.harness.upstream import Answer, Pause, ScriptedUpstream, ending, refusal, words
from tests.support import batch
from tests.support.receiver import SECRET, Receiver

DEPLOY = ROOT / "deploy"
CONFIG = """
[models]
panels-smart = ["scripted/panels-broken", "scripted/panels-good"]

[prices."scripted/panels-good"]
input = 1
output = 2
"""


@contextmanager
def prometheus(directory: Path, targets: dict[str, str]) -> Iterator[httpx.Client]:
    """Runs with our recipe, but for the targets (by `end`) and how often it looks."""
    if (program := shutil.which("prometheus")) is None:
        pytest.skip("no prometheus here: it is Debian's package of that name")
    recipe = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text())
    for one in recipe["scrape_configs"][0]["static_configs"]:
        one["targets"] = [targets[one["labels"]["end"]]]
    recipe["rule_files"] = [str(DEPLOY / name) for name in recipe["rule_files"]]
    recipe["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    file, port = directory / "prometheus.yaml", free_port()
    file.write_text(yaml.safe_dump(recipe))
    options = {"config.file": file, "storage.tsdb.path": directory / "tsdb", "web.listen-address": f"127.0.0.1:{port}"}
    command = [program, *(f"--{name}={value}" for name, value in options.items())]
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=30) as client:
            wait_until(lambda: is_ready(client, process, directory), 100, "Prometheus is ready")
            yield client
    finally:
        process.terminate()
        process.wait(60)


def is_ready(client: httpx.Client, process: subprocess.Popen[bytes], directory: Path) -> bool:
    assert process.poll() is None, (directory / "prometheus.log").read_text()
    try:
        return client.get("/-/ready").status_code == 200
    except httpx.TransportError:
        return False


def value_of(client: httpx.Client, query: str) -> list[float]:
    """Samples that are numbers."""
    answer = client.get("/api/v1/query", params={"query": query}).json()
    assert answer["status"] == "success", (query, answer)
    values = [float(one["value"][1]) for one in answer["data"]["result"]]
    return [one for one in values if not math.isnan(one)]


def queries() -> dict[str, list[str]]:
    """By the panel's title, as Grafana would send them with everything chosen."""
    board = json.loads((DEPLOY / "grafana/streamspool.json").read_text())
    chosen = {"$__rate_interval": "2m", "$provider": ".*", "$model": ".*"}
    found: dict[str, list[str]] = {}
    for panel in board["panels"]:
        for target in panel.get("targets", ()):
            query = target["expr"]
            for variable, value in chosen.items():
                query = query.replace(variable, value)
            found.setdefault(f"{panel['title']} ({panel['id']})", []).append(query)
    return found


class Load:
    """Everything that there is a panel for, once each time it is `run`."""

    def __init__(self, http: httpx.Client, upstream: ScriptedUpstream, hook: str) -> None:
        self._http, self._hook, self.held = http, hook, Pause()
        good = [*words(5), *ending()]
        upstream.script("panels-good", good)
        upstream.script("panels-unpriced", good)
        upstream.script("panels-held", [*words(1), self.held, *ending()])
        upstream.plan("panels-broken", refusal(404))
        upstream.plan("panels-down", refusal(400))
        # each time: refused once, then answered
        upstream.plan("panels-busy", by=lambda call: refusal(429) if call % 2 else Answer(good))

    def ask(self, model: str, status: int = 200, **fields: Any) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}], **fields}
        response = self._http.post("/v1/chat/completions", json=body)
        assert response.status_code == status, response.text
        return response

    def run(self) -> None:
        for model in ("scripted/panels-good", "scripted/panels-unpriced", "scripted/panels-busy", "panels-smart"):
            self.ask(model)
        self.ask("scripted/panels-down", 400)
        self.ask("scripted/panels-good", 429, max_tokens=5_000_000)
        told = self.ask("scripted/panels-good", stream=True, webhook={"url": self._hook})
        views = f"/v1/streams/{told.headers['x-stream-id']}"
        assert b"w4 " in self._http.get(views, headers={"last-event-id": "1-2"}).content
        ended = batch.ended(self._http, batch.start(self._http, batch.jsonl([batch.line("a")])))
        assert ended["status"] == "completed", ended

    def hold(self) -> str:
        """A batch that is under way until `held` goes on."""
        return batch.start(self._http, batch.jsonl([batch.line("a", "scripted/panels-held")]))


@pytest.mark.timeout(500)
def test_every_panel_has_data_after_a_load_in_which_everything_happens(
    valkey: EmbeddedValkey, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    url, port = valkey.url.replace("db=0", "db=3"), free_port()
    settings = {
        "STREAMSPOOL_WORKER_METRICS_PORT": str(port),
        "STREAMSPOOL_METRICS": "tenants,genai",
        "STREAMSPOOL_LIMITS": "tokens_per_min=1000000",
        "STREAMSPOOL_BUDGETS": "soft_day_usd=0.0000001",
        "STREAMSPOOL_WEBHOOK_SECRET": SECRET,
        "STREAMSPOOL_WEBHOOK_ALLOW": "127.0.0.1",
    }
    client = open_store(url)
    client.flushdb()
    with (
        Receiver() as hook,
        Stack(url, upstream.base_url, tmp_path, config=CONFIG, **settings) as stack,
        httpx.Client(base_url=stack.url, trust_env=False, timeout=60) as http,
        prometheus(tmp_path, {"api": f"127.0.0.1:{stack.port}", "worker": f"127.0.0.1:{port}"}) as asked,
    ):
        load = Load(http, upstream, hook.url)
        load.run()
        under_way = load.hold()
        delivered = 'streamspool_webhook_deliveries_total{outcome="delivered"} > 0'
        wait_until(lambda: value_of(asked, delivered), 100, "the first load was scraped")
        load.run()
        missing = {(title, query) for title, found in queries().items() for query in found}
        assert len(missing) > 50

        def found_all() -> bool:
            missing.difference_update([one for one in missing if value_of(asked, one[1])])
            return not missing

        try:
            wait_until(found_all, 150)
        except AssertionError:
            pytest.fail(f"no series for {sorted(missing)}")

        def looked_at() -> list[dict[str, Any]] | None:
            rules: list[dict[str, Any]] = asked.get("/api/v1/rules").json()["data"]["groups"][0]["rules"]
            return rules if "unknown" not in {rule["health"] for rule in rules} else None

        rules = wait_until(looked_at, what="every rule was looked at")
        assert {rule["health"] for rule in rules} == {"ok"}, rules
        assert value_of(asked, 'sum(streamspool_tokens_total{tenant="local", model="scripted/panels-good"})')[0] > 0
        of_genai = 'gen_ai_client_inference_duration_seconds_count{gen_ai_request_model="panels-good", error_type=""}'
        assert value_of(asked, of_genai)[0] > 0
        load.held.go()
        assert batch.ended(http, under_way)["status"] == "completed"
    client.flushdb()
    client.close()
