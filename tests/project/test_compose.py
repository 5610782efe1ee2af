"""docker-compose.yml, Dockerfile and .env.example, checked without Docker: the engine is not there where tests run.

compose-spec knows the specification's keys and value formats. It does not look at what a name refers to, nor insist on
strings where YAML has numbers, so those checks are here; `test_a_broken_file_is_refused` shows that each one can fail.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import redis
import yaml
from compose_spec import PyCompose, parse_duration

from shared.cli.embedded import find_binary
from shared.config.environ import BUCKET_VARIABLES, FILE
from shared.config.settings import Settings, load_settings, variable
from worker.providers.registry import VENDORS

ROOT = Path(__file__).parents[2]
DURATIONS = {"interval", "timeout", "start_period", "stop_grace_period"}
SETTINGS = {
    str(field.validation_alias or f"STREAMSPOOL_{name.upper()}") for name, field in Settings.model_fields.items()
}
VENDOR_VARIABLES = {name for vendor in VENDORS for name in (*vendor.key_variables, *vendor.base_variables)}
BUCKETS = {name for names in BUCKET_VARIABLES.values() for name in names}
KEYS = {name for vendor in VENDORS for name in vendor.key_variables}
SECRETS = {variable(name) for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)}
TRACES = re.compile("OTEL_[A-Z_]+")
"""OpenTelemetry's own, which its SDK reads."""
LIMITS = {"APP_MEMORY", "VALKEY_MEMORY"}
OWN = LIMITS | {"APIS", "OPENWEBUI_KEYS", "SITE"}
"""Are compose's own: no process of ours reads them."""
WITH_IT = ("grafana", "openwebui")
"""What others have made, and this machine may look at."""
AS_ROOT = "openwebui"
"""Its image is made to run as root, and to write beside its program."""


def interpolate(value: Any, environment: dict[str, str]) -> Any:
    """What compose makes of `${NAME:-default}` and `${NAME:?message}`; any other form is refused."""
    if isinstance(value, dict):
        return {key: interpolate(item, environment) for key, item in value.items()}
    if isinstance(value, list):
        return [interpolate(item, environment) for item in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        name, operator, operand = match.groups()
        if environment.get(name):
            return environment[name]
        if operator == ":?":
            raise KeyError(f"{name}: {operand}")
        return operand

    replaced = re.sub(r"(?<!\$)\$\{([A-Z_]+)(:[-?])([^}]*)\}", replace, value)
    assert "$" not in replaced.replace("$$", ""), f"{value!r} is a form of interpolation this test does not know"
    return replaced.replace("$$", "$")


def load(**environment: str) -> dict[str, Any]:
    text = (ROOT / "docker-compose.yml").read_text("utf-8")
    found: dict[str, Any] = interpolate(yaml.safe_load(text), environment)
    return found


def base(names: Iterable[str]) -> set[str]:
    """NAME for NAME_FILE."""
    return {name.removesuffix(FILE) for name in names}


def check(compose: dict[str, Any]) -> None:
    """Raises when the file does not follow the compose specification."""
    PyCompose.from_json(json.dumps(compose)).validate()
    for name, service in compose["services"].items():
        assert isinstance(service["image"], str), f"{name}: image"
        assert set(service.get("depends_on", {})) <= set(compose["services"]), f"{name}: depends_on"
        named = {volume.partition(":")[0] for volume in service.get("volumes", [])}
        assert {one for one in named if not one.startswith("./")} <= set(compose["volumes"]), f"{name}: volumes"
        assert set(service.get("secrets", [])) <= set(compose["secrets"]), f"{name}: secrets"
        for key, value in {**service, **service.get("healthcheck", {})}.items():
            assert key not in DURATIONS or parse_duration(value), f"{name}: {key}"


def test_it_follows_the_specification() -> None:
    check(load())


@pytest.mark.parametrize(
    "breaks",
    [
        pytest.param(lambda s: s["api"].update(stop_grace_perid="40s"), id="unknown-key"),
        pytest.param(lambda s: s["api"].update(stop_grace_period="soon"), id="not-a-duration"),
        pytest.param(lambda s: s["valkey"]["healthcheck"].update(interval=5), id="number-for-a-duration"),
        pytest.param(lambda s: s["valkey"].update(image=9), id="number-for-an-image"),
        pytest.param(lambda s: s["valkey"]["healthcheck"].update(test=["CMDX", "true"]), id="unknown-test-kind"),
        pytest.param(lambda s: s["api"]["depends_on"]["valkey"].update(condition="healthy"), id="unknown-condition"),
        pytest.param(
            lambda s: s["api"]["depends_on"].update(postgres={"condition": "service_started"}), id="no-service"
        ),
        pytest.param(lambda s: s["valkey"].update(volumes=["elsewhere:/data"]), id="no-volume"),
        pytest.param(lambda s: s["api"].update(secrets=["none"]), id="no-secret"),
        pytest.param(lambda s: s["api"].update(mem_limit="much"), id="no-size"),
        pytest.param(lambda s: s["api"].update(ports=["127.0.0.1:8000:80000"]), id="no-port"),
        pytest.param(lambda s: s["worker"].update(cap_drop="ALL"), id="string-for-a-list"),
    ],
)
def test_a_broken_file_is_refused(breaks: Callable[[dict[str, Any]], None]) -> None:
    compose = json.loads(json.dumps(load()))  # anchors are shared objects in YAML; a copy through JSON has none
    breaks(compose["services"])
    with pytest.raises((ValueError, TypeError, AssertionError)):
        check(compose)


def test_every_variable_is_a_setting_and_every_value_is_accepted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "redis_url").write_text("redis://:secret@valkey:6379/0\n")
    (tmp_path / "api_keys").write_text("local:secret\n")
    for service in ("api", "worker"):
        environment = load()["services"][service]["environment"]
        ours = {name for name in base(environment) if not TRACES.fullmatch(name)}
        assert ours <= SETTINGS | VENDOR_VARIABLES | BUCKETS, service
        with monkeypatch.context() as patch:
            for name in {*SETTINGS, *(name + FILE for name in SETTINGS)}:
                patch.delenv(name, raising=False)
            for name, value in environment.items():
                if value is not None:
                    patch.setenv(name, str(value).replace("/run/secrets", str(tmp_path)))
            settings = load_settings()
        assert settings.redis_url is not None
        assert settings.redis_url.get_secret_value() == "redis://:secret@valkey:6379/0"
        assert set(settings.api_keys) == ({"local"} if service == "api" else set())


