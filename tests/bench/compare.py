"""`make bench-peers`: Streamspool beside its peers in one run, and docs/PERFORMANCE.md with what was found.

python -m tests.bench.compare [--peers nginx,litellm,…] [--no-scale] [--no-docs] and the options of `make bench`
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from shared.cli.embedded import find_binary
from tests.bench import goals, machine, plots, report, scale
from tests.bench.__main__ import arguments, begin, finish
from tests.bench.load import ROOT
from tests.bench.machine import CannotMeasure, Cores
from tests.bench.peers import PEERS, install
from tests.bench.run import Run, say, titles
from tests.bench.targets import Ceiling, Direct, Ours, Target

DOCUMENT = ROOT / "docs/PERFORMANCE.md"
PICTURES = ROOT / "docs/performance"
ORDER: tuple[type[Target], ...] = (Direct, Ceiling, *PEERS, Ours)
ALT = {
    "gateway": "time to the first token of every target at 1, 50 and 200 streams",
    "cost": "CPU for each chunk of every target",
    "fan": "deliveries for each core-second of every target",
    "replay": "replay times of every target",
}


def prepare(kinds: Iterable[type[Target]], run: Run) -> list[type[Target]]:
    """Installs what is missing; peers that cannot be are left out, and said so."""
    ready = []
    for kind in kinds:
        try:
            if kind in PEERS:
                PEERS[kind]()
            ready.append(kind)
        except CannotMeasure as error:
            run.failures.append(f"{kind.title}, installing: {error}")
            say(f"  {run.failures[-1]}")
    return ready


def versions() -> dict[str, str]:
    """Of ours and of the peers."""
    valkey = subprocess.run([str(find_binary()), "--version"], check=False, capture_output=True, text=True).stdout
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, check=False, capture_output=True, text=True
    ).stdout
    found = {"streamspool": commit.strip() or "unknown"}
    found["valkey"] = next((word[2:] for word in valkey.split() if word.startswith("v=")), "unknown")
    return found | install.versions()


def command(options: argparse.Namespace) -> str:
    """What to type for the same run."""
    words = [f"--reps {options.reps}", *(["--boost"] if options.boost else [])]
    return f'make bench-peers ARGS="{" ".join(words)}"'


def blocks(found: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, str]:
    """What stands in the document, by the name of its place."""
    results = found["results"]
    about = [["", ""], ["date", found["date"]], ["command", f"`{found['command']}`"]]
    about += [[key, value] for key, value in found["machine"].items()]
    about += [[f"`{key}`", value] for key, value in found["versions"].items()]
    written = {"machine": report.markdown(about), "goals": report.markdown(report.goal_rows(results, names))}
    for table in report.COLUMNS:
        picture = f"![{ALT[table]}](performance/{table}.svg)"
        written[table] = f"{report.markdown(report.figure_rows(results, table, names))}\n\n{picture}"
    missed = [f"- {failure}" for failure in found["failures"]]
    written["failures"] = "\n".join(["Not measured:", "", *missed]) if missed else "Everything was measured."
    if found.get("scale"):
        figures = {name: {int(level): row for level, row in rows.items()} for name, rows in found["scale"].items()}
        for name, rows in scale.tables(figures).items():
            written[f"scale-{name}"] = report.markdown(rows)
        written["arithmetic"] = report.markdown(scale.arithmetic(figures))
        if "scale-apart" in found:
            own = {
                name: {int(level): row for level, row in rows.items()} for name, rows in found["scale-apart"].items()
            }
            written["scale-apart"] = report.markdown(scale.apart(own, figures))
            written["scale-cores"] = f"The cores: {found['scale-cores']}."
    return written


def pictures(found: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, str]:
    """SVGs by file name."""
    drawn = {f"{table}.svg": plots.bars(found["results"], table, names) for table in report.COLUMNS}
    for name, title in (("streams", "streams"), ("viewers", "viewers of one stream")):
        levels = found.get("scale", {}).get(name, {})
        if levels:
            series = {
                part: [row.get(f"cpu_{part.lower()}_us") for row in levels.values()]
                for part in ("API", "worker", "Valkey")
            }
            drawn[f"scale-{name}.svg"] = plots.lines(
                f"CPU for each chunk that arrives, µs, by {title}", list(levels), series
            )
    return drawn


def write(found: Mapping[str, Any], document: Path, folder: Path) -> None:
    """Fills the document's places, draws the pictures, and keeps all figures beside them."""
    names = titles(ORDER)
    text = document.read_text("utf-8")
    document.write_text(report.fill(text, blocks(found, names)), "utf-8")
    folder.mkdir(exist_ok=True)
    for name, svg in pictures(found, names).items():
        (folder / name).write_text(svg, "utf-8")
    (folder / "results.json").write_text(json.dumps(rounded(found), indent=1, sort_keys=True) + "\n", "utf-8")


def rounded(value: Any) -> Any:
    """The same with floats of four significant digits: no more is known."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, Mapping):
        return {str(key): rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def main(words: Sequence[str] | None = None) -> int:
    parser = arguments("python -m tests.bench.compare")
    parser.set_defaults(reps=3)
    parser.add_argument("--peers", metavar="NAMES", help=f"only these: {', '.join(kind.name for kind in PEERS)}")
    parser.add_argument("--no-scale", action="store_true", help="leave out how cost grows")
    parser.add_argument("--no-docs", action="store_true", help="do not write docs/PERFORMANCE.md")
    options = parser.parse_args(words)
    wanted = options.peers.split(",") if options.peers else [kind.name for kind in PEERS]
    found: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "machine": machine.describe()}
    try:
        cores = Cores.choose()
        run = begin(options)
        kinds = prepare((kind for kind in ORDER if kind not in PEERS or kind.name in wanted), run)
        found |= {"versions": versions(), "command": command(options)}
        run.measure(kinds)
        if not options.no_scale and not options.only:
            scaling = scale.Scaling(cores, quick=options.quick)
            scaling.run()
            found["scale"] = scaling.figures
            if cores.server != cores.load:
                own = Cores.choose_apart()
                scaling = scale.Scaling(own, quick=options.quick)
                scaling.run()
                found |= {"scale-apart": scaling.figures, "scale-cores": own.told()}
    except CannotMeasure as error:
        print(error, file=sys.stderr)
        return 2
    found |= {"results": finish(run, options.json, versions=found["versions"]), "failures": run.failures}
    shown = [goal for goal in goals.GOALS if goal.value(found["results"]) is not None or not options.only]
    print(report.plain(report.goal_rows(found["results"], titles(ORDER), shown)))
    if not (options.no_docs or options.quick or options.only or options.peers):
        write(rounded(found), DOCUMENT, PICTURES)
        say(f"written: {DOCUMENT.relative_to(ROOT)}, {PICTURES.relative_to(ROOT)}/")
    ours = goals.add_totals(run.results)["all"].get(Ours.name, {})
    return 1 if run.failures or ours.get("faults") else 0


if __name__ == "__main__":
    sys.exit(main())
