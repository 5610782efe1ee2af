"""What can answer with these settings, and what cannot and why: decided once, at the start.

Hidden here: that a forgotten key or a misspelt provider costs what needs it and nothing else. A provider whose key is not
set is off; a name in `[models]` does without those of its models that are; and only where all that was asked for is off,
nothing can work, and the start is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from shared.config.settings import Settings
from shared.lib.words import did_you_mean
from worker.providers.registry import FAKE, VENDORS, Provider, load_providers


class Switches(NamedTuple):
    """`providers` are on, by name; `models` are the names of `[models]`, each with those of its models that can answer,
    and without the names that have none. `notices` says, a line for each, what is off, and why."""

    providers: dict[str, Provider]
    models: dict[str, list[str]]
    notices: list[str]


def switch(settings: Settings, environ: Mapping[str, str]) -> Switches:
    """Raises ValueError, line by line: for what is wrong with a provider that is on, or if nothing can work."""
    off = {
        name: f"[providers.{name}] takes its key from {table.api_key_env}, which is not set"
        for name, table in settings.providers.items()
        if table.api_key_env is not None and not environ.get(table.api_key_env)
    }
    providers = load_providers(settings, environ, off=off)
    notices = [f"{why}: the provider is off" for why in off.values()]
    models: dict[str, list[str]] = {}
    for name, targets in settings.models.items():
        models[name] = [target for target in targets if target.partition("/")[0] in providers]
        notices += _aliases(name, targets, models[name], providers, off)
    models = {name: targets for name, targets in models.items() if targets}
    if notices and not models and providers.keys() == {FAKE.name}:
        raise ValueError("\n".join([*notices, "No provider is on: nothing that is asked for could be answered"]))
    return Switches(providers, models, notices)


def _aliases(
    name: str, targets: list[str], able: list[str], providers: Mapping[str, Provider], off: Mapping[str, str]
) -> Iterator[str]:
    missing = dict.fromkeys(target.partition("/")[0] for target in targets if target not in able)
    for provider in missing:
        effect = f"{', '.join(able)} will answer" if able else "the name is off"
        yield f"[models] {name}: {_why(provider, providers, off)}; {effect}"


def _why(name: str, providers: Mapping[str, Provider], off: Mapping[str, str]) -> str:
    if name in off:
        return f"provider {name} is off"
    for vendor in VENDORS:
        if vendor.name == name:
            variables = vendor.key_variables[:1] or vendor.base_variables[:1]
            return f"provider {name} is off (set {variables[0]})"
    known = {*providers, *off, *(vendor.name for vendor in VENDORS)}
    return f"there is no provider {name}{did_you_mean(name, known)}"
