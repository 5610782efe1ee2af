"""Who answers: the providers that are switched on, and under which names.

Hidden here: the environment variables people already have, where each vendor answers, in which wire format, with which
quirks, and how `streamspool.toml` adds to that. A vendor is one row of a table, and a new one is a new row and nothing
else. A new wire format is a file in formats/ and a row in shared/config/formats.py.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from shared.config.providers import BASE_URL_VARIABLE, KEY_VARIABLE, MODEL, ProviderConfig
from shared.config.settings import Settings
from shared.errors import BadRequest
from worker.providers.accepts import (
    CEREBRAS,
    DEEPSEEK,
    FORMATS,
    GROQ,
    MISTRAL,
    MOONSHOT,
    OPENAI,
    Accepts,
)

_KEY = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, slots=True)
class Provider:
    """What answers requests. `base_url` ends with the version and has no closing slash; `models` are without our prefix.

    The key never shows in a repr. `limit_field` is the only name of the token limit this provider knows, None where it
    knows both; with `think_tags`, what stands in `<think>…</think>` at the start of an answer is reasoning; `prefill`:
    an assistant message at the end of a request is gone on with. `query` is added to every URL.
    """

    name: str
    kind: str
    """A wire format (shared/config/formats.py), or `fake`."""
    base_url: str
    api_key: str | None = field(default=None, repr=False)
    models: tuple[str, ...] = ()
    limit_field: Literal["max_tokens", "max_completion_tokens"] | None = None
    think_tags: bool = False
    prefill: bool = False
    key_header: str = "authorization"
    query: str = ""
    accepts: Accepts = Accepts()
    """Where what it takes in a request differs from others'."""

    @property
    def model_ids(self) -> tuple[str, ...]:
        """The models as clients name them: `NAME/MODEL`. Others work too; these are the ones worth listing."""
        return tuple(f"{self.name}/{model}" for model in self.models)


class Vendor(NamedTuple):
    """One row: on when one of its variables is set; the first variable that is set counts.

    `local` marks servers people run themselves: their variable may be a bare `host:port`, and `version` (the path that
    the wire format needs) is added to it. The columns after that are those of `Provider`.
    """

    name: str
    base_url: str
    key_variables: tuple[str, ...]
    bases: tuple[str, ...] = ()
    kind: str = "openai"
    local: bool = False
    version: str = "/v1"
    limit_field: Literal["max_tokens", "max_completion_tokens"] | None = None
    think_tags: bool = False
    prefill: bool = False
    key_header: str = "authorization"
    query: str = ""
    models: tuple[str, ...] = ()
    accepts: Accepts | None = None
    """What it takes in a request; None: what everyone with its wire format does. It holds wherever the vendor answers."""

    @property
    def base_variables(self) -> tuple[str, ...]:
        """The variables that move it elsewhere: where none are given, the key's name with `_BASE_URL` or `_API_BASE`."""
        if self.bases:
            return self.bases
        stem = self.key_variables[0].removesuffix("_KEY").removesuffix("_API").removesuffix("_TOKEN")
        return (f"{stem}_BASE_URL", f"{stem}_API_BASE")


