"""What stands in the settings and does nothing is told, with the name that was probably meant; other people's names are not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shared.config.environ import SettingsInvalid
from shared.config.notices import notices, weak_keys
from shared.config.settings import load_settings


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [*os.environ]:
        if name.startswith("STREAMSPOOL_") or name in ("HOST", "PORT", "LOG_LEVEL", "REDIS_URL"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def said() -> list[str]:
    return notices(load_settings())


def test_nothing_is_said_where_all_is_well(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("streamspool.toml").write_text(
        'retention_s = 5\n[providers.lab]\nbase_url = "http://x/v1"\n[models]\na = "lab/b"\n'
    )
    for name in ("STREAMSPOOL_LEASE_S", "STREAMSPOOL_URL", "STREAMSPOOL_API_KEY", "streamspool_keepalive_s"):
        monkeypatch.setenv(name, "20")
    monkeypatch.setenv("OPENAI_APIKEY", "x")  # not ours to judge
    assert said() == []


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("STREAMSPOOL_RETENTION", "; did you mean STREAMSPOOL_RETENTION_S?"),
        ("STREAMSPOOL_LEASES", "; did you mean STREAMSPOOL_LEASE_S?"),
        ("streamspool_max_body_byte", "; did you mean STREAMSPOOL_MAX_BODY_BYTES?"),
        ("STREAMSPOOL_REDISURL", "; did you mean REDIS_URL?"),
        ("STREAMSPOOL_LOGLEVEL", "; did you mean LOG_LEVEL?"),
        ("STREAMSPOOL_APIKEYS_FILE", "; did you mean STREAMSPOOL_API_KEYS_FILE?"),
        ("STREAMSPOOL_QQQ", ""),
    ],
)
def test_an_unknown_variable_is_told_with_the_one_that_was_meant(
    monkeypatch: pytest.MonkeyPatch, name: str, meant: str
) -> None:
    monkeypatch.setenv(name, "canary")
    assert said() == [f"{name} is no setting and does nothing{meant}"]


@pytest.mark.parametrize("name", ["streamspool_retention_s", "STREAMSPOOL_RETENTION_S", "RETENTION_S", "retention-s"])
def test_a_variables_name_in_the_toml_is_told_with_the_name_it_has_there(name: str) -> None:
    Path("streamspool.toml").write_text(f"{name} = 5\n")
    assert said() == [f"streamspool.toml: {name!r} is no setting and does nothing; did you mean retention_s?"]


@pytest.mark.parametrize("text", ["[providers\n", "a = 1\na = 2\n", "a = \n", '"' * 3])
def test_what_is_no_toml_is_told_with_the_file(text: str) -> None:
    Path("streamspool.toml").write_text(text)
    with pytest.raises(SettingsInvalid, match=r"^streamspool\.toml: .*line"):
        load_settings()


def test_unknown_names_in_dotenv_and_toml_are_told_too() -> None:
    Path(".env").write_text("STREAMSPOOL_LEASE=canary\n")
    Path("streamspool.toml").write_text('retention = 5\n[model]\nsmart = "a/b"\n')
    assert said() == [
        "STREAMSPOOL_LEASE is no setting and does nothing; did you mean STREAMSPOOL_LEASE_S?",
        "streamspool.toml: 'retention' is no setting and does nothing; did you mean retention_s?",
        "streamspool.toml: 'model' is no setting and does nothing; did you mean models?",
    ]


def test_a_providers_key_may_be_called_as_ours_are(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("streamspool.toml").write_text(
        '[providers.lab]\nbase_url = "http://x/v1"\napi_key_env = "STREAMSPOOL_LAB_KEY"\n'
    )
    monkeypatch.setenv("STREAMSPOOL_LAB_KEY", "secret")
    assert said() == []


def test_what_kubernetes_sets_for_a_service_called_streamspool_breaks_and_says_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Service links: for services called streamspool, streamspool-api, streamspool-api-metrics and -worker-metrics."""
    for stem in ("STREAMSPOOL", "STREAMSPOOL_API", "STREAMSPOOL_API_METRICS", "STREAMSPOOL_WORKER_METRICS"):
        monkeypatch.setenv(f"{stem}_PORT", "tcp://10.0.0.7:8000")
        monkeypatch.setenv(f"{stem}_PORT_8000_TCP", "tcp://10.0.0.7:8000")
        monkeypatch.setenv(f"{stem}_PORT_8000_TCP_ADDR", "10.0.0.7")
        monkeypatch.setenv(f"{stem}_PORT_8000_TCP_PORT", "8000")
        monkeypatch.setenv(f"{stem}_PORT_8000_TCP_PROTO", "tcp")
        monkeypatch.setenv(f"{stem}_SERVICE_HOST", "10.0.0.7")
        monkeypatch.setenv(f"{stem}_SERVICE_PORT", "8000")
        monkeypatch.setenv(f"{stem}_SERVICE_PORT_HTTP", "8000")
    settings = load_settings()
    assert (settings.port, settings.api_metrics_port, settings.worker_metrics_port) == (8000, 0, 0)
    assert notices(settings) == []


STRONG = "7d1f0a93c55be286"


def test_a_key_that_can_be_guessed_stops_a_server_that_others_can_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMSPOOL_API_KEYS", f"a:canary,b:{STRONG},c:{'ab' * 16}")
    assert said() == []
    for host in ("127.0.0.1", "::1", "localhost"):
        monkeypatch.setenv("HOST", host)
        assert weak_keys(load_settings()) == "", "servers of developers go on as they are"
    monkeypatch.setenv("HOST", "0.0.0.0")
    a, c = weak_keys(load_settings()).splitlines()
    assert "tenant a " in a
    assert "tenant c " in c
    assert "canary" not in a


def test_a_misspelt_name_in_a_provider_is_refused_with_the_right_one() -> None:
    Path("streamspool.toml").write_text('[providers.lab]\nbase_url = "http://x/v1"\napi_key_evn = "LAB_KEY"\n')
    with pytest.raises(
        ValueError, match=r"\[providers\.lab\] api_key_evn: is no setting of a provider; did you mean api_key_env\?"
    ):
        load_settings()
