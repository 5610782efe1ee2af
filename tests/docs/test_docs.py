"""What the documentation says is true: every block is run or read, every name, link, route, code and table is looked up."""

from __future__ import annotations

import ast
import asyncio
import difflib
import inspect
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
import typer.main
import yaml
from redis.commands.core import CoreCommands

from api import bodies as api_bodies
from api.live import drain as api_drain
from shared import __version__
from shared.cli import client as shared_client
from shared.cli.embedded import EmbeddedValkey, find_binary
from shared.cli.main import app
from shared.config.environ import BUCKET_VARIABLES
from shared.config.settings import Settings
from shared.features import webhooks
from shared.generations import reaper
from shared.lib import http as shared_http
from shared.lib import json as shared_json
from shared.store import old_queue
from shared.store.keys import OldKeys
from shared.store.redis import UNREACHABLE, connect
from tests.docs import coverage, tables
from tests.docs.cut import CuttingProxy
from tests.docs.snippets import Block, anchors, blocks, links, matches, prose
from tests.harness.processes import Stack, free_port, wait_until
from tests.harness.store import open_store
from tests.harness.upstream import ScriptedUpstream
from tests.support.names import keys
from worker import arq_worker as runner
from worker import heartbeat as worker_main
from worker import places
from worker import webhooks as courier
from worker.providers.fake import _OPTIONS as FAKE_OPTIONS
from worker.providers.registry import VENDORS, load_providers
from worker.upstream import attempts as upstream_module

ROOT = tables.ROOT
DOCUMENTS = tables.DOCUMENTS
TRANSLATED = "README.zh-CN.md"
"""Has the blocks of README.md, which are run there: tests/docs/test_readme.py."""
ALL = [block for document in DOCUMENTS if document != TRANSLATED for block in blocks(ROOT, document)]
RESOURCES = [document for document in DOCUMENTS if document.startswith("docs/api/")]
QUESTION = {"model": "fake/echo", "messages": [{"role": "user", "content": "Hello"}]}
LIMIT_S = 300
"""For a snippet: it is not about speed, and the machine may be busy."""
WRITTEN_FOR = "http://127.0.0.1:8000"
CLIENTS = ROOT / "tests/clients"
pytestmark = pytest.mark.timeout(2 * LIMIT_S)

CHECKED_BY = {
    "bash": "test_what_is_typed_answers_as_shown",
    "python": "test_python_snippets_run",
    "js": "test_javascript_snippets_run",
    "sh": "test_commands_exist",
    "toml": "test_toml_is_what_the_settings_take",
    "json": "test_json_is_json",
    "text": "nothing: it says so",
}


def only(language: str) -> list[Any]:
    return [pytest.param(block, id=str(block)) for block in ALL if block.language == language]


@pytest.fixture
def proxy(stack: Stack) -> Iterator[CuttingProxy]:
    with CuttingProxy(stack.port) as running:
        yield running


def environment() -> dict[str, str]:
    """Ours, without the variables that would send a client elsewhere."""
    names = re.compile(r"(?i).*_proxy|OPENAI_.*|PYTHONPATH|HTTPX_.*")
    return {**{k: v for k, v in os.environ.items() if not names.fullmatch(k)}, "PYTHONWARNINGS": "ignore"}


def shown(block: Block, received: str) -> None:
    assert block.output is None or matches(block.output, received), (
        f"{block} shows\n{block.output}\nbut the answer is\n{received}"
    )


# ---- blocks


@pytest.mark.parametrize("block", [pytest.param(block, id=str(block)) for block in ALL])
def test_every_block_says_what_it_is(block: Block) -> None:
    assert block.language in CHECKED_BY, f"{block}: `{block.language}` is neither run nor checked; plain text is `text`"