VENDORS = (
    Vendor(
        "openai", "https://api.openai.com/v1", ("OPENAI_API_KEY",), limit_field="max_completion_tokens", accepts=OPENAI
    ),
    # Azure's v1 API: base URL `https://RESOURCE.openai.azure.com/openai/v1`, model = deployment; the older, dated API
    # wants `?api-version=` and a path by deployment: AZURE_OPENAI_ENDPOINT alone means the v1 API.
    Vendor(
        "azure",
        "",
        ("AZURE_OPENAI_API_KEY", "AZURE_API_KEY"),
        ("AZURE_OPENAI_BASE_URL", "AZURE_OPENAI_ENDPOINT", "AZURE_API_BASE"),
        limit_field="max_completion_tokens",
        key_header="api-key",
        accepts=OPENAI,
    ),
    # No prefill: models from Claude 4.6 on refuse an assistant's message at the end of a request.
    Vendor("anthropic", "https://api.anthropic.com/v1", ("ANTHROPIC_API_KEY",), kind="anthropic"),
    Vendor(
        "gemini",
        "https://generativelanguage.googleapis.com/v1beta",
        ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
        ("GEMINI_BASE_URL", "GEMINI_API_BASE", "GOOGLE_GEMINI_BASE_URL"),
        kind="gemini",
    ),
    Vendor("cohere", "https://api.cohere.com/v2", ("COHERE_API_KEY", "CO_API_KEY"), kind="cohere"),
    Vendor("deepseek", "https://api.deepseek.com", ("DEEPSEEK_API_KEY",), limit_field="max_tokens", accepts=DEEPSEEK),
    Vendor(
        "openrouter",
        "https://openrouter.ai/api/v1",
        ("OPENROUTER_API_KEY",),
        limit_field="max_tokens",
        prefill=True,
        accepts=Accepts(
            message_fields=("annotations", "images"), reasoning=("reasoning", "reasoning_details"), developer=True
        ),
    ),
    Vendor("groq", "https://api.groq.com/openai/v1", ("GROQ_API_KEY",), think_tags=True, prefill=True, accepts=GROQ),
    Vendor("mistral", "https://api.mistral.ai/v1", ("MISTRAL_API_KEY",), limit_field="max_tokens", accepts=MISTRAL),
    Vendor("xai", "https://api.x.ai/v1", ("XAI_API_KEY",)),
    Vendor("together", "https://api.together.xyz/v1", ("TOGETHER_API_KEY",), limit_field="max_tokens", think_tags=True),
    Vendor(
        "fireworks",
        "https://api.fireworks.ai/inference/v1",
        ("FIREWORKS_API_KEY",),
        limit_field="max_tokens",
        think_tags=True,
    ),
    Vendor("cerebras", "https://api.cerebras.ai/v1", ("CEREBRAS_API_KEY",), think_tags=True, accepts=CEREBRAS),
    Vendor(
        "sambanova",
        "https://api.sambanova.ai/v1",
        ("SAMBANOVA_API_KEY",),
        think_tags=True,
        accepts=Accepts(text_parts=False),
    ),
    Vendor("minimax", "https://api.minimax.io/v1", ("MINIMAX_API_KEY",), think_tags=True),
    Vendor(
        "perplexity",
        "https://api.perplexity.ai",
        ("PERPLEXITY_API_KEY",),
        limit_field="max_tokens",
        think_tags=True,
        accepts=Accepts(reasoning=()),
    ),
    Vendor("moonshot", "https://api.moonshot.ai/v1", ("MOONSHOT_API_KEY",), limit_field="max_tokens", accepts=MOONSHOT),
    Vendor(
        "zai",
        "https://api.z.ai/api/paas/v4",
        ("ZAI_API_KEY",),
        limit_field="max_tokens",
        accepts=Accepts(reasoning=("reasoning_content",)),
    ),
    Vendor(
        "zhipu",
        "https://open.bigmodel.cn/api/paas/v4",
        ("ZHIPU_API_KEY", "ZHIPUAI_API_KEY"),
        limit_field="max_tokens",
        accepts=Accepts(reasoning=("reasoning_content",)),
    ),
    Vendor(
        "alibaba",
        "https://dashscope-intl.aliyuncs.com/compatible-mode/v1",
        ("DASHSCOPE_API_KEY", "ALIBABA_API_KEY"),
        limit_field="max_tokens",
        accepts=Accepts(reasoning=("reasoning_content",)),
    ),
    Vendor(
        "huggingface",
        "https://router.huggingface.co/v1",
        ("HF_TOKEN",),
        limit_field="max_tokens",
        think_tags=True,
        accepts=Accepts(reasoning=(), text_parts=False),
    ),
    Vendor(
        "ollama",
        "http://127.0.0.1:11434/api",
        (),
        ("OLLAMA_HOST", "OLLAMA_BASE_URL", "OLLAMA_API_BASE"),
        kind="ollama",
        local=True,
        version="/api",
        think_tags=True,
        prefill=True,
    ),
    Vendor(
        "lmstudio",
        "http://127.0.0.1:1234/v1",
        (),
        ("LM_STUDIO_API_BASE", "LM_STUDIO_BASE_URL"),
        local=True,
        limit_field="max_tokens",
        think_tags=True,
        accepts=Accepts(unlimited=True),
    ),
    Vendor(
        "llamacpp",
        "http://127.0.0.1:8080/v1",
        (),
        ("LLAMACPP_BASE_URL", "LLAMA_API_BASE"),
        local=True,
        limit_field="max_tokens",
        prefill=True,
        accepts=Accepts(unlimited=True),
    ),
    Vendor(
        "vllm",
        "http://127.0.0.1:8000/v1",
        ("VLLM_API_KEY",),
        ("VLLM_API_BASE", "VLLM_BASE_URL"),
        local=True,
        think_tags=True,
    ),
    # llama.cpp as the supervisor runs it, which sets both variables: `streamspool up --local`.
    Vendor(
        "local",
        "",
        (KEY_VARIABLE,),
        (BASE_URL_VARIABLE,),
        local=True,
        limit_field="max_tokens",
        prefill=True,
        models=(MODEL,),
        accepts=Accepts(unlimited=True),
    ),
)

