"""What a rolling restart costs, in docs/RELIABILITY.md: `python -m tests.chaos.figures_rolling [--runs N]`.

Three API processes of `up` are replaced one after the other, by SIGHUP, under 300 viewers of ten answers and 50 requests a
second.
Prints a JSON line for each run, and exits with 1 if anybody was refused or is not whole.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from pathlib import Path

from tests.chaos.rolling import roll, several

LOAD = {"viewers": 300, "answers": 10, "tokens": 900}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--rate", type=float, default=50, help="requests a second")
    asked = parser.parse_args()
    wrong = False
    for _ in range(asked.runs):
        with tempfile.TemporaryDirectory() as place, several(Path(place)) as (one, own):
            found = asyncio.run(roll(one, own, rate=asked.rate, **LOAD))
        wrong |= bool(found["posts_refused"] or found["viewers_refused"] or found["viewers_not_whole"])
        print(json.dumps(found), flush=True)
    sys.exit(int(wrong))


if __name__ == "__main__":
    main()
