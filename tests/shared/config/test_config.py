"""Settings: where values come from, which of two wins, and what is said about wrong ones."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from shared.config.environ import SettingsInvalid, bucket_options, environment
from shared.config.providers import ProviderConfig
from shared.config.settings import Settings, default_data_dir, load_settings
from shared.config.shown import shown as as_shown
from shared.config.tenants import EVERY_TENANT, webhook_keys


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory without any configuration, and an environment without ours."""
    for name in list(os.environ):
        ours = name.startswith(("STREAMSPOOL_", "REDIS_URL", "AWS_"))
        if ours or name in ("HOST", "PORT", "LOG_LEVEL", "XDG_DATA_HOME"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def toml(text: str, name: str = "streamspool.toml") -> Path:
    path = Path(name)
    path.write_text(text)
    return path


def problems() -> str:
    with pytest.raises(ValidationError) as caught:
        Settings()
    return str(caught.value)


def test_there_is_a_default_for_everything() -> None:
    settings = Settings()
    assert settings.redis_url is None
    assert (settings.host, settings.port, settings.log_level) == ("127.0.0.1", 8000, "info")
    assert settings.api_keys == {}
    assert settings.providers == {}
    assert (settings.keepalive_s, settings.hold_headers_s, settings.drain_s) == (15, 5, 30)
    assert settings.max_body_bytes == 50 * 1024 * 1024


def test_every_setting_is_described() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


@pytest.mark.parametrize("value", ["a", "team-a.v2_x", "X" * 32])
def test_a_prefix_of_keys(value: str) -> None:
    assert Settings(prefix=value).prefix == value


@pytest.mark.parametrize("value", ["", "a:b", "a{b}", "a*", "a b", "é", "X" * 33, "arq"])
def test_a_prefix_that_could_meet_other_keys_is_refused(value: str) -> None:
    with pytest.raises(ValidationError, match="1 to 32 letters"):
        Settings(prefix=value)


COMMON = {"redis_url": "REDIS_URL", "host": "HOST", "port": "PORT", "log_level": "LOG_LEVEL"}


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("host", "::1", "::1"),
        ("port", "0", 0),
        ("log_level", "debug", "debug"),
        ("keepalive_s", "0.5", 0.5),
        ("max_attempts", "7", 7),
        ("data_dir", "elsewhere", Path("elsewhere")),
        ("embedded_maxmemory", "512mb", "512mb"),
    ],
)
def test_the_environment_beats_dotenv_beats_toml(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, value: Any
) -> None:
    variable = COMMON.get(name, f"STREAMSPOOL_{name.upper()}")
    default = getattr(Settings(), name)
    assert value != default

    quoted = text if text.replace(".", "").isdigit() else f'"{text}"'
    toml(f"{name} = {quoted}\n")
    assert getattr(Settings(), name) == value

    shown = str(default)
    Path(".env").write_text(f"{variable}={shown}\n")
    assert getattr(Settings(), name) == default

    monkeypatch.setenv(variable, text)
    assert getattr(Settings(), name) == value
    assert getattr(Settings(**{name: default}), name) == default


def test_only_the_common_names_have_no_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEEPALIVE_S", "1")
    monkeypatch.setenv("API_KEYS", "a:b")
    assert Settings().keepalive_s == 15
    assert Settings().api_keys == {}


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("REDIS_URL", "PORT", "STREAMSPOOL_API_KEYS", "STREAMSPOOL_LEASE_S"):
        monkeypatch.setenv(variable, "")
    settings = Settings()
    assert settings.redis_url is None
    assert (settings.port, settings.lease_s, settings.api_keys) == (8000, 10, {})


def test_the_toml_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    toml("keepalive_s = 1\n")
    monkeypatch.setenv("STREAMSPOOL_CONFIG", str(toml("keepalive_s = 2\n", "other.toml")))
    assert Settings().keepalive_s == 2