@pytest.mark.parametrize(
    "document", [d for d in DOCUMENTS if any(b.document == d and b.language == "bash" for b in ALL)]
)
def test_what_is_typed_answers_as_shown(document: str, stack: Stack, tmp_path: Path) -> None:
    """One shell for a whole document, as a reader has one: a variable set in one block is there in the next."""
    typed = [block for block in ALL if block.document == document and block.language == "bash"]
    script = "set -eu\n"
    for number, block in enumerate(typed):
        code = block.code.replace(WRITTEN_FOR, stack.url)
        script += f"exec >{number}.out\n{code}\n"
    if "/v1/queue" in script:
        wait_until(lambda: rests(stack), LIMIT_S)
    if "/facets" in script:  # which shows what has completed
        ask(stack)
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=environment(),
        check=False,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    for number, block in enumerate(typed):
        output = tmp_path / f"{number}.out"
        assert output.exists(), f"{block} was not reached: {done.stderr}"
        shown(block, output.read_bytes().decode())
    assert done.returncode == 0, done.stderr


def rests(stack: Stack) -> bool:
    """Whether what other documents began has ended."""
    lanes = get(stack, "/v1/queue").json()["data"]
    return not any(lane["running"] or lane["waiting"] for lane in lanes)


@pytest.mark.parametrize("block", only("python"))
def test_python_snippets_run(block: Block, stack: Stack, proxy: CuttingProxy, tmp_path: Path) -> None:
    script = tmp_path / "snippet.py"
    script.write_text(block.code.replace(WRITTEN_FOR, proxy.url if "cut" in block.words else stack.url), "utf-8")
    run(block, [sys.executable, str(script)], tmp_path, proxy)


@pytest.mark.parametrize("block", only("js"))
def test_javascript_snippets_run(block: Block, stack: Stack, proxy: CuttingProxy, tmp_path: Path) -> None:
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed")
    for package in re.findall(r'from "([^".]+)"', block.code):
        if not (CLIENTS / "node_modules" / package).is_dir():
            pytest.skip(f"{package} is not installed: make clients")
    (tmp_path / "node_modules").symlink_to(CLIENTS / "node_modules")
    script = tmp_path / "snippet.mjs"
    script.write_text(block.code.replace(WRITTEN_FOR, proxy.url if "cut" in block.words else stack.url), "utf-8")
    run(block, [node, str(script)], tmp_path, proxy)