FAKE = Provider(name="fake", kind="fake", base_url="", models=("echo", "lorem"))
"""Always on, needs no key and no network: see providers/fake.py."""


def load_providers(settings: Settings, environ: Mapping[str, str], *, off: Collection[str] = ()) -> dict[str, Provider]:
    """Every provider that is switched on, by name: the vendors, then `[providers.NAME]` over them, then `fake`.

    A table in the toml replaces a vendor of that name, but for what it accepts: its key is sent to the table's URL only if
    the table names the key's variable. Tables named in `off` are left out, and with them the vendors they replace. Raises
    ValueError listing everything that is wrong, one line each, by variable name.
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
        if name in off:
            continue
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
            base_url = _local_url(base_url, vendor)
        _check_url(base_url, base_variable)
        base_url = _versioned(base_url, vendor)
    elif not base_url:
        raise ValueError(
            f"{key_variable} is set, but none of {', '.join(vendor.base_variables)} says where {vendor.name} answers"
        )
    key = _key(environ, key_variable) if key_variable else None
    # What OpenAI's clients call OPENAI_BASE_URL may be any compatible server's: the client's own word is passed on.
    moved = vendor.name == "openai" and base_url != vendor.base_url
    return Provider(
        name=vendor.name,
        kind=vendor.kind,
        base_url=base_url,
        api_key=key,
        models=vendor.models,
        limit_field=None if moved else vendor.limit_field,
        think_tags=vendor.think_tags,
        prefill=vendor.prefill,
        key_header=vendor.key_header,
        query=vendor.query,
        accepts=vendor.accepts or FORMATS[vendor.kind],
    )


def _versioned(base_url: str, vendor: Vendor) -> str:
    """The variables of some vendors' own SDKs hold no version: it is added where the address is nothing but a host."""
    if vendor.kind == "openai" and vendor.name != "azure":
        return base_url
    if vendor.name == "azure":
        return base_url if urlsplit(base_url).path.strip("/") else f"{base_url}/openai/v1"
    version = urlsplit(vendor.base_url).path
    return base_url if urlsplit(base_url).path.strip("/") else f"{base_url}{version}"


def _from_table(name: str, table: ProviderConfig, environ: Mapping[str, str]) -> Provider:
    _check_url(table.base_url, f"base_url of [providers.{name}]")
    key = None
    if table.api_key_env is not None:
        if not environ.get(table.api_key_env):
            raise ValueError(f"[providers.{name}] takes its key from {table.api_key_env}, which is not set")
        key = _key(environ, table.api_key_env)
    vendors = {vendor.name: vendor for vendor in VENDORS}
    vendor = vendors.get(table.vendor or name)
    if table.vendor and vendor is None:
        raise ValueError(f"vendor of [providers.{name}] must be one of {', '.join(sorted(vendors))}")
    accepts = (vendor.accepts if vendor and vendor.kind == table.kind else None) or FORMATS[table.kind]
    wanted = (*accepts.message_fields, *table.message_fields)
    return Provider(
        name=name,
        kind=table.kind,
        base_url=table.base_url,
        api_key=key,
        models=tuple(table.models),
        limit_field=table.limit_field,
        think_tags=table.think_tags,
        prefill=table.prefill,
        accepts=replace(accepts, message_fields=wanted),
    )


def _key(environ: Mapping[str, str], variable: str) -> str:
    key = environ[variable].strip()
    if not _KEY.fullmatch(key):
        raise ValueError(f"{variable} is not a key: it has spaces, line breaks or characters outside ASCII")
    return key


def _local_url(value: str, vendor: Vendor) -> str:
    """The forms OLLAMA_HOST may have: `host`, `host:port`, `:port`, with or without scheme and version.

    `0.0.0.0` is what the server listens on; a client means the machine itself. What is none of these comes back as it
    was, for the check to refuse.
    """
    explicit = "://" in value
    try:
        parts = urlsplit(value if explicit else f"http://{value}")
        port = parts.port or (None if explicit else urlsplit(vendor.base_url).port)
    except ValueError:
        return value
    if parts.username or parts.query or parts.fragment:
        return value
    host = parts.hostname or "127.0.0.1"
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    path = parts.path.removesuffix("/v1").removesuffix(vendor.version) + vendor.version
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
