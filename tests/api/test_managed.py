"""What managed servers keep from their users: commands that are not there, rights that are not given. All works without them,
and a line in the log says what is not known then. What is needed the doctor says, and with that alone all works, too."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from shared.cli.doctor_redis import examine_redis
from shared.cli.findings import Finding
from shared.config.settings import Settings
from tests.harness.cluster import Cluster
from tests.harness.processes import Stack, free_port, wait_until
from tests.harness.store import Store
from tests.harness.upstream import ScriptedUpstream, ending, whole, words
from tests.support.batch import ended, jsonl, line, start
from tests.support.server import Certificates, Server

WITHHELD = ("bgrewriteaof", "bgsave", "config", "debug", "migrate", "replicaof", "save", "slaveof", "shutdown", "sync")
"""docs.aws.amazon.com/AmazonElastiCache/latest/dg/ClientConfig.RestrictedCommands.html"""
DENIED = ("info", "config", "eval", "evalsha", "wait", "waitaof", "client|tracking")
"""What a user may lack, by docs/OPERATIONS.md."""
ELSEWHERE = ("arq:queue", "streamspool{control}:cells")
"""Keys that are looked for and need not be reached: an older version's queue, and what a cluster says of itself."""


@contextmanager
def running(url: str, upstream: ScriptedUpstream, directory: Path, **settings: str) -> Iterator[Stack]:
    with Stack(url, upstream.base_url, directory, STREAMSPOOL_HOLD_HEADERS_S="0.2", **settings) as stack:
        yield stack


def all_works(stack: Stack, upstream: ScriptedUpstream) -> None:
    """Once through what is there: streams, what runs in the background, sessions, batches, lists, cancels and deletes."""
    said = {"messages": [{"role": "user", "content": "hi"}]}
    upstream.script("managed", [*words(20), *ending()])
    upstream.script("endless", [*words(3)], end="hang")
    with httpx.Client(base_url=stack.url, trust_env=False, timeout=60) as http:

        def asked(model: str, **fields: object) -> httpx.Response:
            response = http.post("/v1/chat/completions", json={"model": model, **said, **fields})
            assert response.status_code < 300, response.text
            return response

        for _ in range(3):
            streamed = asked("scripted/managed", stream=True, session_id="managed")
            assert streamed.text.endswith("data: [DONE]\n\n")
        again = http.get(f"/v1/streams/{streamed.headers['x-stream-id']}", headers={"last-event-id": "1-3"})
        assert "w19 " in again.text
        assert http.get("/v1/sessions/managed").json()["turns"] == 3
        left = asked("scripted/managed", background=True).json()["id"]
        wait_until(lambda: http.get(f"/v1/chat/completions/{left}").json().get("choices"), 60, "it ran")
        assert http.get(f"/v1/chat/completions/{left}").json()["choices"][0]["message"]["content"] == whole(20)
        endless = asked("scripted/endless", background=True).json()["id"]
        assert http.post(f"/v1/streams/{endless}/cancel").status_code == 200
        batch_id = start(http, jsonl(line(f"line-{number}") for number in range(20)))
        batch = ended(http, batch_id)
        assert (batch["status"], batch["request_counts"]["completed"]) == ("completed", 20)
        assert http.delete(f"/v1/streams/{left}").status_code < 300
        listed = http.get("/v1/streams").json()["data"]
        assert {one["status"] for one in listed} == {"completed", "cancelled"}
        assert http.get("/v1/usage").json()["data"]
        assert http.get("/readyz").status_code == 200
        assert http.get("/metrics").status_code == 200


def events(stack: Stack, name: str) -> set[str]:
    """What a process said of Redis, up to the first stop of each line."""
    lines = [json.loads(one) for one in stack.log(name).splitlines() if one.startswith("{")]
    assert not [one for one in lines if one["level"] in ("error", "critical")], stack.log(name)
    told = {one["event"].partition(":")[0].partition(";")[0]: one for one in lines if one["level"] == "warning"}
    assert "redis failed" not in told, told["redis failed"]
    return {event for event in told if event.startswith("redis ")}