@pytest.mark.parametrize("named", ["missing.toml", "."])
def test_a_named_toml_must_exist(monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    monkeypatch.setenv("STREAMSPOOL_CONFIG", named)
    with pytest.raises(FileNotFoundError, match="STREAMSPOOL_CONFIG"):
        Settings()


# ---- keys


def told(settings: Settings) -> dict[str, list[str]]:
    return {tenant: [key.get_secret_value() for key in keys] for tenant, keys in settings.api_keys.items()}


@pytest.mark.parametrize("written", ["a:old,b:other,a:new", "a:old new,b:other", " a:old  new , b:other "])
def test_a_tenant_may_have_several_keys_so_that_one_can_follow_another(
    monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    monkeypatch.setenv("STREAMSPOOL_API_KEYS", written)
    assert told(Settings()) == {"a": ["old", "new"], "b": ["other"]}


def test_keys_are_parsed_and_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMSPOOL_API_KEYS", " a:key-1 , b:key:with:colons,, tenant_c.-1:k,")
    monkeypatch.setenv("REDIS_URL", "redis://:canary@localhost")
    settings = Settings()
    assert told(settings) == {"a": ["key-1"], "b": ["key:with:colons"], "tenant_c.-1": ["k"]}
    for shown in (repr(settings), str(settings), settings.model_dump_json()):
        assert "key-1" not in shown
        assert "canary" not in shown


def test_the_server_of_the_queue_is_beside_that_of_the_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://logs")
    assert Settings().control_url is None
    monkeypatch.setenv("STREAMSPOOL_QUEUE_URL", "rediss://me:canary@queue:6380/1")
    settings = Settings()
    assert settings.control_url == "rediss://me:canary@queue:6380/1"
    assert as_shown("queue_url", settings.queue_url) == "rediss://queue:6380/1"
    assert "canary" not in repr(settings)
    monkeypatch.setenv("STREAMSPOOL_QUEUE_URL", "http://me:canary@queue")
    with pytest.raises(SettingsInvalid, match="STREAMSPOOL_QUEUE_URL: It must begin with redis://") as invalid:
        load_settings()
    assert "canary" not in str(invalid.value)
    monkeypatch.setenv("STREAMSPOOL_QUEUE_URL", "redis://queue")
    monkeypatch.delenv("REDIS_URL")
    with pytest.raises(SettingsInvalid, match="STREAMSPOOL_QUEUE_URL: it is beside REDIS_URL, which is not set"):
        load_settings()


def test_keys_may_stand_in_the_toml() -> None:
    toml('[api_keys]\na = "key-1"\nb = ["key-2", "key-3"]\n')
    assert told(Settings()) == {"a": ["key-1"], "b": ["key-2", "key-3"]}


SECRET = "whsec_" + "bm90LXRoaXMtb25lLWl0LWlzLWEtdGVzdC1zZWNyZXQ="
WRONG_KEYS = {
    "no tenant": ("canary", "tenant:key"),
    "no key": ("a:", "tenant:key"),
    "one without a tenant": ("a:canary,b", "tenant:key"),
    "a key twice": ("a:canary,b:canary", "same key"),
    "a key twice for one tenant": ("a:canary,a:canary", "same key"),
    "a blank for a comma": ("a:canary-1 b:canary-2", "comma"),
    "a name and a blank": ("a: ", "tenant:key"),
    "an empty tenant": (":canary", "tenant"),
    "a tenant with a space": ("a b:canary", "tenant 'a b'"),
    "a tenant that would spell a key": ("a}:canary", "tenant"),
    "a long tenant": (f"{'x' * 65}:canary", "tenant"),
    "a key with a tab": ("a:canary\tx", "white space"),
    "a key with an escape": ("a:canary\x1b[0m", "control character"),
}


@pytest.mark.parametrize("name", WRONG_KEYS)
def test_wrong_keys_are_refused_without_being_shown(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    value, hint = WRONG_KEYS[name]
    monkeypatch.setenv("STREAMSPOOL_API_KEYS", value)
    said = problems()
    assert hint in said
    assert "canary" not in said


STRONG = "7d1f0a93c55be286"


@pytest.mark.parametrize(
    ("admins", "hint"),
    [
        ("ops:canary", "can be guessed"),
        (f"ops:{'x' * 40}", "can be guessed"),
        (f"ops:{STRONG},b:{STRONG}", "same key twice"),
    ],
)
def test_an_admins_key_is_strong_wherever_the_server_listens(
    monkeypatch: pytest.MonkeyPatch, admins: str, hint: str
) -> None:
    monkeypatch.setenv("STREAMSPOOL_ADMIN_KEYS", admins)
    said = problems()
    assert "admin_keys" in said
    assert hint in said
    assert "canary" not in said


def test_no_key_is_an_admins_and_a_tenants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMSPOOL_API_KEYS", f"a:{STRONG}")
    assert Settings().keyed
    monkeypatch.setenv("STREAMSPOOL_ADMIN_KEYS", f"ops:{STRONG}")
    assert "one of STREAMSPOOL_API_KEYS" in problems()


# ---- wrong values


def test_all_that_is_wrong_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {
        "PORT": "70000",
        "LOG_LEVEL": "loud",
        "STREAMSPOOL_LEASE_S": "soon",
        "STREAMSPOOL_MAX_ATTEMPTS": "0",
        "STREAMSPOOL_ON_INTERRUPTION": "panic",
        "STREAMSPOOL_EMBEDDED_MAXMEMORY": "lots",
    }
    for name, value in wrong.items():
        monkeypatch.setenv(name, value)
    said = problems()
    for name in wrong:
        assert name.removeprefix("STREAMSPOOL_").lower() in said.lower()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, "-1") for name in ("port", "hold_headers_s", "drain_s", "api_metrics_port", "worker_metrics_port")),
        *((name, "0") for name in ("lease_s", "max_attempts", "retention_s", "keepalive_s", "send_timeout_s")),
        *((name, "0") for name in ("upstream_connect_s", "upstream_first_s", "upstream_idle_s", "generation_s")),
        *((name, "1") for name in ("max_body_bytes", "max_event_bytes")),
        ("worker_concurrency", "0"),
        ("keepalive_s", "nan"),
        ("lease_s", "inf"),
    ],
)
def test_a_value_out_of_range_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(COMMON.get(name, f"STREAMSPOOL_{name.upper()}"), value)
    assert name in problems().lower()