def test_variables_outside_the_containers_are_settings_too() -> None:
    text = (ROOT / "docker-compose.yml").read_text("utf-8")
    names = set(re.findall(r"(?<!\$)\$\{([A-Z_]+)", text))
    assert names <= SETTINGS | VENDOR_VARIABLES | OWN


def test_every_setting_reaches_the_containers() -> None:
    """One that is missing here is read from .env by nobody: the default holds, and nothing says so."""
    services = load()["services"]
    given = {service: base(services[service]["environment"]) for service in ("api", "worker")}
    for_whom = {name: {service for service, names in given.items() if name in names} for name in SETTINGS}
    assert {name for name, whom in for_whom.items() if not whom} == {
        "STREAMSPOOL_EMBEDDED_MAXMEMORY",  # the service valkey has it
        "STREAMSPOOL_LOCAL_MODEL",  # not in the image
    }
    # What only one of the two knew would make it blind to what the other one stores.
    for name in ("STREAMSPOOL_PREFIX", "STREAMSPOOL_CONFIRM", "STREAMSPOOL_FILES_URL", "STREAMSPOOL_MODELS"):
        assert for_whom[name] == {"api", "worker"}, name


def test_what_asks_for_traces_reaches_both_ends_where_it_is_set() -> None:
    """By no name with a default: an empty one is not the same to OpenTelemetry as one that is not there."""
    services = load()["services"]
    named = {
        service: {name: value for name, value in services[service]["environment"].items() if TRACES.fullmatch(name)}
        for service in ("api", "worker")
    }
    assert named["api"] == named["worker"]
    assert set(named["api"].values()) == {None}
    page = (ROOT / "docs/OPERATIONS.md").read_text("utf-8")
    traces = page.partition("\n## Traces\n")[2].partition("\n## ")[0]
    documented = set(re.findall(r"\bOTEL_[A-Z_]+[A-Z]\b", traces))
    assert documented - set(named["api"]) == {"OTEL_EXPORTER_OTLP_PROTOCOL"}  # which has one value


