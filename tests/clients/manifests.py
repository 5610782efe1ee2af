"""Looks at manifests as a cluster would, without one: `render` what a chart makes of values, `check` what stdin has.

    render CHART [VALUES.yaml] [--set JSON]   # Helm's own engine; its lint, and the values' schema, too
    check KUBERNETES_VERSION < manifests      # each against its schema, strictly; KEDA's against the models of its CRDs

.venv-deploy has what it needs, and it connects to nothing. Prints the manifests; on stderr a line for each mistake.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml


def render(chart: Path, values: list[Path], changes: dict[str, Any]) -> list[str]:
    import helm_python as helm

    found: dict[str, Any] = changes
    for path in values:
        found = _over(yaml.safe_load(path.read_text()), found)
    loaded = helm.Chart.load(str(chart))
    try:
        loaded.validate_schema(found)
        rendered = loaded.render(found, name="streamspool", namespace="example")
    except helm.HelmError as error:
        return [str(error)]
    for name, text in sorted(rendered.items()):
        if name.endswith(".yaml") and text.strip():
            print(f"---\n# {name}\n{text}")
    report = helm.lint(str(chart))
    return [str(one) for one in [*report["errors"], *(one for one in report["messages"] if one["severity"] > 1)]]


def check(version: str) -> list[str]:
    import kubernetes_validate
    from cloudcoil.models.keda.v1alpha1 import ScaledObject

    wrong = []
    for manifest in filter(None, yaml.safe_load_all(sys.stdin)):
        kind, name = manifest["kind"], manifest["metadata"]["name"]
        try:
            if manifest["apiVersion"].startswith("keda.sh/"):
                _unknown(manifest["spec"], ScaledObject.model_validate(manifest).model_dump(by_alias=True)["spec"])
            else:
                kubernetes_validate.validate(manifest, version, strict=True)
        except (ValueError, kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
            wrong.append(f"{kind} {name}: {error}")
        print(f"{kind} {name}")
    return wrong


def _over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Values over values, as Helm puts files and --set on each other."""
    both = {
        name: _over(below[name], above[name]) for name in below.keys() & above.keys() if isinstance(above[name], dict)
    }
    return {**below, **above, **both}


def _unknown(said: Any, known: Any) -> None:
    """Raises ValueError for what the model did not take: a field that is misspelt."""
    if isinstance(said, dict):
        for name, value in said.items():
            if name not in known:
                raise ValueError(f"{name} is no field")
            _unknown(value, known[name])
    elif isinstance(said, list):
        for one, other in zip(said, known, strict=True):
            _unknown(one, other)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    rendering = commands.add_parser("render")
    rendering.add_argument("chart", type=Path)
    rendering.add_argument("values", nargs="*", type=Path)
    rendering.add_argument("--set", default="{}")
    commands.add_parser("check").add_argument("version")
    asked = parser.parse_args()
    rendered = asked.command == "render"
    wrong = render(asked.chart, asked.values, json.loads(asked.set)) if rendered else check(asked.version)
    for line in wrong:
        print(line, file=sys.stderr)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