# ---- secrets in files


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "secret"
    file.write_text("redis://:canary@db:6379/0\n")
    return file


@pytest.mark.parametrize("place", ["process", ".env"])
def test_a_file_stands_for_any_variable_that_may_be_secret(
    monkeypatch: pytest.MonkeyPatch, secret: Path, place: str
) -> None:
    keys = secret.with_name("keys")
    keys.write_bytes(b"a:key-1,b:key-2\r\n")
    files = {"REDIS_URL_FILE": str(secret), "STREAMSPOOL_API_KEYS_FILE": str(keys), "OPENAI_API_KEY_FILE": str(secret)}
    if place == "process":
        for name, value in files.items():
            monkeypatch.setenv(name, value)
    else:
        Path(".env").write_text("".join(f"{name}={value}\n" for name, value in files.items()))
    settings = load_settings()
    assert settings.redis_url is not None
    assert settings.redis_url.get_secret_value() == "redis://:canary@db:6379/0"
    assert told(settings) == {"a": ["key-1"], "b": ["key-2"]}
    assert environment()["OPENAI_API_KEY"] == environment().get("OPENAI_API_KEY") == "redis://:canary@db:6379/0"
    assert "canary" not in repr(settings)


def test_the_process_is_over_dotenv_with_files_as_without(monkeypatch: pytest.MonkeyPatch, secret: Path) -> None:
    Path(".env").write_text(f"REDIS_URL=redis://dotenv\nA_KEY=dotenv\nB_KEY_FILE={secret}\n")
    monkeypatch.setenv("REDIS_URL_FILE", str(secret))
    monkeypatch.setenv("A_KEY_FILE", str(secret))
    monkeypatch.setenv("B_KEY", "process")
    settings = load_settings()
    assert settings.redis_url is not None
    assert settings.redis_url.get_secret_value().endswith("@db:6379/0")
    assert environment()["A_KEY"].endswith("@db:6379/0")
    assert environment()["B_KEY"] == "process"


def test_an_empty_variable_beside_its_file_is_none_as_compose_has_it(
    monkeypatch: pytest.MonkeyPatch, secret: Path
) -> None:
    for name in ("REDIS_URL", "A_KEY"):
        monkeypatch.setenv(name, "")
        monkeypatch.setenv(f"{name}_FILE", str(secret))
    monkeypatch.setenv("STREAMSPOOL_API_KEYS_FILE", "")
    assert load_settings().redis_url is not None
    assert environment()["A_KEY"]


