"""The tables of the documentation that are made from the code. To write them anew: `python -m tests.docs.tables`.

Each stands between two comments, `<!-- table: NAME -->` and `<!-- end -->`; test_docs.py fails with a diff when one of
them is behind.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from prometheus_client.metrics import MetricWrapperBase
from pydantic import SecretStr

from shared.config.settings import Settings
from shared.lib import telemetry
from shared.store import keys
from tests.docs import coverage, growth
from tests.support.clients import CLIENTS, EXERCISES
from tests.support.recordings import FOLDER
from worker.providers import finish
from worker.providers.accepts import FORMATS, REASONING_TEXTS, Accepts
from worker.providers.registry import VENDORS

ROOT = Path(__file__).parents[2]
DOCUMENTS = tuple(
    str(path.relative_to(ROOT))
    for pages in ("*.md", "docs/**/*.md", "examples/**/*.md", "shared/log/PROTOCOL.md")
    for path in sorted(ROOT.glob(pages))
)
"""Every page: what is added is checked with the rest."""
COMMAND = "python -m tests.docs.tables"

_PLACE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.S)
_IN_WORDS = {"data_dir": "`$XDG_DATA_HOME/streamspool` or `~/.local/share/streamspool`", "api_keys": "none"}


def rewritten(text: str) -> str:
    """A document with all its tables as they should be. Raises KeyError for a table nobody makes."""

    def made(match: re.Match[str]) -> str:
        if (
            match[2] == "coverage" and not (FOLDER / "INDEX.jsonl").is_file()
        ):  # it counts recordings, which are kept elsewhere
            return match[0]
        return f"{match[1]}\n{TABLES[match[2]]()}\n{match[3]}"

    return _PLACE.sub(made, text)


def variable(field: str) -> str:
    """How a setting is called in the environment."""
    alias = Settings.model_fields[field].validation_alias
    return str(alias) if alias else f"STREAMSPOOL_{field.upper()}"


def settings() -> str:
    rows = []
    for name, field in Settings.model_fields.items():
        value = field.get_default(call_default_factory=True)
        empty = value is None or isinstance(value, SecretStr) or value in ((), {}, [], frozenset())
        default = _IN_WORDS.get(name) or ("none" if empty else f"`{value}`")
        rows.append(
            (
                f"`{variable(name)}`",
                "none" if name in ("providers", "models", "max_tokens_per_s") else default,
                field.description or "",
            )
        )
    return _table(("Variable", "Default", "Meaning"), rows)


def providers() -> str:
    rows = [
        (
            f"`{vendor.name}/…`",
            vendor.kind,
            ", ".join(f"`{name}`" for name in vendor.key_variables) or "none needed",
            ", ".join(f"`{name}`" for name in vendor.base_variables),
            f"`{vendor.base_url}`" if vendor.base_url else "none",
        )
        for vendor in VENDORS
    ]
    return _table(("Models", "Format", "Key", "Address, if another", "Address by default"), rows)


def requests() -> str:
    """What is changed in a request, for each vendor in OpenAI's format and for each other format."""
    found: dict[str, Accepts] = {"any other server with OpenAI's format": FORMATS["openai"]}
    found |= {f"`{vendor.name}`": vendor.accepts for vendor in VENDORS if vendor.accepts is not None}
    found |= {f"format {kind}": accepts for kind, accepts in FORMATS.items() if kind != "openai"}
    same: dict[Accepts, list[str]] = {}
    for name, accepts in found.items():
        same.setdefault(accepts, []).append(name)
    rows = [
        (", ".join(names), *_told(accepts, native=names[0].startswith("format "))) for accepts, names in same.items()
    ]
    head = (
        "For",
        "Role `developer`",
        "Reasoning goes back",
        "Text in parts",
        "Ids of calls",
        "Broken arguments",
        "Otherwise",
    )
    return _table(head, rows)


