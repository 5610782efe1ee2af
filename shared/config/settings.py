"""Settings: environment, then `.env`, then `streamspool.toml`; wrong values stop the start with all errors at once.

Hidden here: the order of the sources, which names are ours (prefix STREAMSPOOL_) and which are everyone's (REDIS_URL, HOST,
PORT, LOG_LEVEL), and that a message never shows a value. docs/OPERATIONS.md carries the table made from this class. How the
variables are read is `environ.py`, what is told by tenant `tenants.py`, what is told of providers `providers.py`.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from shared.config import history_url, redis_url
from shared.config.environ import FILE, SettingsInvalid, bucket_options, environment, from_file, is_service_link
from shared.config.kinds import Allowed, ByTenant, Metrics, Origins, Prefix, Proxies, RootPath, Words
from shared.config.limits import LimitNumbers
from shared.config.prices import Budget, PriceConfig
from shared.config.providers import ProviderConfig, check_models, check_names, check_patterns
from shared.config.tenants import EVERY_TENANT, check_keys, check_strong, parse_keys, webhook_keys
from shared.lib import egress, proxies
from shared.lib.words import did_you_mean

PREFIX = "streamspool"
"""What keys begin with unless STREAMSPOOL_PREFIX says otherwise."""

MAX_TOKENS_PER_S = 10_000
"""Above this no reader could tell a paced stream from another."""

DEFAULT_CONFIG = "streamspool.toml"
PLAIN = ("HOST", "PORT", "LOG_LEVEL")
"""Have no NAME_FILE: nothing about them is secret, and as names of files they may be in use for something else."""


def load_settings(**given: object) -> Settings:
    """The settings, with `given` over all else. Raises SettingsInvalid that says all that is wrong, and no value."""
    try:
        settings = Settings(**given)  # type: ignore[arg-type]
        bucket_options(settings.files_url)  # a file that cannot be read is told now, not with the first upload
        return settings
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False, include_context=False)
        lines = [f"{_path(item['loc'])}: {_reason(item)}" for item in wrong]
    except (SettingsError, OSError, ValueError) as error:  # ValueError: streamspool.toml is not TOML, or ours
        file = os.environ.get("STREAMSPOOL_CONFIG") or DEFAULT_CONFIG
        lines = [f"{file}: {error}" if isinstance(error, tomllib.TOMLDecodeError) else str(error)]
    raise SettingsInvalid("\n".join(lines))


def _reason(item: ErrorDetails) -> str:
    if item["type"] == "extra_forbidden":
        of, known = ("a price", PriceConfig) if item["loc"][0] == "prices" else ("a provider", ProviderConfig)
        return f"is no setting of {of}{did_you_mean(str(item['loc'][-1]), list(known.model_fields))}"
    return item["msg"].removeprefix("Value error, ")


def _path(location: tuple[int | str, ...]) -> str:
    name, *inside = map(str, location or ("",))
    is_table = name in ("providers", "prices") and len(inside) > 1  # of the toml file, and called as it is there
    return f"[{name}.{inside[0]}] {'.'.join(inside[1:])}" if is_table else ".".join((variable(name), *inside))


def variable(field: str) -> str:
    """How a setting is called in the environment."""
    everyones = ("REDIS_URL", "HOST", "PORT", "LOG_LEVEL")
    return field.upper() if field.upper() in everyones else f"STREAMSPOOL_{field.upper()}"


def default_data_dir() -> Path:
    """Where embedded Valkey keeps its files: `$XDG_DATA_HOME/streamspool`, else `~/.local/share/streamspool`."""
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "streamspool"


class Settings(BaseSettings):
    """All settings of both ends. Units are in the names: `_s` seconds, `_bytes` bytes."""

    model_config = SettingsConfigDict(
        env_prefix="STREAMSPOOL_",
        env_file=".env",
        extra="ignore",
        populate_by_name=True,
        env_ignore_empty=True,
        hide_input_in_errors=True,
        allow_inf_nan=False,
    )

    redis_url: SecretStr | None = Field(
        None,
        validation_alias="REDIS_URL",
        description="redis://, rediss://, unix://, redis+cluster:// or redis+sentinel:// URL, see Redis or Valkey; empty: `up` "
        "and `demo` start an embedded Valkey",
    )
    queue_url: SecretStr | None = Field(
        None,
        description="another server for the queue, keys, limits and usage, as a URL like `REDIS_URL`, so that this one has the "
        "logs alone; empty: the same. For good: see a server of its own for the queue",
    )
    prefix: Prefix = Field(
        PREFIX,
        description="what all keys in Redis begin with: installations with different ones can share a database",
    )
    host: str = Field("127.0.0.1", validation_alias="HOST", description="address the API listens on")
    port: int = Field(
        8000, ge=0, le=65535, validation_alias="PORT", description="port the API listens on; 0: any free one"
    )
    root_path: RootPath = Field(
        "",
        description="prefix under which a proxy shows the API, like `/llm`; it may take it off or leave it on",
    )
    trusted_proxies: Proxies = Field(
        default_factory=list,
        description="addresses and networks of proxies whose `X-Forwarded-Prefix` and `X-Forwarded-Proto` are believed: "
        "`127.0.0.1,10.0.0.0/8`",
    )
    cors_origins: Origins = Field(
        default_factory=list,
        description="origins of web pages that may ask: `https://app.example.com,http://localhost:5173`; `*`: all, on a "
        "server with keys",
    )
    console: Literal["on", "off"] = Field(
        "on", description="`on`: the API shows its console at /console/, and sends browsers there; `off`: it does not"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", validation_alias="LOG_LEVEL", description="debug, info, warning or error"
    )
    api_keys: Annotated[dict[str, list[SecretStr]], NoDecode] = Field(
        default_factory=dict,
        description="bearer keys as `tenant:key,tenant:key`; a tenant may be named several times, each time with another "
        "key; none: loopback only, one tenant called `local`",
    )
    admin_keys: Annotated[dict[str, list[SecretStr]], NoDecode] = Field(
        default_factory=dict,
        description="the same for keys that may do everything, for every tenant, and make other keys: `ops:key`; of 16 "
        "characters or more",
    )
    data_dir: Path = Field(
        default_factory=default_data_dir, description="files of the embedded Valkey, and uploaded ones"
    )
    embedded_maxmemory: str = Field(
        "1gb",
        pattern=r"^\d+(kb|mb|gb)?$",
        description="memory limit of the embedded Valkey; full: new requests get 503",
    )
    local_model: bool = Field(
        False, description="`up` and `demo` also run a small real model, local/smollm2-135m-instruct"
    )
    lease_s: float = Field(10, ge=1, description="a worker silent for this long loses its generations to another")
    max_attempts: int = Field(3, ge=1, description="attempts a generation gets when workers are lost")
    on_interruption: Literal["fail", "restart"] = Field(
        "fail", description="default of the request field: an answer is cut after its first chunk: `fail` or `restart`"
    )
    on_disconnect: Literal["continue", "cancel"] = Field(
        "continue", description="default of the request field: the last viewer has left: `continue` or `cancel`"
    )
    disconnect_grace_s: float = Field(
        5, ge=1, description="with on_disconnect=cancel: how long a generation may be without any viewer"
    )
    max_tokens_per_s: ByTenant[Annotated[float, Field(gt=0, le=MAX_TOKENS_PER_S)]] = Field(
        default_factory=dict,
        description="default of the request field: tokens a second that streams are shown at; for some tenants as "
        "`tenant:20,tenant:50`; none: as fast as they come",
    )
    no_worker_s: float = Field(
        60, ge=1, description="how long generations wait while no worker is alive, before they fail with `no_worker`"
    )
    confirm: Literal["all", "background", "none"] = Field(
        "background",
        description="requests that are accepted only once the death of the Redis server cannot take them any more: `all`, "
        "those with `background` and batches and files, or `none`",
    )
    retention_s: float = Field(86400, ge=1, description="how long a finished stream can be replayed")
    stored_retention_s: float = Field(
        30 * 86400, ge=1, description="the same for requests with `store`; never less than for the others"
    )
    history_url: SecretStr | None = Field(
        None,
        description="where is kept what is known of answers whose text is gone: sqlite:///FILE, for the processes of one "
        "machine, or postgresql://…; the same for API and workers; `up`: a file in the data directory; none: nowhere",
    )
    history_s: float = Field(30 * 86400, ge=3600, description="how long that is kept")
    history_waiting: int = Field(100_000, ge=1000, description="rows that wait for it in Redis at most: the newest")
    store_reasoning: bool = Field(
        False, description="default of the request field: sessions keep an answer's reasoning and send it back"
    )
    summary_model: str = Field(
        "",
        pattern=r"^$|^[^/\x00-\x20]+(/\S+)?$",
        description="summarises reasoning for requests that want that, where their provider does not: `provider/model`, or a "
        "name of [models]; empty: no model does",
    )
    session_policy: Literal["reject", "enqueue", "interrupt"] = Field(
        "reject", description="default of the request field: a request comes while its session is busy"
    )
    session_trim: Literal["none", "oldest"] = Field(
        "none",
        description="default of the request field: a session is over its limit: refuse, or leave the oldest turns out",
    )
    session_max_tokens: int = Field(
        100_000, ge=1, description="a session's limit in tokens, estimated as a quarter of its characters"
    )
    session_max_bytes: int = Field(2 * 1024 * 1024, ge=1024, description="a session's limit in bytes")
    session_retention_s: float = Field(30 * 86400, ge=1, description="how long a session is kept after its last use")
    openwebui_sessions: bool = Field(
        False,
        description="take Open WebUI's chat id (header X-OpenWebUI-Chat-Id) for the session of a streamed request",
    )
    max_body_bytes: int = Field(50 * 1024 * 1024, ge=1024, description="largest request body, counted while receiving")
    intake_bytes: int = Field(
        256 * 1024 * 1024,
        ge=0,
        description="what the bodies of requests over 256 KiB may take in an API process at once, while they arrive and are "
        "stored; beyond it they wait a moment, then 503; 0: no limit",
    )
    max_blob_bytes: int = Field(
        10 * 1024**3,
        ge=0,
        description="what a tenant's large requests and answers (over 256 KiB) may take in the file storage; 0: no limit",
    )
    files_url: str = Field(
        "",
        pattern=r"^$|^(s3|gs|az|file)://",
        description="where files are kept: s3://BUCKET/PREFIX, gs://…, az://…, file:///…; empty: `files` in the data directory",
    )
    archive_after_s: float = Field(0, ge=0, description="how old an ended answer goes to the file storage; 0: never")
    archive_least_bytes: int = Field(4096, ge=0, description="of request and answer; what takes less stays in Redis")
    max_file_bytes: int = Field(200 * 1024 * 1024, ge=1024, description="largest file that can be uploaded")
    files_retention_s: float = Field(
        30 * 86400,
        ge=3600,
        description="how long a file is kept whose upload does not say; batches, too, once they ended",
    )
    batch_lines: int = Field(100, ge=1, description="lines of one batch that are asked at once")
    batch_provider_lines: int = Field(
        200, ge=1, description="lines of all batches that are asked of one provider at once; tenants get equal shares"
    )
    keepalive_s: float = Field(15, gt=0, description="a comment line is sent to a viewer after this much silence")
    events_kept: int = Field(
        10_000,
        ge=0,
        le=1_000_000,
        description="events of generations that `GET /v1/events` can show and resume, of all tenants together, the newest; 0: "
        "none are written",
    )
    hold_headers_s: float = Field(
        5,
        ge=0,
        description="response headers wait this long for the first chunk, so that an early error has a true status",
    )
    answer_keepalive_after_s: float = Field(
        0,
        ge=0,
        description="a whole answer that takes longer than this is kept alive with white space, and has the status 200 "
        "whatever its outcome; 0: never. Default of the header `x-keepalive-after`",
    )
    console_idle_s: float = Field(
        12 * 3600, ge=60, description="how long a browser stays signed in while it asks nothing and watches nothing"
    )
    connection_idle_s: float = Field(
        75,
        gt=0,
        description="a client's connection is closed after this long without a request; let it be longer than that of the "
        "proxy or balancer in front",
    )
    drain_s: float = Field(30, ge=0, description="how long a stopping process lets running streams finish")
    send_timeout_s: float = Field(
        30, gt=0, description="a viewer that takes no bytes for this long is dropped; it can resume"
    )
    upstream_proxy: Literal["environment", "none"] = Field(
        "environment",
        description="`environment`: providers are asked through HTTP_PROXY, HTTPS_PROXY and ALL_PROXY, but for NO_PROXY and "
        "this machine; `none`: directly. Webhooks and files never are",
    )
    trace_upstream: bool = Field(False, description="providers get the `traceparent` of a request, if there are traces")
    upstream_connect_s: float = Field(10, gt=0, description="connecting to a provider")
    upstream_first_s: float = Field(120, gt=0, description="from the request to the provider's first data event")
    upstream_idle_s: float = Field(60, gt=0, description="between two data events; comments do not count")
    generation_s: float = Field(3600, gt=0, description="a whole attempt")
    max_event_bytes: int = Field(32 * 1024 * 1024, ge=1024, description="largest single event of a provider")
    max_answer_bytes: int = Field(
        32 * 1024 * 1024,
        ge=0,
        description="largest answer: of each chunk the bytes beyond 128, which all have, but 64 at least; one that goes on "
        "beyond it is ended as `incomplete`; 0: no limit",
    )
    worker_concurrency: int = Field(200, ge=1, description="generations one worker runs at once")
    worker_lines: int = Field(
        100, ge=1, description="lines of batches among them, at most; the other places are for everybody else"
    )
    tenant_weights: ByTenant[Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]] = Field(
        default_factory=dict,
        description="shares of the workers' places while several tenants wait: `tenant:3,tenant:0.5`; those that are not "
        "named have 1",
    )
    limits: ByTenant[LimitNumbers] = Field(
        default_factory=dict,
        description="what a tenant may use: `requests_per_min=600 running=50` for each, `team-a:requests_per_min=60` for one, "
        "with commas between; none: as much as it asks for",
    )
    api_metrics_port: int = Field(
        0, ge=0, le=65535, description="port on HOST of each API process alone, where several share PORT; 0: none"
    )
    worker_metrics_port: int = Field(
        0, ge=0, le=65535, description="port of a worker's /metrics, /healthz, /readyz on HOST; 0: none"
    )
    metrics: Metrics = Field(
        default_factory=list,
        description="more of /metrics: `tenants` is a label, the first 500; `genai`: OpenTelemetry's names beside ours",
    )
    webhook_secret: ByTenant[SecretStr] = Field(
        default_factory=dict,
        description="signs webhooks: `whsec_BASE64` for every tenant, or `tenant:whsec_…,tenant:whsec_…`; two of one "
        "tenant's, with a space between, sign both; none: no webhooks",
    )
    webhook_allow: Allowed = Field(
        default_factory=list,
        description="hosts, addresses and networks that webhooks may go to although they are not on the public "
        "internet, or without https: `hooks.internal,10.1.0.0/16`",
    )
    webhook_url: SecretStr | None = Field(
        None, description="default of the request field `webhook`, for requests with `background`, and for batches"
    )
    webhook_timeout_s: float = Field(
        10, gt=0, description="one delivery of a webhook, from the name's look-up to the answer"
    )
    webhook_retry_s: float = Field(
        5, gt=0, description="pause after the first delivery that failed; the next ones double"
    )
    webhook_give_up_s: float = Field(
        86400, ge=1, description="how long after the first delivery of a webhook it is still tried again"
    )
    providers: dict[str, ProviderConfig] = Field(
        default_factory=dict, description="further providers; in streamspool.toml as [providers.NAME]"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        named = os.environ.get("STREAMSPOOL_CONFIG")
        if named and not Path(named).is_file():
            raise FileNotFoundError(f"STREAMSPOOL_CONFIG names {named!r}, which is not a file.")
        toml = TomlConfigSettingsSource(settings_cls, Path(named or DEFAULT_CONFIG))
        for source in (env_settings, dotenv_settings):
            assert isinstance(source, EnvSettingsSource)
            meant = {name: text for name, text in source.env_vars.items() if not is_service_link(name.upper(), text)}
            source.env_vars = {**meant, **cls._files(source.env_vars)}
        return init_settings, env_settings, dotenv_settings, toml

    @classmethod
    def _files(cls, found: Mapping[str, str | None]) -> dict[str, str]:
        """The settings whose NAME_FILE is found in a place, which has all names in lower case."""
        return {
            name.lower(): from_file(name, path, found.get(name.lower()))
            for name in map(variable, cls.model_fields)
            if name not in PLAIN and (path := found.get(f"{name}{FILE}".lower()))
        }

    models: dict[str, list[str]] = Field(
        default_factory=dict,
        description="names of your own, each for one model or for several, tried in order until one begins to answer; "
        "in streamspool.toml under [models]",
    )
    prices: dict[str, PriceConfig] = Field(
        default_factory=dict,
        description="what models cost, in dollars for a million tokens, instead of what is known of them; in streamspool.toml "
        'as [prices."provider/model"]',
    )
    budgets: ByTenant[Budget] = Field(
        default_factory=dict,
        description="what a tenant may spend: `acme:day_usd=10 month_usd=200,month_usd=50`, without a name every other tenant; "
        "`soft_day_usd` and `soft_month_usd` only tell",
    )
    budget_running: Literal["continue", "stop"] = Field(
        "continue",
        description="answers that run when a budget is reached: `continue`, or `stop`: they end as `incomplete`",
    )
    budget_unknown: Literal["accept", "refuse"] = Field(
        "accept",
        description="models whose price is not known, asked for under a hard budget: `accept`, though nothing can be held for "
        "them, or `refuse`",
    )
    ledger_rows: int = Field(
        100,
        ge=1,
        le=10_000,
        description="rows of keys and models that a tenant's usage has in an hour, and in a day; more are counted as `other`",
    )
    models_refresh_s: float = Field(
        300,
        ge=0,
        le=86400,
        description="how often one of the workers asks each provider for its list of models; 0: never, and GET /v1/models "
        "has those of `streamspool.toml`",
    )
    models_only: Words = Field(
        default_factory=list,
        description="which of the providers' listed models are shown: `openai/gpt-5*,ollama/*`; none: all that answer chats",
    )
    models_without: Words = Field(
        default_factory=list,
        description="which of them are not: `openrouter/*:free,groq/*`; a provider with `NAME/*` here is not asked",
    )

    @field_validator("models", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        return {name: [models] if isinstance(models, str) else models for name, models in value.items()}

    @field_validator("models")
    @classmethod
    def _check_aliases(cls, value: dict[str, list[str]]) -> dict[str, list[str]]:
        check_models(value)
        return value

    @field_validator("models_only", "models_without")
    @classmethod
    def _check_patterns(cls, value: list[str]) -> list[str]:
        check_patterns(value)
        return value

    @field_validator("history_url")
    @classmethod
    def _check_history_url(cls, value: SecretStr | None) -> SecretStr | None:
        return history_url.check(value)

    @field_validator("redis_url", "queue_url")
    @classmethod
    def _check_redis_url(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if value is not None:
            redis_url.parse(value.get_secret_value())
            if info.field_name == "queue_url" and info.data.get("redis_url", value) is None:
                raise ValueError("it is beside REDIS_URL, which is not set: the embedded Valkey has everything")
        return value

    @field_validator("api_keys", "admin_keys", mode="before")
    @classmethod
    def _parse_keys(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, str):
            return parse_keys(value, variable(info.field_name or ""))
        if not isinstance(value, Mapping):
            return value
        return {tenant: keys if isinstance(keys, list | tuple) else [keys] for tenant, keys in value.items()}

    @field_validator("api_keys")
    @classmethod
    def _check_tenants(cls, value: dict[str, list[SecretStr]]) -> dict[str, list[SecretStr]]:
        check_keys(value)
        return value

    @field_validator("admin_keys")
    @classmethod
    def _check_admins(cls, value: dict[str, list[SecretStr]], info: ValidationInfo) -> dict[str, list[SecretStr]]:
        check_keys(value, "STREAMSPOOL_ADMIN_KEYS", beside=info.data.get("api_keys", {}))
        check_strong(value)
        return value

    @field_validator("webhook_secret")
    @classmethod
    def _check_secrets(cls, value: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for secrets in value.values():
            webhook_keys(secrets)
        return value

    @field_validator("webhook_url")
    @classmethod
    def _check_webhook_url(cls, value: SecretStr | None, info: ValidationInfo) -> SecretStr | None:
        if value is None or "webhook_allow" not in info.data:
            return value
        if not info.data.get("webhook_secret"):
            raise ValueError("STREAMSPOOL_WEBHOOK_URL needs STREAMSPOOL_WEBHOOK_SECRET")
        try:
            egress.Policy(info.data["webhook_allow"]).check_url(value.get_secret_value())
        except egress.Refused as reason:
            raise ValueError(f"the address cannot be used: {reason}") from None
        return value

    @field_validator("providers")
    @classmethod
    def _check_providers(cls, value: Mapping[str, ProviderConfig]) -> Mapping[str, ProviderConfig]:
        check_names(value)
        return value

    @property
    def keeps_history(self) -> bool:
        """Whether there is one."""
        return self.history_url is not None and self.history_url.get_secret_value() != history_url.NOWHERE

    @property
    def control_url(self) -> str | None:
        """`queue_url` without its cover; None: the queue is where the logs are."""
        return None if self.queue_url is None else self.queue_url.get_secret_value()

    @property
    def keyed(self) -> bool:
        """Whether a key has to be sent. Without any in the environment this server is for this machine only."""
        return bool(self.api_keys or self.admin_keys)

    def pace(self, tenant: str) -> float | None:
        """Tokens a second that a tenant's streams are shown at unless a request says otherwise; None for no limit."""
        return self.max_tokens_per_s.get(tenant, self.max_tokens_per_s.get(EVERY_TENANT))

    @property
    def upstream_proxies(self) -> proxies.Proxies:
        """Through which proxies providers are asked. Raises SettingsInvalid."""
        return proxies.from_environment(environment()) if self.upstream_proxy == "environment" else proxies.NO_PROXIES

    @property
    def files_location(self) -> str:
        """`files_url`, or the directory that stands for it, as a URL."""
        return self.files_url or (self.data_dir.absolute() / "files").as_uri()

    @property
    def log_safety_s(self) -> float:
        """TTL of an unsealed log: longer than all its attempts can take, so that it only matters if every reaper is dead."""
        return self.max_attempts * (self.generation_s + 2 * self.lease_s) + self.retention_s