@pytest.mark.parametrize("name", ["REDIS_URL", "STREAMSPOOL_WEBHOOK_SECRET", "A_KEY"])
def test_a_variable_and_its_file_are_one_too_many(monkeypatch: pytest.MonkeyPatch, secret: Path, name: str) -> None:
    monkeypatch.setenv(name, "canary")
    monkeypatch.setenv(f"{name}_FILE", str(secret))
    with pytest.raises(SettingsInvalid, match=f"^{name} and {name}_FILE are both set: keep one of them$"):
        (load_settings(), environment()[name])


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", "empty"),
        (b"\n", "empty"),
        (b"\xff\xfecanary", "it is not text"),
        (b"x" * 70_000, "too large"),
    ],
)
@pytest.mark.parametrize("name", ["STREAMSPOOL_API_KEYS", "A_KEY"])
def test_a_file_that_holds_no_secret_is_refused_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, content: bytes | None, hint: str
) -> None:
    file = tmp_path / "canary"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setenv(f"{name}_FILE", str(file))
    with pytest.raises(SettingsInvalid, match=hint) as refused:
        (load_settings(), environment()[name])
    assert str(refused.value).startswith(f"{name}_FILE names a file that ")
    assert "canary" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("STREAMSPOOL_API_KEYS", "a:canary-1\nb:canary-2\n"),
        ("STREAMSPOOL_API_KEYS", "a:canary-1\r\nb:canary-2\r\n"),
        ("STREAMSPOOL_WEBHOOK_SECRET", f"a:{SECRET}\nb:{SECRET}\n"),
        ("STREAMSPOOL_MAX_TOKENS_PER_S", "a:20\nb:30\n"),
    ],
)
def test_a_file_with_a_pair_on_each_line_is_not_taken_for_one_pair(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, content: str
) -> None:
    file = tmp_path / "file"
    file.write_text(content)
    monkeypatch.setenv(f"{name}_FILE", str(file))
    said = problems()
    assert "comma" in said
    assert "canary" not in said
    assert SECRET not in said


def test_a_directory_is_no_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("REDIS_URL_FILE", str(tmp_path))
    with pytest.raises(SettingsInvalid, match="cannot be read: Is a directory"):
        load_settings()


def test_other_peoples_files_are_let_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("SSL_CERT_FILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "HOST_FILE", "LOG_LEVEL_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "missing"))
    assert load_settings().host == "127.0.0.1"
    assert environment()["SSL_CERT_FILE"] == str(tmp_path / "missing")
    assert environment().get("OPENAI_API_KEY") is None


@pytest.mark.parametrize(
    ("url", "variable", "option"),
    [
        ("s3://bucket/x", "AWS_SECRET_ACCESS_KEY", "secret_access_key"),
        ("gs://bucket/x", "GOOGLE_SERVICE_ACCOUNT_KEY", "service_account_key"),
        ("az://container/x", "AZURE_STORAGE_ACCOUNT_KEY", "account_key"),
    ],
)
def test_a_buckets_secrets_may_be_in_files(
    monkeypatch: pytest.MonkeyPatch, secret: Path, url: str, variable: str, option: str
) -> None:
    monkeypatch.setenv(f"{variable}_FILE", str(secret))
    assert bucket_options(url) == {option: "redis://:canary@db:6379/0"}
    assert bucket_options("file:///x") == {}
    secret.unlink()
    monkeypatch.setenv("STREAMSPOOL_FILES_URL", url)
    with pytest.raises(SettingsInvalid, match=f"^{variable}_FILE names a file that cannot be read"):
        load_settings()


# ---- providers


def test_providers_come_from_the_toml() -> None:
    toml('[providers.mine]\nbase_url = "https://example.org/v1/"\napi_key_env = "MY_KEY"\nmodels = ["a", "b"]\n')
    assert Settings().providers == {
        "mine": ProviderConfig(
            kind="openai", base_url="https://example.org/v1", api_key_env="MY_KEY", models=["a", "b"]
        )
    }


@pytest.mark.parametrize(
    ("table", "hint"),
    [
        ('[providers.mine]\nkind = "openai"\n', "base_url"),
        ('[providers.mine]\nbase_url = "ftp://example.org"\n', "http"),
        ('[providers.mine]\nbase_url = "https://example.org"\nkind = "other"\n', "kind"),
        ('[providers.mine]\nbase_url = "https://example.org"\napi_key = "x"\n', "api_key"),
        ('[providers.fake]\nbase_url = "https://example.org"\n', "fake"),
        ('[providers.Mine]\nbase_url = "https://example.org"\n', "Mine"),
        ('[providers."a/b"]\nbase_url = "https://example.org"\n', "a/b"),
    ],
)
def test_a_wrong_provider_is_refused(table: str, hint: str) -> None:
    toml(table)
    assert hint in problems()


def test_a_key_written_into_the_toml_is_not_shown() -> None:
    toml('[providers.mine]\nbase_url = "https://example.org"\napi_key = "canary"\n')
    assert "canary" not in problems()


# ---- the rest


def test_the_environment_is_over_dotenv(monkeypatch: pytest.MonkeyPatch) -> None:
    Path(".env").write_text("A_KEY=file\nB_KEY=file\nEMPTY\n")
    monkeypatch.setenv("A_KEY", "process")
    found = environment()
    assert (found["A_KEY"], found["B_KEY"]) == ("process", "file")
    assert "EMPTY" not in found