def test_every_secret_may_be_a_file_and_those_it_needs_are() -> None:
    compose = load()
    services = compose["services"]
    for name, service in services.items():
        environment = service.get("environment", {})
        secret = set(environment) & (KEYS | SECRETS | {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"})
        assert {one for one in secret if one + FILE not in environment} == set(), name
        mounted = {f"/run/secrets/{one}" for one in service.get("secrets", [])}
        assert {value for key, value in environment.items() if key.endswith(FILE) and value} <= mounted
        assert not [
            value for value in environment.values() if value and "secret" in str(value) and value not in mounted
        ]
    assert services["api"]["environment"]["STREAMSPOOL_API_KEYS_FILE"] == "/run/secrets/api_keys"
    for service in ("api", "worker"):
        assert "REDIS_URL" not in services[service]["environment"]
        assert services[service]["environment"]["REDIS_URL_FILE"] == "/run/secrets/redis_url"
    assert {str(one["file"]).partition("secrets/")[0] for one in compose["secrets"].values()} == {"./"}
    assert "secrets/" in (ROOT / ".gitignore").read_text("utf-8").splitlines()


def test_nothing_takes_all_of_a_machine() -> None:
    for name, service in load()["services"].items():
        assert 16 <= service["pids_limit"] <= 512, name
        assert re.fullmatch(r"\d+[mg]", service["mem_limit"]), name
    assert load(VALKEY_MEMORY="5g")["services"]["valkey"]["mem_limit"] == "5g"
    assert load(APP_MEMORY="5g")["services"]["worker"]["mem_limit"] == "5g"


def test_valkey_asks_for_the_password_that_is_in_the_address(tmp_path: Path) -> None:
    """Its command, run as it stands but for where things are."""
    valkey = load()["services"]["valkey"]
    (tmp_path / "redis_url").write_text("redis://:5ecret@valkey:6379/0\n")
    shell, option, script = valkey["command"]
    address = tmp_path / "s"
    here = f"valkey-server - --port 0 --unixsocket {address} --dir {tmp_path}"
    script = script.replace("valkey-server -", here, 1).replace("/run/secrets", str(tmp_path))
    path = f"{find_binary().parent}:{os.environ['PATH']}"
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen([shell, option, script], env={"PATH": path}, stdout=log, stderr=log)
    try:
        while not _listens(address):
            assert server.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.01)
        with redis.Redis(unix_socket_path=str(address)) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()
        with redis.Redis(unix_socket_path=str(address), password="5ecret") as client:
            assert client.ping()
            assert client.config_get("maxmemory*", "append*")["maxmemory"] == str(1024**3)
            settings = client.config_get("*")
        assert (settings["appendonly"], settings["appendfsync"]) == ("yes", "everysec")
        assert settings["maxmemory-policy"] == "noeviction"
        listed = subprocess.run(["ps", "-o", "args=", "-p", str(server.pid)], capture_output=True, check=False).stdout
        assert b"5ecret" not in listed
    finally:
        server.kill()
        server.wait()


def test_only_the_worker_holds_provider_keys() -> None:
    for name, service in load()["services"].items():
        keys = VENDOR_VARIABLES & base(service.get("environment", {}))
        assert bool(keys) is (name == "worker"), f"{name}: {keys}"
        # One for all would hand every key to this service. What a worker has there is its own, and need not be there.
        assert service.get("env_file") == (
            [{"path": "./secrets/worker.env", "required": False}] if name == "worker" else None
        )


def test_docker_waits_longer_than_a_drain_takes() -> None:
    for name in ("api", "worker"):
        service = load()["services"][name]
        drain = float(service["environment"]["STREAMSPOOL_DRAIN_S"])
        assert drain == Settings.model_fields["drain_s"].default
        assert parse_duration(service["stop_grace_period"]) > drain


@pytest.mark.parametrize("scaled", ["api", "worker"])
def test_any_number_of_them_can_run(scaled: str) -> None:
    assert not {"container_name", "ports", "hostname"} & set(load()["services"][scaled])


def test_only_what_stands_in_front_is_published_and_to_others_only_if_asked_for() -> None:
    services = load()["services"]
    assert {name for name, service in services.items() if "ports" in service} == {"front", "proxy", *WITH_IT}
    for name in WITH_IT:
        assert all(port.startswith("127.0.0.1:") for port in services[name]["ports"]), name
    assert services["front"]["ports"] == ["127.0.0.1:8000:8080"]
    assert load(PORT="9000")["services"]["front"]["ports"] == ["127.0.0.1:9000:8080"]
    assert {name: service["profiles"] for name, service in services.items() if "profiles" in service} == {
        "proxy": ["proxy"],
        "prometheus": ["monitoring"],
        "grafana": ["monitoring"],
        "openwebui": ["openwebui"],
        **dict.fromkeys(("cluster-1", "cluster-2", "cluster-3", "cluster-join"), ["cluster"]),
    }
    assert all("network_mode" not in service for service in services.values())


def test_what_stands_in_front_is_told_to_stop_together_with_the_apis() -> None:
    """One that depends on them is stopped before them: what they say last would reach nobody."""
    services = load()["services"]
    for name in ("front", "proxy"):
        assert "depends_on" not in services[name]
        assert parse_duration(services[name]["stop_grace_period"]) >= parse_duration(
            services["api"]["stop_grace_period"]
        )


def test_a_toml_of_ones_own_is_where_both_look(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    services = load()["services"]
    for name in ("api", "worker"):
        assert services[name]["working_dir"] == "/config"
        assert "./config:/config:ro" in services[name]["volumes"]
    # So is its default, and a variable that is empty, as all those are that nobody sets, takes nothing from it.
    monkeypatch.chdir(tmp_path)
    (tmp_path / "streamspool.toml").write_text(
        '[models]\nsmart = ["lab/x"]\n[providers.lab]\nbase_url = "http://lab/v1"\n'
    )
    for name, value in services["worker"]["environment"].items():
        if value is not None and not name.endswith(FILE):
            monkeypatch.setenv(name, str(value))
    settings = load_settings()
    assert (settings.models, list(settings.providers)) == ({"smart": ["lab/x"]}, ["lab"])


def test_workers_are_well_as_long_as_they_are_heard() -> None:
    worker = load()["services"]["worker"]
    port = worker["environment"]["STREAMSPOOL_WORKER_METRICS_PORT"]
    assert f"http://127.0.0.1:{port}/readyz" in worker["healthcheck"]["test"][-1]
    assert (
        worker["environment"]["HOST"] == "0.0.0.0"
    )  # where Prometheus reaches it, and nobody from outside: it has no ports


def test_monitoring_finds_all_there_are_and_has_what_is_in_deploy() -> None:
    services = load()["services"]
    scrape = yaml.safe_load((ROOT / "deploy/compose/prometheus.yaml").read_text("utf-8"))
    (job,) = scrape["scrape_configs"]
    found = {tuple(one["names"]): one["port"] for one in job["dns_sd_configs"]}
    assert found == {
        ("api",): services["api"]["environment"]["PORT"],
        ("worker",): services["worker"]["environment"]["STREAMSPOOL_WORKER_METRICS_PORT"],
    }
    alone = yaml.safe_load((ROOT / "deploy/prometheus.yaml").read_text("utf-8"))
    assert job["job_name"] in {one["job_name"] for one in alone["scrape_configs"]}  # alerts go by it
    mounted = [volume for name in ("prometheus", "grafana") for volume in services[name]["volumes"]]
    sources = [volume.partition(":")[0] for volume in mounted if volume.startswith("./")]
    assert len(sources) == 5
    assert [one for one in sources if not (ROOT / one).exists()] == []
    assert any(volume.partition(":")[2] == f"{scrape['rule_files'][0]}:ro" for volume in mounted)
    provider = yaml.safe_load((ROOT / "deploy/compose/grafana/dashboards.yaml").read_text("utf-8"))["providers"][0]
    assert f"./deploy/grafana:{provider['options']['path']}:ro" in services["grafana"]["volumes"]
    (source,) = yaml.safe_load((ROOT / "deploy/compose/grafana/sources.yaml").read_text("utf-8"))["datasources"]
    assert source["url"] == "http://prometheus:9090"


def test_the_chat_in_the_browser_asks_what_stands_in_front() -> None:
    services = load(OPENWEBUI_KEYS="k")["services"]
    assert services["openwebui"]["environment"]["OPENAI_API_BASE_URLS"] == "http://front:8080/v1"
    assert services["front"]["environment"]["SITE"] == ":8080"
    assert services["openwebui"]["environment"]["OPENAI_API_KEYS"] == "k"


def test_nothing_runs_as_root_or_can_become_it() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8")
    last_stage = dockerfile.rpartition("\nFROM ")[2]
    assert re.findall(r"^USER (.+)$", last_stage, re.M)[-1:] == ["10001"]
    for name, service in load()["services"].items():
        assert service.get("user", "10001") not in {"root", "0"}, name
        assert name == AS_ROOT or "build" in service or "user" in service, f"{name}: an image of others runs as whom?"
        if isinstance(service.get("build"), dict):
            assert service["build"]["dockerfile_inline"].splitlines()[-1] == "USER 10001", name
        assert service["cap_drop"] == ["ALL"], name
        assert service.get("cap_add", []) == (["NET_BIND_SERVICE"] if name in ("front", "proxy") else []), name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["read_only"] is (name != AS_ROOT), name
        assert service["init"] is True, name


def test_valkey_keeps_what_it_was_given() -> None:
    valkey = load()["services"]["valkey"]
    assert re.fullmatch(r"valkey/valkey:\d+(\.\d+)*(-\w+)?", valkey["image"])
    options = dict(re.findall(r"(--[a-z-]+) (\S+)", valkey["command"][-1]))
    assert options["--appendonly"] == "yes"
    assert options["--maxmemory-policy"] == "noeviction"
    assert options["--maxmemory"] == Settings.model_fields["embedded_maxmemory"].default
    assert any(volume.endswith(":/data") for volume in valkey["volumes"])


def test_the_image_holds_the_locked_packages_and_no_test_tools() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text("utf-8")
    assert "--no-deps --only-binary :all: --require-hashes -r requirements.lock" in dockerfile
    assert "requirements-dev" not in dockerfile
    minors = {int(minor) for minor in re.findall(r"^FROM python:3\.(\d+)-slim", dockerfile, re.M)}
    assert len(minors) == 1
    assert minors.pop() >= 11
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")}
    copied = {word for line in re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.M) for word in line.split()}
    assert copied == allowed


class TestEnvExample:
    LINE = re.compile(r"^#([A-Z][A-Z0-9_]*)=(.*)$", re.M)

    def example(self) -> dict[str, str]:
        return dict(self.LINE.findall((ROOT / ".env.example").read_text("utf-8")))

    def test_it_changes_nothing_as_it_is(self) -> None:
        assert all(line.startswith("#") or not line for line in (ROOT / ".env.example").read_text("utf-8").splitlines())

    def test_it_names_every_setting_once_and_nothing_else(self) -> None:
        names = [name for name, _ in self.LINE.findall((ROOT / ".env.example").read_text("utf-8"))]
        assert len(names) == len(set(names))
        assert set(names) - VENDOR_VARIABLES == SETTINGS | {"STREAMSPOOL_CONFIG"}

    def test_it_can_switch_on_every_provider_here_and_in_compose(self) -> None:
        named = set(self.example()) & VENDOR_VARIABLES
        for vendor in VENDORS:
            switches = vendor.base_variables if vendor.local else vendor.key_variables
            # `up` sets those of its own model, and nobody else has to.
            assert named & set(switches) or vendor.name == "local", vendor.name
        assert named == base(load()["services"]["worker"]["environment"]) & VENDOR_VARIABLES

    def test_it_shows_the_defaults(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.chdir(tmp_path)
        for name in SETTINGS | {"STREAMSPOOL_CONFIG"}:
            monkeypatch.delenv(name, raising=False)
        defaults = Settings()
        (tmp_path / ".env").write_text("\n".join(f"{name}={value}" for name, value in self.example().items()))
        assert Settings() == defaults
        (tmp_path / ".env").write_text("PORT=1")
        assert Settings() != defaults, "the file is not read at all"


def _listens(path: Path) -> bool:
    """A socket's file is there a moment before it can be connected to."""
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(str(path)) == 0