def test_a_server_of_a_cloud_with_tls_a_password_and_without_the_commands_of_an_operator(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """As such servers are by default, too: it evicts, and has no append-only file."""
    certificates, port = Certificates(tmp_path / "certificates", "127.0.0.1"), free_port()
    taken = [word for command in WITHHELD for word in ("--rename-command", command, "")]
    limits = ["--requirepass", "hush", "--maxmemory", "200mb", "--maxmemory-policy", "volatile-lru"]
    with Server(tmp_path / "server", *taken, *limits, *certificates.options(port), kind="redis"):
        url = f"rediss://:hush@127.0.0.1:{port}/0?ssl_ca_certs={certificates.ca}"
        with running(url, upstream, tmp_path) as stack:
            all_works(stack, upstream)
            for name in ("api", "worker"):
                assert events(stack, name) == {
                    "redis has no append-only file, and CONFIG, which tells whether it saves, is withheld",
                    "redis may evict running streams",
                }


def test_a_user_who_may_do_nothing_but_what_is_needed(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    """And nothing is given that such a user may not do, but what docs/OPERATIONS.md says is done without."""
    with Server(tmp_path / "server") as server:
        rules = ["reset", "on", ">pw", "~streamspool:*", "&streamspool:*", "&__redis__:invalidate", "+@all", "-@admin"]
        rules += ["-@dangerous", *(f"-{command}" for command in DENIED)]
        server.client().execute_command("ACL", "SETUSER", "some", *rules)
        with running(server.url.replace("//", "//some:pw@"), upstream, tmp_path) as stack:
            all_works(stack, upstream)
            told = "redis does not tell this user what it may forget"
            assert events(stack, "worker") == {told}
            many = "redis does not track keys for this user"  # is said once many answers are followed
            assert events(stack, "api") - {many} == {told}
        refused = {entry["object"] for entry in server.client().acl_log(1000) if entry["username"] == "some"}
        assert refused <= {*DENIED, *ELSEWHERE}


# ---- with what the doctor advises, and no more

WELL = ("--maxmemory", "200mb", "--appendonly", "yes")
"""As the doctor wants a server to be."""
_ADVICE = re.compile(r" ACL SETUSER ([^(]+?)(?: \(on each node\))?$")


class Installation:
    """Servers with a user who may nothing at all, and the settings that name them; `logs` and `queue` are their admins."""

    def __init__(self, logs: Sequence[Store], queue: Sequence[Store], url: str, queue_url: str = "") -> None:
        self.logs, self.queue = logs, queue
        self.settings = {"REDIS_URL": url} | ({"STREAMSPOOL_QUEUE_URL": queue_url} if queue_url else {})
        for admin in (*logs, *queue):
            admin.execute_command("ACL", "SETUSER", "some", "reset", "on", ">pw")

    def examine(self) -> list[Finding]:
        names = {"REDIS_URL": "redis_url", "STREAMSPOOL_QUEUE_URL": "queue_url"}
        settings = Settings.model_validate({names[name]: value for name, value in self.settings.items()})
        return asyncio.run(examine_redis(settings))

    def follow(self) -> None:
        """Types what the doctor says until it says nothing more: first what there is no connection without, then the commands,
        then the keys."""
        for _ in range(4):
            told = [one for one in self.examine() if one.ok is not True]
            if not told:
                return
            for one in told:
                if advice := _ADVICE.search(one.found):
                    for admin in self.queue if one.what.startswith("queue") else self.logs:
                        admin.execute_command("ACL", "SETUSER", *advice[1].split())
        raise AssertionError(told)

    def refused(self) -> set[str]:
        """What the user was refused since."""
        found: set[str] = set()
        for admin in (*self.logs, *self.queue):
            found |= {entry["object"] for entry in admin.acl_log(1000) if entry["username"] == "some"}
        return found

    def forget(self) -> None:
        for admin in (*self.logs, *self.queue):
            admin.acl_log_reset()


def as_some(url: str) -> str:
    return url.replace("//", "//some:pw@")


@pytest.fixture(params=["one server", "a cluster", "two servers", "a cluster and a server"])
def installation(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Installation]:
    logs, _, queue = request.param.partition(" and ")
    with ExitStack() as opened:
        if logs == "a cluster":
            cluster = opened.enter_context(Cluster(tmp_path, masters=3))
            for node in cluster.nodes:
                node.ask("CONFIG", "SET", "maxmemory", "200mb")
            admins, url = [node.client() for node in cluster.nodes], cluster.url
        else:
            server = opened.enter_context(Server(tmp_path / "logs", *WELL))
            admins, url = [server.client()], server.url
        if not queue and logs != "two servers":
            yield Installation(admins, [], as_some(url))
        else:
            other = opened.enter_context(Server(tmp_path / "queue", *WELL))
            yield Installation(admins, [other.client()], as_some(url), as_some(other.url))


@pytest.mark.timeout(300)
def test_who_follows_the_doctor_has_all_that_is_needed_and_it_is_well(
    installation: Installation, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    installation.follow()
    installation.forget()
    url = installation.settings.pop("REDIS_URL")
    with running(url, upstream, tmp_path, **installation.settings) as stack:
        all_works(stack, upstream)
        assert events(stack, "worker") | events(stack, "api") == set()
        environment = {**stack.environment, "PORT": str(stack.port)}
        command = [sys.executable, "-m", "shared.cli.main", "doctor", "--json"]
        done = subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )
        found = [Finding(**one) for one in json.loads(done.stdout)]
        assert [one for one in found if one.ok is not True and not one.what.startswith("provider")] == []
        assert {"files", "models", "Redis rights"} <= {one.what for one in found}
    assert installation.refused() <= {*ELSEWHERE, "client|setinfo"}  # in which redis-py says its name, if it may
