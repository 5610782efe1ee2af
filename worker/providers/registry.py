"""Who answers: the providers that are switched on, and under which names.

Hidden here: the environment variables people already have, where each vendor
answers, and how `streamspool.toml` adds to that. A vendor is one row of a table; all of them speak OpenAI's format, so a
new one is a new row and nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from shared.config import ProviderConfig, Settings
from shared.errors import BadRequest

_KEY = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class Provider:
    """Somebody who answers. `base_url` ends with the version and has no closing slash; `models` are without our prefix.

    The key never shows in a repr.
    """

    name: str
    kind: Literal["openai", "fake"]
    base_url: str
    api_key: str | None = field(default=None, repr=False)
    models: tuple[str, ...] = ()

    @property
    def model_ids(self) -> tuple[str, ...]:
        """The models as clients name them: `NAME/MODEL`. Others work too; these are the ones worth listing."""
        return tuple(f"{self.name}/{model}" for model in self.models)


class Vendor(NamedTuple):
    """One row: on when one of its variables is set; the first variable that is set counts.

    `local` marks servers people run themselves: their variable may be a bare `host:port`, and `/v1` is added to it.
    """

    name: str
    base_url: str
    key_variables: tuple[str, ...]
    base_variables: tuple[str, ...]
    local: bool = False


def _vendor(name: str, base_url: str, *key_variables: str) -> Vendor:
    stem = key_variables[0].removesuffix("_KEY").removesuffix("_API").removesuffix("_TOKEN")
    return Vendor(name, base_url, key_variables, (f"{stem}_BASE_URL", f"{stem}_API_BASE"))


VENDORS = (
    _vendor("openai", "https://api.openai.com/v1", "OPENAI_API_KEY"),
    _vendor("deepseek", "https://api.deepseek.com", "DEEPSEEK_API_KEY"),
    _vendor("openrouter", "https://openrouter.ai/api/v1", "OPENROUTER_API_KEY"),
    _vendor("groq", "https://api.groq.com/openai/v1", "GROQ_API_KEY"),
    _vendor("mistral", "https://api.mistral.ai/v1", "MISTRAL_API_KEY"),
    _vendor("xai", "https://api.x.ai/v1", "XAI_API_KEY"),
    _vendor("together", "https://api.together.xyz/v1", "TOGETHER_API_KEY"),
    _vendor("fireworks", "https://api.fireworks.ai/inference/v1", "FIREWORKS_API_KEY"),
    _vendor("cerebras", "https://api.cerebras.ai/v1", "CEREBRAS_API_KEY"),
    _vendor("sambanova", "https://api.sambanova.ai/v1", "SAMBANOVA_API_KEY"),
    _vendor("minimax", "https://api.minimax.io/v1", "MINIMAX_API_KEY"),
    _vendor("zai", "https://api.z.ai/api/paas/v4", "ZAI_API_KEY"),
    _vendor("moonshot", "https://api.moonshot.ai/v1", "MOONSHOT_API_KEY"),
    _vendor("perplexity", "https://api.perplexity.ai", "PERPLEXITY_API_KEY"),
    _vendor("huggingface", "https://router.huggingface.co/v1", "HF_TOKEN"),
    _vendor("gemini", "https://generativelanguage.googleapis.com/v1beta/openai", "GEMINI_API_KEY", "GOOGLE_API_KEY"),
    Vendor(
        "ollama",
        "http://127.0.0.1:11434/v1",
        (),
        ("OLLAMA_HOST", "OLLAMA_BASE_URL", "OLLAMA_API_BASE"),
        local=True,
    ),
    Vendor("lmstudio", "http://127.0.0.1:1234/v1", (), ("LM_STUDIO_API_BASE", "LM_STUDIO_BASE_URL"), local=True),
    Vendor("vllm", "http://127.0.0.1:8000/v1", ("VLLM_API_KEY",), ("VLLM_API_BASE", "VLLM_BASE_URL"), local=True),
)

FAKE = Provider(name="fake", kind="fake", base_url="", models=("echo", "lorem"))
"""Always on, needs no key and no network: see providers/fake.py."""


def load_providers(settings: Settings, environ: Mapping[str, str]) -> dict[str, Provider]:
    """Every provider that is switched on, by name: the vendors, then `[providers.NAME]` over them, then `fake`.

    A table in the toml replaces a vendor of that name whole: its key is sent to the table's URL only if the table
    names the key's variable. Raises ValueError listing everything that is wrong, one line each, by variable name.
    """
    found: dict[str, Provider] = {}
    problems: list[str] = []
    for vendor in VENDORS:
        if vendor.name not in settings.providers:
            try:
                provider = _from_vendor(vendor, environ)
            except ValueError as problem:
                problems.append(str(problem))
            else:
                if provider is not None:
                    found[vendor.name] = provider
    for name, table in settings.providers.items():
        try:
            found[name] = _from_table(name, table, environ)
        except ValueError as problem:
            problems.append(str(problem))
    if problems:
        raise ValueError("\n".join(problems))
    return {**found, FAKE.name: FAKE}


def split_model(model: str) -> tuple[str, str]:
    """`PROVIDER/MODEL` at the first slash: the provider's own name of a model may hold more of them.

    Raises BadRequest if either half is missing.
    """
    provider, _, name = model.partition("/")
    if not provider or not name:
        raise BadRequest("Name the model as PROVIDER/MODEL, for example fake/echo.", param="model")
    return provider, name


def _from_vendor(vendor: Vendor, environ: Mapping[str, str]) -> Provider | None:
    key_variable = next((name for name in vendor.key_variables if environ.get(name)), None)
    base_variable = next((name for name in vendor.base_variables if environ.get(name)), None)
    if key_variable is None and base_variable is None:
        return None
    base_url = vendor.base_url
    if base_variable is not None:
        base_url = environ[base_variable].strip().rstrip("/")
        if vendor.local:
            base_url = _local_url(base_url, vendor.base_url)
        _check_url(base_url, base_variable)
    key = _key(environ, key_variable) if key_variable else None
    return Provider(name=vendor.name, kind="openai", base_url=base_url, api_key=key)


def _from_table(name: str, table: ProviderConfig, environ: Mapping[str, str]) -> Provider:
    _check_url(table.base_url, f"base_url of [providers.{name}]")
    key = None
    if table.api_key_env is not None:
        if not environ.get(table.api_key_env):
            raise ValueError(f"[providers.{name}] takes its key from {table.api_key_env}, which is not set")
        key = _key(environ, table.api_key_env)
    return Provider(name=name, kind=table.kind, base_url=table.base_url, api_key=key, models=tuple(table.models))


def _key(environ: Mapping[str, str], variable: str) -> str:
    key = environ[variable].strip()
    if not _KEY.fullmatch(key):
        raise ValueError(f"{variable} is not a key: it has spaces, line breaks or characters outside ASCII")
    return key


def _local_url(value: str, default: str) -> str:
    """The forms OLLAMA_HOST may have: `host`, `host:port`, `:port`, with or without scheme and `/v1`.

    `0.0.0.0` is what the server listens on; a client means the machine itself. What is none of these comes back as it
    was, for the check to refuse.
    """
    explicit = "://" in value
    try:
        parts = urlsplit(value if explicit else f"http://{value}")
        port = parts.port or (None if explicit else urlsplit(default).port)
    except ValueError:
        return value
    if parts.username or parts.query or parts.fragment:
        return value
    host = parts.hostname or "127.0.0.1"
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    path = parts.path if parts.path.endswith("/v1") else f"{parts.path}/v1"
    return f"{parts.scheme}://{host}{f':{port}' if port else ''}{path}"


def _check_url(url: str, where: str) -> None:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    else:
        usable = usable and not (parts.query or parts.fragment or parts.username) and not re.search(r"\s", url)
    if not usable:
        raise ValueError(f"{where} must be a plain http:// or https:// URL, without user, query or fragment")
