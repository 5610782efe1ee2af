"""Which providers are on, from which variables, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shared.config.settings import Settings
from shared.errors import BadRequest
from worker.providers.registry import VENDORS, Provider, load_providers, split_model


@pytest.fixture(autouse=True)
def _no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STREAMSPOOL_CONFIG", raising=False)


def load(environ: dict[str, str] | None = None, **providers: dict[str, Any]) -> dict[str, Provider]:
    return load_providers(Settings.model_validate({"providers": providers}), environ or {})


def test_only_fake_without_any_variable() -> None:
    providers = load({"OPENAI_API_KEY": "", "PATH": "x"})
    assert list(providers) == ["fake"]
    assert providers["fake"].model_ids == ("fake/echo", "fake/lorem")


@pytest.mark.parametrize("vendor", VENDORS, ids=lambda vendor: vendor.name)
def test_each_vendor_is_on_by_key_or_url(vendor: Any) -> None:
    for variable in vendor.key_variables if vendor.base_url else ():
        provider = load({variable: " key-1 "})[vendor.name]
        assert (provider.base_url, provider.api_key) == (vendor.base_url, "key-1")
    for variable in vendor.base_variables:
        provider = load({variable: "http://localhost:9/v1/"})[vendor.name]
        version = vendor.version if vendor.local else "/v1"
        assert (provider.base_url, provider.api_key) == (f"http://localhost:9{version}", None)
        assert provider.kind == vendor.kind
    assert vendor.base_url.startswith("https://") or vendor.local or vendor.name == "azure"
    assert len({row.name for row in VENDORS}) == len(VENDORS)


def test_azure_has_no_address_of_its_own() -> None:
    with pytest.raises(ValueError, match="AZURE_OPENAI_ENDPOINT"):
        load({"AZURE_OPENAI_API_KEY": "k"})
    found = load({"AZURE_OPENAI_API_KEY": "k", "AZURE_OPENAI_ENDPOINT": "https://me.openai.azure.com/"})["azure"]
    assert (found.base_url, found.key_header) == ("https://me.openai.azure.com/openai/v1", "api-key")


@pytest.mark.parametrize(
    ("variable", "name", "url"),
    [
        ("ANTHROPIC_BASE_URL", "anthropic", "http://box:1/v1"),
        ("GOOGLE_GEMINI_BASE_URL", "gemini", "http://box:1/v1beta"),
        ("COHERE_BASE_URL", "cohere", "http://box:1/v2"),
        ("OPENAI_BASE_URL", "openai", "http://box:1"),
    ],
)
def test_a_version_is_added_where_the_vendors_own_clients_add_it(variable: str, name: str, url: str) -> None:
    assert load({variable: "http://box:1/"})[name].base_url == url


def test_a_vendor_at_another_address_may_be_anybody() -> None:
    assert load({"OPENAI_API_KEY": "k"})["openai"].limit_field == "max_completion_tokens"
    assert load({"OPENAI_BASE_URL": "http://box/v1"})["openai"].limit_field is None


def test_both_forms_of_the_base_variable() -> None:
    for variable in ("DEEPSEEK_BASE_URL", "DEEPSEEK_API_BASE"):
        assert load({variable: "http://x/v1", "DEEPSEEK_API_KEY": "k"})["deepseek"].base_url == "http://x/v1"


@pytest.mark.parametrize(
    ("value", "url"),
    [
        ("127.0.0.1:11434", "http://127.0.0.1:11434/api"),
        ("http://box:1234", "http://box:1234/api"),
        ("http://box:1234/v1/", "http://box:1234/api"),
        ("https://ollama.example.com", "https://ollama.example.com/api"),
        ("box", "http://box:11434/api"),
        (":9", "http://127.0.0.1:9/api"),
        ("0.0.0.0", "http://127.0.0.1:11434/api"),
        ("[::1]:9", "http://[::1]:9/api"),
    ],
)
def test_ollama_host(value: str, url: str) -> None:
    assert load({"OLLAMA_HOST": value})["ollama"].base_url == url


@pytest.mark.parametrize("value", ["box:99999999", "http://user:pw@box", "box?x=1", "ftp://box", "http://[box"])
def test_ollama_host_that_is_none(value: str) -> None:
    with pytest.raises(ValueError, match="OLLAMA_HOST must be"):
        load({"OLLAMA_HOST": value})


def test_the_toml_adds_and_replaces() -> None:
    local = {"base_url": "http://127.0.0.1:8001/v1/", "models": ["a", "b/c"]}
    proxied = {"base_url": "https://proxy.example.com/v1", "api_key_env": "PROXY_KEY"}
    environ = {"OPENAI_API_KEY": "k1", "PROXY_KEY": "k2"}
    providers = load(environ, box=local, openai=proxied)
    assert providers["box"] == Provider("box", "openai", "http://127.0.0.1:8001/v1", None, ("a", "b/c"))
    assert providers["box"].model_ids == ("box/a", "box/b/c")
    assert (providers["openai"].base_url, providers["openai"].api_key) == (proxied["base_url"], "k2")
    assert load(environ, openai={"base_url": "http://x"})["openai"].api_key is None


def test_everything_wrong_is_said_at_once_and_no_key_is_shown() -> None:
    environ = {"OPENAI_API_KEY": "se cret", "GROQ_BASE_URL": "ftp://x", "OLLAMA_HOST": "user:secret@box"}
    with pytest.raises(ValueError, match=r"(?s)OPENAI_API_KEY.*GROQ_BASE_URL.*OLLAMA_HOST.*box.*BOX_KEY") as caught:
        load(environ, box={"base_url": "http://x", "api_key_env": "BOX_KEY"})
    assert "cret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://", "x", "http://a b", "http://x?y", "http://x#y", "http://x:99999", "http://x\n"]
)
def test_urls_that_are_refused(url: str) -> None:
    if url == "http://x\n":
        assert load({"OPENAI_BASE_URL": url})["openai"].base_url == "http://x"
        return
    with pytest.raises(ValueError, match="OPENAI_BASE_URL must be"):
        load({"OPENAI_BASE_URL": url})


def test_a_key_never_shows() -> None:
    assert "k-secret" not in repr(load({"OPENAI_API_KEY": "k-secret"}))


def test_split_model() -> None:
    assert split_model("openrouter/anthropic/claude") == ("openrouter", "anthropic/claude")
    assert split_model("fake/echo?rate=1/2") == ("fake", "echo?rate=1/2")
    for model in ("", "gpt-4o", "/x", "x/"):
        with pytest.raises(BadRequest):
            split_model(model)
