"""A forgotten key or a misspelt provider costs what needs it and nothing else; where nothing is left, the start is refused."""

from __future__ import annotations

from typing import Any

import pytest

from shared.config.settings import Settings
from worker.providers.switches import Switches, switch

HOME = {"base_url": "http://127.0.0.1:1/v1"}
LAB = {"base_url": "http://127.0.0.1:2/v1", "api_key_env": "LAB_KEY"}


def switched(environ: dict[str, str] | None = None, **given: Any) -> Switches:
    return switch(Settings(_env_file=None, **given), environ or {})


def test_nothing_asked_for_is_nothing_to_say() -> None:
    assert switched() == ({"fake": switched().providers["fake"]}, {}, [])


def test_a_provider_without_its_key_is_off_and_the_others_are_on() -> None:
    found = switched(providers={"lab": LAB, "home": HOME})
    assert sorted(found.providers) == ["fake", "home"]
    assert found.notices == ["[providers.lab] takes its key from LAB_KEY, which is not set: the provider is off"]
    assert switched({"LAB_KEY": "k"}, providers={"lab": LAB}).notices == []


def test_a_table_without_its_key_does_not_bring_back_the_vendor_it_replaces() -> None:
    """Its requests would go to another address, with another key."""
    found = switched({"OPENAI_API_KEY": "sk-1"}, providers={"openai": LAB, "home": HOME})
    assert "openai" not in found.providers


def test_an_alias_skips_what_is_not_on_and_says_why() -> None:
    found = switched(providers={"lab": HOME}, models={"smart": ["openai/gpt-5", "labb/x", "lab/qwen3-8b"]})
    assert found.models == {"smart": ["lab/qwen3-8b"]}
    assert found.notices == [
        "[models] smart: provider openai is off (set OPENAI_API_KEY); lab/qwen3-8b will answer",
        "[models] smart: there is no provider labb; did you mean lab?; lab/qwen3-8b will answer",
    ]


def test_an_alias_of_which_nothing_is_on_is_off() -> None:
    found = switched(providers={"lab": HOME}, models={"smart": "opnai/gpt-5"})
    assert found.models == {}
    assert found.notices == ["[models] smart: there is no provider opnai; did you mean openai?; the name is off"]


@pytest.mark.parametrize(
    "given",
    [
        {"providers": {"lab": LAB}},
        {"models": {"smart": "openai/gpt-5"}},
        {"providers": {"lab": LAB}, "models": {"a": "lab/x"}},
    ],
)
def test_where_nothing_can_work_the_start_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="No provider is on"):
        switched(**given)


def test_a_fake_model_is_one() -> None:
    assert switched(models={"smart": ["openai/gpt-5", "fake/echo"]}).models == {"smart": ["fake/echo"]}
