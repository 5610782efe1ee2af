"""The ledger beside what it is the sum of: every generation's usage counts once, whatever died meanwhile."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from shared.lib import money

TOKENS = ("prompt_tokens", "completion_tokens", "total_tokens")


def ledger_problems(states: Iterable[dict[str, Any]], rows: Iterable[dict[str, Any]]) -> list[str]:
    """What is wrong with these rows of /v1/usage, given the states of all generations of the models among them.

    Rows of models that no state names are not looked at: they are somebody else's.
    """
    wanted: dict[str, Counter[str]] = {}
    for state in states:
        figures = wanted.setdefault(state["served_by"] or state["model"], Counter())
        figures["requests"] += 1
        figures[f"{state['status']}_requests"] += 1
        for name in TOKENS:
            figures[name] += (state["usage"] or {}).get(name, 0)
        figures["unknown_costs"] += state["cost_usd"] is None
        figures["picodollars"] += money.from_dollars(state["cost_usd"] or 0) or 0
    found: dict[str, Counter[str]] = {model: Counter() for model in wanted}
    for row in rows:
        if row["model"] in found:
            names = [name for name in row if name in TOKENS or name.endswith("requests")]
            found[row["model"]].update({name: row[name] for name in ("unknown_costs", *names)})
            found[row["model"]]["picodollars"] += money.from_dollars(row["cost_usd"] or 0) or 0
    return [
        f"the ledger has {figures[name]} {name} of {model}, its generations have {wanted[model][name]}"
        for model, figures in found.items()
        for name in {*TOKENS, *wanted[model], *(name for name in figures if not name.startswith(SOURCES))}
        if figures[name] != wanted[model][name]
    ]


SOURCES = ("provider_", "tokenizer_", "estimate_")
