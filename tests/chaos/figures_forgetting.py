"""Servers that forget what they acknowledged, again and again: one JSON line for each run, and one for each row.

python -m tests.chaos.figures_forgetting [killed|failover] [--runs 10]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.chaos.test_forgetting import failed_over, killed
from tests.harness.upstream import ScriptedUpstream

ROWS: dict[str, Callable[[ScriptedUpstream, Path], dict[str, Any]]] = {"killed": killed, "failover": failed_over}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("rows", nargs="*", default=[*ROWS])
    parser.add_argument("--runs", type=int, default=10)
    asked = parser.parse_args()
    for row in asked.rows:
        counts: Counter[str] = Counter()
        wrong: list[Any] = []
        for _ in range(asked.runs):
            began = time.monotonic()
            with tempfile.TemporaryDirectory() as directory, ScriptedUpstream() as upstream:
                found = ROWS[row](upstream, Path(directory))
            wrong += found.pop("wrong")
            counts.update(found)
            print(json.dumps({"row": row, "seconds": round(time.monotonic() - began, 1), **found}), flush=True)
        print(json.dumps({"row": row, "runs": asked.runs, **counts, "wrong": wrong}), flush=True)


if __name__ == "__main__":
    main()