def run(block: Block, command: list[str], directory: Path, proxy: CuttingProxy) -> None:
    done = subprocess.run(
        command, cwd=directory, env=environment(), check=False, capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.returncode == 0, f"{block}: {done.stderr}"
    shown(block, done.stdout)
    assert block.output is not None, f"{block} shows no output to compare with"
    if "cut" in block.words:
        assert proxy.cut >= 1, f"{block} was not cut, so it proved nothing"
        assert proxy.connections > proxy.cut


@pytest.mark.parametrize("block", only("sh"))
def test_commands_exist(block: Block) -> None:
    for line in block.code.splitlines():
        for command in filter(None, re.split(r"\s*&&\s*", line.partition("#")[0].strip())):
            check_command(shlex.split(command), command)


def check_command(words: list[str], command: str) -> None:
    name, *arguments = words
    if name == "make":
        done = subprocess.run(["make", "-n", *arguments], cwd=ROOT, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    elif name in ("streamspool", ".venv/bin/streamspool"):
        parse_as_ours(arguments)
    elif name == "docker":
        check_compose(arguments)
    elif name == "export":
        for assignment in arguments:
            assert re.fullmatch(r"[A-Z_]+=\S+", assignment), command
        Settings(_env_file=None, **own_settings(arguments))
    else:
        assert command in (ROOT / "Makefile").read_text("utf-8"), f"nobody checks `{command}`"


def own_settings(assignments: list[str]) -> dict[str, Any]:
    given = dict(assignment.split("=", 1) for assignment in assignments)
    return {name: given[variable] for name in Settings.model_fields if (variable := tables.variable(name)) in given}


def parse_as_ours(arguments: list[str]) -> None:
    """Parses a command line as `streamspool` would, and runs nothing."""
    group: Any = typer.main.get_command(app)
    name, *rest = arguments
    assert name in group.commands, f"there is no `streamspool {name}`"
    group.commands[name].make_context(name, rest)


def check_compose(arguments: list[str]) -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text("utf-8"))["services"]
    word, verb, *rest = arguments
    assert (word, verb) == ("compose", "up")
    for argument in rest:
        if scaled := re.fullmatch(r"(\w+)=\d+", argument):
            assert scaled[1] in services
            assert "container_name" not in services[scaled[1]]
            assert "ports" not in services[scaled[1]]
        else:
            assert argument in ("--build", "--scale", "-d")


@pytest.mark.parametrize("block", only("toml"))
def test_toml_is_what_the_settings_take(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "streamspool.toml"
    file.write_text(block.code, "utf-8")
    monkeypatch.setenv("STREAMSPOOL_CONFIG", str(file))
    settings = Settings(_env_file=None)
    assert settings.providers or settings.model_fields_set
    variables = {row.api_key_env: "key" for row in settings.providers.values() if row.api_key_env}
    assert set(settings.providers) <= set(load_providers(settings, variables))


@pytest.mark.parametrize("block", only("json"))
def test_json_is_json(block: Block) -> None:
    json.loads(block.code)


def test_the_state_object_has_the_fields_that_are_described(stack: Stack) -> None:
    (example,) = [json.loads(block.code) for block in ALL if "state" in block.words]
    generation_id = ask(stack)["id"]
    state = get(stack, f"/v1/streams/{generation_id}", accept="application/json").json()
    assert list(state) == list(example)
    described = table(prose(ROOT, "docs/api/streams.md"), "## The state object")
    assert {name for row in described for name in re.findall(r"`(\w+)`", row[0])} == set(state)
    assert {type(state[name]) for name in state} == {type(example[name]) for name in example}
    assert set(state["links"]) == set(example["links"])


def test_the_log_holds_what_the_protocol_shows(stack: Stack) -> None:
    examples = {
        block.words[0]: json.loads(block.code)
        for block in ALL
        if "PROTOCOL" in block.document and block.words[:1] and block.language == "json"
    }
    generation_id = ask(stack)["id"]
    client: Any = open_store(stack.redis_url)
    entries = {position.decode(): fields for position, fields in client.xrange(keys.log(generation_id))}
    catalogue = json.loads(client.get(keys.catalogue))
    client.close()
    for position, kind, name in (
        ("0-1", b"r", "header"),
        ("1-0", b"a", "attempt"),
        ("9007199254740991-0", b"o", "outcome"),
    ):
        assert list(json.loads(entries[position][kind])) == list(examples[name]), name
    assert [next(iter(fields)) for fields in entries.values()] == [b"r", b"b", b"a", b"c", b"c", b"c", b"u", b"o"]
    assert all(set(row) == {"kind", "key", "models", "open", "responses"} for row in catalogue["providers"].values())


def test_the_commands_of_the_protocol_are_those_that_are_sent(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    (listed,) = [set(block.code.split()) for block in ALL if "commands" in block.words]
    of_the_client = {"HELLO", "AUTH", "SELECT", "CLIENT", "COMMAND"}
    body = {**QUESTION, "on_disconnect": "cancel", "session_id": "s", "store": True}
    hooked = {
        "STREAMSPOOL_WEBHOOK_SECRET": "whsec_" + "A" * 32,
        "STREAMSPOOL_WEBHOOK_URL": "http://127.0.0.1:1/",
        "STREAMSPOOL_WEBHOOK_ALLOW": "127.0.0.1",
    }
    with EmbeddedValkey(tmp_path) as server, Stack(server.url, upstream.base_url, tmp_path, **hooked) as running:
        told = post(running, {**QUESTION, "background": True}).json()["links"]["self"]

        def attempted() -> Any:
            return get(running, told, accept="application/json").json()["webhook"]["error"]

        wait_until(attempted, LIMIT_S, what="an attempt")
        generation_id = ask(running)["id"]
        for _ in range(2):
            posted = post(running, body, {"idempotency-key": "once"})
            assert posted.status_code == 200
        stored = posted.headers["x-stream-id"]
        for path in (
            f"/v1/streams/{generation_id}",
            f"/v1/chat/completions/{generation_id}",
            "/v1/streams",
            "/v1/models",
            "/v1/chat/completions",
            f"/v1/chat/completions?after={stored}",
            "/v1/sessions",
            "/v1/sessions/s",
            "/v1/usage",
        ):
            assert get(running, path).status_code == 200
        assert delete(running, f"/v1/streams/{generation_id}").status_code == 200
        with open_store(server.url) as client:
            sent = {name.removeprefix("cmdstat_").partition("|")[0].upper() for name in client.info("commandstats")}
    assert sent - listed - of_the_client == set()
    assert {"XADD", "XRANGE", "XREAD", "XREVRANGE", "WATCH", "ZADD"} <= sent


def test_every_command_that_the_code_names_is_in_the_protocol() -> None:
    """Also what is sent once in a while. `move-queue` is an operator's, with rights of its own."""
    (listed,) = [set(block.code.split()) for block in ALL if "commands" in block.words]
    spelled = {"delete": "DEL", "incr": "INCRBY", "decr": "DECRBY", "config_get": "CONFIG", "zscan_iter": "ZSCAN"}
    named = set()
    for path in (path for end in ("api", "worker", "shared") for path in (ROOT / end).rglob("*.py")):
        if path.name != "moving.py":
            found = set(re.findall(r"\b(?:pipe|_?redis|control)\.([a-z_]+)\(", path.read_text("utf-8")))
            named |= {spelled.get(name, name.upper()) for name in found if hasattr(CoreCommands, name)}
    assert named - listed == {"EXECUTE_COMMAND"}
    assert len(named) > 40


# ---- tables


def test_every_cell_of_the_providers_has_a_test_behind_it() -> None:
    files = {file for row in coverage.ROWS for _, file in row.others.values()} | set(coverage.RECORDED_BY)
    assert not [file for file in files if "def test_" not in (ROOT / file).read_text("utf-8")]
    assert {kind for row in coverage.ROWS for kind, _ in row.others.values()} == {"server", "model", "written"}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_tables_are_those_of_the_code(document: str) -> None:
    text = (ROOT / document).read_text("utf-8")
    difference = "".join(difflib.unified_diff(text.splitlines(True), tables.rewritten(text).splitlines(True), document))
    assert not difference, f"write them anew with `{tables.COMMAND}`:\n{difference}"


def test_each_table_stands_somewhere() -> None:
    everything = "".join((ROOT / document).read_text("utf-8") for document in DOCUMENTS)
    assert all(everything.count(f"<!-- table: {name} -->") == 1 for name in tables.TABLES)


KEY_PARTS = {
    "generation_id": "ID",
    "subject": "ID",
    "job_id": "ID",
    "tenant": "TENANT",
    "session_id": "SESSION",
    "digest": "SHA256",
    "asked": "streamspool:asked:TENANT:SHA256",
    "holder": "HOLDER",
    "day": "YYYY-MM-DD",
    "hour": "HOUR",
    "row": "ROW",
    "month": "YYYY-MM",
    "file_id": "FILE",
    "batch_id": "BATCH",
    "worker_id": "WORKER",
    "process_id": "PROCESS",
    "lane": "LANE",
    "kind": "KIND",
    "scope": "SCOPE",
    "provider": "PROVIDER",
    "cell": 0,
}
"""What stands in the table for what a key is made of."""


def test_the_key_table_names_every_key() -> None:
    made = {
        value
        for name, value in vars(keys).items()
        if name != "prefix" and not name.startswith("_") and isinstance(value, str)
    }
    made.add(OldKeys.reaper)
    for name, method in inspect.getmembers(keys, inspect.ismethod):
        if not name.startswith("_") and inspect.signature(method).return_annotation != "bool":
            made_one = method(*(KEY_PARTS[part] for part in inspect.signature(method).parameters))
            made |= {made_one} if isinstance(made_one, str) else set(made_one)
    written = set(re.findall(r"`([^`]+)`", tables.redis_keys()))
    (stem,) = (name.removesuffix("head") for name in written if name.endswith("}:head"))
    written = {name.replace("…:", stem) for name in written}
    assert made - {keys.doorbell} <= written
    assert {name for name in written if name.startswith(f"{keys.prefix}:")} <= made, "a key that nobody makes"
    assert keys.doorbell in prose(ROOT, "shared/log/PROTOCOL.md")


def test_the_options_of_the_fake_models_are_all_described() -> None:
    rows = table(prose(ROOT, "docs/api/models.md"), "## Fake models")
    assert [row[0].strip("`") for row in rows] == list(FAKE_OPTIONS)


def test_numbers_in_prose_are_those_of_the_code() -> None:
    assert (2 * shared_http._READ_AHEAD, runner.POLL_S, runner.BEAT_S) == (128 * 1024, 0.5, 5)
    assert (runner.BEAT_TTL_S, worker_main.CATALOGUE_TTL_S, places.BATCHES) == (15, 86400, 32)
    assert (reaper.TICK_S, old_queue.KEEP_AWAY_MS, shared_client.SILENCE_S) == (5, 15_000, 45)
    assert (upstream_module._TRIES, upstream_module._TRIES_S, upstream_module._LONGEST_PAUSE_S) == (3, 30, 10)
    assert (api_bodies._BODY_S, api_drain._STAGGER_S, shared_json.MAX_DEPTH) == (30, 2, 200)
    assert (courier.POLL_S, courier.AT_ONCE, courier.AT_ONCE_EACH, webhooks._LONGEST_PAUSE_S) == (1, 32, 8, 3600)
    assert (webhooks._LEASE_MARGIN_S, webhooks._JITTER) == (5, 0.2)
    assert "HEADERS_S = 30.0\n" in (ROOT / "api/connection.py").read_text("utf-8")
    fields = Settings.model_fields
    assert (fields["disconnect_grace_s"].default, fields["lease_s"].default, fields["no_worker_s"].default) == (
        5,
        10,
        60,
    )
    api, readme = prose(ROOT, "docs/api/chat-completions.md"), prose(ROOT, "README.md")
    assert "three times in all, within 30 s" in " ".join(api.split())
    assert "200 levels" in api
    assert "three times in all, within 30 s" in readme
    assert "every worker, for 60 s" in readme
    assert "some 10 s after the last viewer left" in " ".join(prose(ROOT, "docs/STREAMING.md").split())
    operations, protocol = prose(ROOT, "docs/OPERATIONS.md"), prose(ROOT, "shared/log/PROTOCOL.md")
    assert "128 KiB" in operations
    assert "128 KiB" in readme
    assert "last 15 s" in operations
    assert "no byte for 45 s" in " ".join(prose(ROOT, "docs/STREAMING.md").split())
    for number in ("half a second", "32 of them", "every 5 s"):
        assert number in protocol, number


# ---- what the prose says and no block shows


def test_a_busy_provider_is_asked_three_times_unless_it_asks_for_more_time(
    stack: Stack, upstream: ScriptedUpstream
) -> None:
    cases = (("busy", 429, None, 3), ("soon", 429, "1", 3), ("later", 429, "11", 1), ("refused", 400, None, 1))
    for name, status, retry_after, calls in cases:
        headers = {"retry-after": retry_after} if retry_after else {}
        script = upstream.script(f"docs-{name}", status=status, headers=headers)
        response = post(stack, {**QUESTION, "model": f"scripted/docs-{name}"})
        repeatable = "true" if status == 429 else "false"
        assert (response.status_code, response.headers["x-should-retry"]) == (status, repeatable)
        assert response.headers.get("retry-after") == retry_after
        assert len(script.calls) == calls, name


def test_policies_may_come_as_headers_and_the_body_wins(stack: Stack) -> None:
    model = {**QUESTION, "model": "fake/lorem?cut=1"}
    for body, header, attempts in (
        (model, {"x-on-interruption": "restart"}, 3),
        ({**model, "on_interruption": "fail"}, {"x-on-interruption": "restart"}, 1),
    ):
        failed = post(stack, body, header)
        assert failed.json()["error"]["code"] == "upstream_incomplete"
        state = get(stack, f"/v1/streams/{failed.headers['x-stream-id']}", accept="application/json").json()
        assert state["attempts"] == attempts
    assert post(stack, QUESTION, {"x-on-disconnect": "perhaps"}).json()["error"]["param"] == "on_disconnect"


def test_headers_and_bodies_are_refused_as_described(stack: Stack) -> None:
    for headers, status in (
        ({"content-type": "text/plain"}, 415),
        ({"content-encoding": "gzip"}, 400),
        ({"idempotency-key": "x" * 256}, 400),
        ({"idempotency-key": ""}, 400),
    ):
        refused = post(stack, QUESTION, headers)
        assert (refused.status_code, refused.json()["error"]["code"]) == (status, "invalid_request")
    deep = {**QUESTION, "metadata": None, "deep": json.loads("[" * 201 + "]" * 201)}
    assert post(stack, deep).json()["error"]["code"] == "invalid_json"


def test_who_takes_both_gets_events(stack: Stack) -> None:
    path = f"/v1/streams/{ask(stack)['id']}"
    assert get(stack, path, accept="application/json, text/event-stream").headers["content-type"].startswith("text/e")
    assert get(stack, path, accept="application/json").headers["content-type"] == "application/json"


def test_a_deleted_answer_frees_its_key(stack: Stack) -> None:
    key = {"idempotency-key": uuid.uuid4().hex}
    first = post(stack, QUESTION, key)
    assert post(stack, QUESTION, key).headers["idempotent-replayed"] == "true"
    delete(stack, f"/v1/streams/{first.json()['id']}").raise_for_status()
    again = post(stack, {**QUESTION, "n": 2}, key)
    assert again.status_code == 200
    assert "idempotent-replayed" not in again.headers


@contextmanager
def running(command: list[str]) -> Iterator[None]:
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        server.terminate()
        server.wait()


async def test_the_sentinel_url_leads_to_the_master(tmp_path: Path) -> None:
    port, sentinel_port = free_port(), free_port()
    (written,) = re.findall(r"REDIS_URL='(redis\+sentinel:\S+)'", (ROOT / "docs/OPERATIONS.md").read_text("utf-8"))
    url = written.replace("sentinel-1:26379", "127.0.0.1:1").replace("sentinel-2:26379", f"127.0.0.1:{sentinel_port}")
    hosts = f"127.0.0.1:1,127.0.0.1:{sentinel_port}"
    assert url == f"redis+sentinel://:change-me@{hosts}/mymaster/0?sentinel_password=change-me-too"
    url = url.replace("mymaster/0", "mymaster/2")
    config = tmp_path / "sentinel.conf"
    config.write_text(
        f"port {sentinel_port}\nbind 127.0.0.1\ndir {tmp_path}\n"
        f"sentinel monitor mymaster 127.0.0.1 {port} 1\nsentinel auth-pass mymaster change-me\n"
        "requirepass change-me-too\n"
    )
    master = [
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--dir",
        str(tmp_path),
        "--requirepass",
        "change-me",
    ]
    with ExitStack() as stack:
        for arguments in (master, [str(config), "--sentinel"]):
            stack.enter_context(running([str(find_binary()), *arguments]))
        connected: Any = connect(url, max_connections=2)
        try:
            async with asyncio.timeout(60):
                while not await answers(connected):  # noqa: ASYNC110 - another process
                    await asyncio.sleep(0.05)
            await connected.set("here", "yes")
            with redis.Redis(port=port, password="change-me", db=2) as direct:
                assert direct.get("here") == b"yes"
        finally:
            await connected.aclose(close_connection_pool=True)


async def answers(client: Any) -> bool:
    try:
        return bool(await client.ping())
    except UNREACHABLE:
        return False


def test_the_log_events_are_those_of_the_code() -> None:
    code = "".join(
        path.read_text("utf-8") for end in ("api", "worker", "shared") for path in (ROOT / end).rglob("*.py")
    )
    logged = set(re.findall(r'logger\.\w+\(\s*"([^"]+)"', code))
    rows = table(prose(ROOT, "docs/OPERATIONS.md"), "## Logs")
    assert {name for row in rows for name in re.findall(r"`([^`]+)`", row[0])} <= logged


# ---- names


def test_our_variables_exist() -> None:
    code = "".join(
        path.read_text("utf-8") for end in ("api", "worker", "shared") for path in (ROOT / end).rglob("*.py")
    )
    known = {tables.variable(name) for name in Settings.model_fields} | set(
        re.findall(r'"(STREAMSPOOL_[A-Z_]+)"', code)
    )
    for document in DOCUMENTS:
        for name in re.findall(r"STREAMSPOOL_[A-Z_]+", (ROOT / document).read_text("utf-8")):
            assert name in known, f"{document}: {name}"


def test_providers_variables_exist() -> None:
    known = {name for vendor in VENDORS for name in (*vendor.key_variables, *vendor.base_variables)}
    known |= {
        "LAB_API_KEY",
        "OPENAI_API_BASE_URL",
        "STREAMSPOOL_API_KEY",
    }  # an example, Open WebUI's, the command line's
    buckets = {name for names in BUCKET_VARIABLES.values() for name in names}
    known |= buckets
    assert buckets - {"AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL_S3"} <= set(  # other words for two that are named
        re.findall(r"`([A-Z_]+)`", prose(ROOT, "docs/OPERATIONS.md"))
    )
    for document in DOCUMENTS:
        for name in re.findall(r"`([A-Z][A-Z0-9_]+(?:_KEY|_BASE_URL|_API_BASE|_TOKEN|_HOST))`", prose(ROOT, document)):
            assert name in known, f"{document}: {name}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    for link in links(ROOT, document):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = ((ROOT / document).parent / path).resolve() if path else ROOT / document
        assert target.is_file(), f"{document}: {link}"
        if anchor:
            there = anchors(ROOT, str(target.relative_to(ROOT)))
            assert anchor in there, f"{document}: {link}"
            assert f"{anchor}-1" not in there, f"{document}: {link} leads to the first of two headings of that name"


@pytest.mark.parametrize("document", ["docs/OPERATIONS.md", "docs/STREAMING.md"])
def test_the_contents_name_every_section(document: str) -> None:
    contents, _, rest = prose(ROOT, document).partition("\n## ")
    sections = re.findall(r"^## (.+)$", "## " + rest, re.M)
    assert sections
    assert [one for one in sections if f"[{one}](#" not in contents and f"[{one.lower()}](#" not in contents] == []


@pytest.mark.parametrize("index", ["docs/API.md", "docs/RECIPES.md"])
def test_an_index_leads_to_every_section(index: str) -> None:
    found = set(links(ROOT, index))
    for page in RESOURCES if index == "docs/API.md" else [index]:
        path = "" if page == index else page.removeprefix("docs/")
        assert {f"{path}#{section}" for section in anchors(ROOT, page, level=2)} <= found, page
        assert not path or path in found


def test_routes_are_those_of_the_api(stack: Stack) -> None:
    pages = "\n".join(prose(ROOT, page) for page in RESOURCES)
    headings = re.findall(r"^## (GET|POST|PUT|PATCH|DELETE) (/\S*)$", pages, re.M)
    described = {(method, re.sub(r"\{\w+\}", "{}", path)) for method, path in headings}
    assert len(described) == len(headings)
    schema = get(stack, "/openapi.json").json()
    assert schema["info"]["version"] == __version__
    paths = schema["paths"]
    real = {(m.upper(), re.sub(r"\{\w+\}", "{}", path)) for path, methods in paths.items() for m in methods}
    assert described >= real, f"not described: {real - described}"
    for method, path in described - real:  # kept out of the schema: they need no key, and just answer
        assert method == "GET"
        assert get(stack, path).status_code == 200, path


def test_error_codes_are_those_of_the_code() -> None:
    rows = table(prose(ROOT, "docs/api/errors.md"), "# Errors")
    described = [row[0].strip("`") for row in rows]
    assert len(described) == len(set(described))
    assert set(described) == codes()
    in_cursors = {row[1].strip("`") for row in table(prose(ROOT, "docs/STREAMING.md"), "## Cursors", nth=2)} - {""}
    assert in_cursors <= set(described)


def test_metrics_named_in_prose_exist() -> None:
    real = set(re.findall(r"`(streamspool_\w+)`", tables.metrics()))
    for document in DOCUMENTS:
        assert set(re.findall(r"`(streamspool_\w+)`", prose(ROOT, document))) <= real


def codes() -> set[str]:
    """Every `code` that can reach a client: classes' own, `code=…`, `"code": …`, and the timers' names."""
    # Defaults of classes that are always given another; and what ends a start.
    never_alone = {"service_unavailable", "upstream_timeout", "unusable"}
    inside = {"cli", "client", "demo", "doctor", "embedded", "supervisor"}  # never on the wire
    found: set[str] = set()
    for end in ("api", "worker", "shared"):
        for path in (ROOT / end).rglob("*.py"):
            if not (end == "shared" and path.stem in inside):
                tree = ast.parse(path.read_text("utf-8"))
                found |= {code for node in ast.walk(tree) for code in _codes(node)}
    return found - never_alone


def _codes(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.keyword):
        yield from _constants(node.value) if node.arg == "code" else ()
    elif isinstance(node, ast.AnnAssign | ast.Assign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        named = any(isinstance(target, ast.Name) and target.id == "code" for target in targets)
        yield from _constants(node.value) if named else ()
    elif isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant) and key.value == "code":
                yield from _constants(value)
    elif isinstance(node, ast.Constant) and re.fullmatch(r"(upstream_\w+|generation)_timeout", str(node.value)):
        yield str(node.value)


def _constants(value: ast.AST | None) -> Iterator[str]:
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        yield value.value
    elif isinstance(value, ast.IfExp):
        yield from (*_constants(value.body), *_constants(value.orelse))
    elif isinstance(value, ast.BoolOp):
        for part in value.values:
            yield from _constants(part)
    elif isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id == "str":
        for part in value.args:
            yield from _constants(part)


# ---- help


def ask(stack: Stack) -> dict[str, Any]:
    answer: dict[str, Any] = post(stack, QUESTION).raise_for_status().json()
    return answer


def post(stack: Stack, body: dict[str, Any], headers: dict[str, str] | None = None) -> httpx.Response:
    url = f"{stack.url}/v1/chat/completions"
    return httpx.post(url, json=body, headers=headers, trust_env=False, timeout=LIMIT_S)


def get(stack: Stack, path: str, **headers: str) -> httpx.Response:
    return httpx.get(f"{stack.url}{path}", headers=headers, trust_env=False, timeout=LIMIT_S)


def delete(stack: Stack, path: str) -> httpx.Response:
    return httpx.delete(f"{stack.url}{path}", trust_env=False, timeout=LIMIT_S)


def table(text: str, heading: str, nth: int = 0) -> list[list[str]]:
    """The rows of the nth table under a heading."""
    section = text[text.index(f"{heading}\n") :]
    found = re.findall(r"(?:^\|.*\n)+", section, re.M)[nth]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in found.splitlines()[2:]]