def _told(accepts: Accepts, *, native: bool) -> tuple[str, ...]:
    """The cells of a row. What a format has a way of its own for is said in its file."""
    plain = REASONING_TEXTS[0] in accepts.reasoning and len(accepts.reasoning) > 1
    names = ", ".join(f"`{name}`" for name in accepts.reasoning)
    ids = accepts.call_ids
    spelled = "letters and digits" + (", `_`, `-`" if "_" in ids.alphabet else "") if ids.alphabet else ""
    length = f"{ids.most}" if ids.least == ids.most else f"at most {ids.most}" if ids.most < 1000 else ""
    more = [
        accepts.strict and "fields of messages, parts and tools that OpenAI does not know are left out",
        not accepts.names and "`name` of speakers is left out, several are refused",
        not accepts.blank_text and "text of white space alone is left out",
        accepts.no_reasoning is not None and "an answer without reasoning has an empty one",
        accepts.unlimited and "a limit of -1 stays",
        accepts.most_stops and f"at most {accepts.most_stops} `stop`",
        accepts.efforts and f"`reasoning_effort` is the nearest of {', '.join(accepts.efforts)}",
        accepts.leaves_out and "left out: " + ", ".join(f"`{field}`" for field in accepts.leaves_out),
        accepts.renames and ", ".join(f"`{field}` is `{name}`" for field, name in accepts.renames),
        accepts.prefill_field and f"an answer to go on with has `{accepts.prefill_field}`",
        not accepts.user_after_tool and 'between a result and the user: "OK."',
        accepts.message_fields and "taken: " + ", ".join(f"`{field}`" for field in accepts.message_fields),
    ]
    return (
        "stays" if accepts.developer else "system",
        "in its own form" if native else "as it is" if plain else f"as {names}" if names else "no",
        "stays" if accepts.text_parts else "one string",
        ", ".join(filter(None, (length, spelled))) or "any",
        "as written" if accepts.raw_arguments else "in an object",
        "; ".join(told for told in more if told) or "–",
    )


def metrics() -> str:
    of_api = [ROOT / "shared/generations/broker.py"]
    of_worker = [ROOT / f"shared/log/{name}.py" for name in ("writer", "appender")]
    apart = {*of_api, *of_worker, ROOT / "shared/lib/telemetry.py"}
    of_both = [path for path in (ROOT / "shared").rglob("*.py") if path not in apart]
    sources = {
        "API": [*(ROOT / "api").rglob("*.py"), *of_api, *of_both],
        "worker": [*(ROOT / "worker").rglob("*.py"), *of_worker, *of_both],
    }
    texts = {end: "\n".join(path.read_text("utf-8") for path in paths) for end, paths in sources.items()}
    rows = []
    for constant, metric in vars(telemetry).items():
        if isinstance(metric, MetricWrapperBase):
            (family,) = metric.describe()
            name = family.name + ("_total" if family.type == "counter" else "")
            labels = ", ".join(f"`{label}`" for label in metric._labelnames)
            where = ", ".join(end for end, text in texts.items() if re.search(rf"\b{constant}\.", text))
            rows.append((f"`{name}`", family.type, labels, where, family.documentation))
    return _table(("Metric", "Type", "Labels", "Served by", "Meaning"), rows)


def redis_keys() -> str:
    lines = [line.strip() for line in (keys.__doc__ or "").splitlines()]
    return "\n".join(line for line in lines if line.startswith("|"))


def providers_coverage() -> str:
    return _table(("Provider", *coverage.FEATURES), coverage.table_rows())


def clients() -> str:
    rows = [
        (client.name, client.version or "the system's", *("✓" if name in client.checks else "–" for name in EXERCISES))
        for client in CLIENTS
    ]
    return _table(("Client", "Version", *EXERCISES.values()), rows)


def finish_reasons() -> str:
    """One row for each meaning that words of a format have."""
    rows = []
    for name, words in finish.FORMATS.items():
        meanings: dict[finish.Ending, list[str]] = {}
        for word, meaning in words.endings.items():
            meanings.setdefault(meaning, []).append(f"`{word}`")
        for meaning, named in meanings.items():
            reason = f"`{meaning.reason}`" if meaning.reason else f"error {meaning.http_status}"
            rows.append((name, ", ".join(named), f"`{meaning.status}`", reason))
    unknown = finish.ending("openai", "a word of 2030")
    rows.append(("all", "any other word", f"`{unknown.status}`", f"`{unknown.reason}`"))
    return _table(("Format", "The provider's word", "Status", "`finish_reason`"), rows)


def finish_sources() -> str:
    return _table(("Format", "Page"), [(name, words.source) for name, words in finish.FORMATS.items()])


def costs() -> str:
    return _table(("One more", "Costs", "µs a chunk", "of a core", "a core carries"), growth.rows())


TABLES = {
    "growth": costs,
    "finish": finish_reasons,
    "finish_sources": finish_sources,
    "coverage": providers_coverage,
    "settings": settings,
    "providers": providers,
    "requests": requests,
    "metrics": metrics,
    "redis_keys": redis_keys,
    "clients": clients,
}


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    for name in DOCUMENTS:
        document = ROOT / name
        before = document.read_text("utf-8")
        after = rewritten(before)
        if after != before:
            document.write_text(after, "utf-8")
            print(f"{name} rewritten")