def test_the_data_directory_is_where_it_belongs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_data_dir() == tmp_path / ".local" / "share" / "streamspool"
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert default_data_dir() == tmp_path / "data" / "streamspool"
    assert Settings().data_dir == tmp_path / "data" / "streamspool"


def test_a_log_outlives_all_its_attempts() -> None:
    settings = Settings(max_attempts=2, generation_s=100, lease_s=5, retention_s=1000)
    assert settings.log_safety_s == 2 * 110 + 1000


@pytest.mark.parametrize(
    ("value", "paces"),
    [("", (None, None)), ("20", (20, 20)), (" a:5 , 20", (5, 20)), ("a:5,b:2.5", (5, 2.5)), ("a:5", (5, None))],
)
def test_a_pace_for_all_or_for_some(
    value: str, paces: tuple[float | None, float | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STREAMSPOOL_MAX_TOKENS_PER_S", value)
    settings = Settings()
    assert (settings.pace("a"), settings.pace("b")) == paces


@pytest.mark.parametrize("value", ["0", "-1", "a:", "fast", "a:10001", "a:nan"])
def test_paces_that_are_none(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMSPOOL_MAX_TOKENS_PER_S", value)
    with pytest.raises(ValidationError):
        Settings()


class TestWebhooks:
    @pytest.mark.parametrize(
        ("value", "tenants"),
        [
            (SECRET, {EVERY_TENANT: 1}),
            (f"{SECRET} {SECRET}", {EVERY_TENANT: 2}),
            (f"ann:{SECRET}, bob:{SECRET} {SECRET}", {"ann": 1, "bob": 2}),
            (f"ann:{SECRET},{SECRET}", {"ann": 1, EVERY_TENANT: 1}),
        ],
    )
    def test_secrets_are_for_all_or_for_each(self, value: str, tenants: dict[str, int]) -> None:
        settings = Settings(webhook_secret=value)
        assert {name: len(webhook_keys(keys)) for name, keys in settings.webhook_secret.items()} == tenants
        assert webhook_keys(next(iter(settings.webhook_secret.values())))[0] == b"not-this-one-it-is-a-test-secret"
        assert "whsec" not in repr(settings)

    @pytest.mark.parametrize(
        "value",
        [
            "secret-canary",
            "whsec_AAAA",
            "whsec_c2hvcnQ=",
            "whsec_!!!",
            f"ann:{SECRET},ann:{SECRET}",
            "ann:",
            SECRET * 9,
        ],
    )
    def test_wrong_secrets_stop_the_start_and_are_not_shown(self, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
        monkeypatch.setenv("STREAMSPOOL_WEBHOOK_SECRET", value)
        assert value not in problems()

    def test_exceptions_are_looked_at(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert Settings(webhook_allow="a.internal, 10.0.0.0/8").webhook_allow == ["a.internal", "10.0.0.0/8"]
        monkeypatch.setenv("STREAMSPOOL_WEBHOOK_ALLOW", "10.0.0.1/8")
        assert "neither a host name" in problems()

    @pytest.mark.parametrize(
        ("settings", "hint"),
        [
            ({"WEBHOOK_URL": "https://example.com/canary"}, "needs STREAMSPOOL_WEBHOOK_SECRET"),
            ({"WEBHOOK_URL": "https://10.0.0.1/canary", "WEBHOOK_SECRET": SECRET}, "cannot be used"),
            ({"WEBHOOK_URL": "http://example.com/canary", "WEBHOOK_SECRET": SECRET}, "https"),
        ],
    )
    def test_the_servers_own_address_has_to_be_one(
        self, monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], hint: str
    ) -> None:
        for name, value in settings.items():
            monkeypatch.setenv(f"STREAMSPOOL_{name}", value)
        assert hint in problems()
        assert "canary" not in problems()

    def test_it_may_be_an_exception(self) -> None:
        settings = Settings(webhook_secret=SECRET, webhook_allow="10.0.0.1", webhook_url="http://10.0.0.1/x?canary")
        assert settings.webhook_url
        assert settings.webhook_url.get_secret_value() == "http://10.0.0.1/x?canary"
        assert "canary" not in repr(settings)


def test_patterns_of_models_name_the_provider_too(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(models_only="openai/gpt-5*, */*:free", models_without=["*"])
    assert (settings.models_only, settings.models_without) == (["openai/gpt-5*", "*/*:free"], ["*"])
    monkeypatch.setenv("STREAMSPOOL_MODELS_WITHOUT", "gpt-4*")
    assert "models_without" in problems()
    assert "must be a pattern for `provider/model`" in problems()
