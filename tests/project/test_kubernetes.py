"""deploy/kubernetes and deploy/helm: what a cluster would be given, looked at without one.

Kustomize is kubectl's, where that is installed; where it is not, each file is judged alone. Helm's engine and the schemas
are in .venv-deploy. What these cannot tell (that images are pulled, probes answer, pods are moved) docs/OPERATIONS.md says.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from shared import __version__
from shared.config.settings import Settings, variable
from shared.lib import telemetry
from tests.harness.processes import ROOT
from worker.providers.registry import VENDORS

KUBERNETES, CHART = ROOT / "deploy/kubernetes", ROOT / "deploy/helm/streamspool"
MANAGED = ROOT / "deploy/helm/managed-redis.yaml"
KUSTOMIZATIONS = sorted(path.parent.relative_to(KUBERNETES) for path in KUBERNETES.rglob("kustomization.yaml"))
BUILT = [path for path in KUSTOMIZATIONS if path.parts[0] != "components"]
JUDGE = [str(ROOT / ".venv-deploy/bin/python"), str(ROOT / "tests/clients/manifests.py")]
NAMES = {variable(name) for name in Settings.model_fields} | {name for one in VENDORS for name in one.key_variables}
VERSIONS = ("1.27", "1.37")
"""The oldest and the newest that manifests are judged by; Chart.yaml names the first."""
PAUSE_S = 5.0

pytestmark = pytest.mark.timeout(600)  # programs are started, some times in one test


def judge(*words: str, given: str = "") -> subprocess.CompletedProcess[str]:
    if not Path(JUDGE[0]).exists():
        pytest.skip("no .venv-deploy: run `make clients`")
    return subprocess.run([*JUDGE, *words], input=given, capture_output=True, text=True, timeout=300, check=False)


def kustomized(directory: Path) -> str:
    """What kubectl makes of it, or else the files that it names, one behind the other."""
    if (program := shutil.which("kubectl")) is not None:
        done = subprocess.run([program, "kustomize", str(directory)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout
    return "\n---\n".join(path.read_text() for path in _resources(directory))


def _resources(directory: Path) -> Iterator[Path]:
    found = yaml.safe_load((directory / "kustomization.yaml").read_text())
    for name in [*found.get("resources", ()), *found.get("components", ())]:
        path = directory / name
        yield from _resources(path) if path.is_dir() else [path]


def chart(*values: Path, **changes: Any) -> str:
    """What Helm makes of it."""
    done = judge("render", str(CHART), *map(str, values), "--set", json.dumps(changes))
    assert done.returncode == 0, done.stderr
    return done.stdout


def taken(text: str, version: str) -> None:
    """Each manifest follows its schema."""
    done = judge("check", version, given=text)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == sum(one is not None for one in yaml.safe_load_all(text))


def of(text: str, kind: str) -> dict[str, dict[str, Any]]:
    """By the last word of their names: `api`, `worker`, `streamspool`."""
    found = [one for one in yaml.safe_load_all(text) if one is not None and one["kind"] == kind]
    return {one["metadata"]["name"].rpartition("-")[2]: one for one in found}


EVERYTHING = {"api": {"autoscaling": {"enabled": True}}, "worker": {"keda": {"enabled": True}}}


@cache
def everything() -> dict[str, str]:
    """All that is shipped, by what it is: the base, the example, the chart as it is, and with all its options."""
    found = {str(path): kustomized(KUBERNETES / path) for path in BUILT}
    return {**found, "chart": chart(), "chart with options": chart(MANAGED, **EVERYTHING)}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", BUILT, ids=str)
def test_a_cluster_would_take_it(path: Path, version: str) -> None:
    taken(kustomized(KUBERNETES / path), version)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_cluster_would_take_what_the_chart_makes(version: str) -> None:
    taken(chart(), version)
    taken(chart(MANAGED, **EVERYTHING), version)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("livenessProbe", "livenesProbe"),
        ("maxUnavailable: 1", "maxUnavailable: [1]"),
        ("terminationGracePeriodSeconds: 45", "terminationGracePeriodSeconds: soon"),
        ("cooldownPeriod", "coolDownPeriod"),
        ("triggers:", "trigger:"),
        ("averageValue", "averageVale"),
    ],
)
def test_what_is_misspelt_is_found(old: str, new: str) -> None:
    files = "\n---\n".join(path.read_text() for path in _resources(KUBERNETES / "overlays/example"))
    assert old in files
    done = judge("check", VERSIONS[1], given=files.replace(old, new))
    assert done.returncode == 1
    assert done.stderr


@pytest.mark.parametrize(
    "changes",
    [
        {"api": {"replicas": "two"}},
        {"workers": {}},
        {"image": {"repository": ""}},
        {"settings": {"lower": "x"}},
        {"worker": {"keda": {"prometheus": "prometheus:9090"}}},
    ],
    ids=str,
)
def test_the_chart_refuses_values_that_mean_nothing(changes: dict[str, Any]) -> None:
    done = judge("render", str(CHART), "--set", json.dumps(changes))
    assert done.returncode == 1
    assert done.stdout == ""


def test_pods_are_probed_where_they_answer_and_know_only_settings_that_there_are() -> None:
    for what, text in everything().items():
        deployments = of(text, "Deployment")
        assert set(deployments) == {"api", "worker"}, what
        for name, path, port in (("api", "/readyz?for=serve", 8000), ("worker", "/readyz", 9100)):
            (container,) = deployments[name]["spec"]["template"]["spec"]["containers"]
            (open_port,) = container["ports"]
            assert open_port["containerPort"] == port
            assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": open_port["name"]}
            assert container["readinessProbe"]["httpGet"] == {"path": path, "port": open_port["name"]}
            assert {one["name"] for one in container["env"]} <= NAMES
            assert container["args"] == [name]
        assert {one["name"]: one["value"] for one in container["env"]}["STREAMSPOOL_WORKER_METRICS_PORT"] == "9100"
        (service,) = of(text, "Service").values()
        labels = deployments["api"]["spec"]["template"]["metadata"]["labels"]
        assert service["spec"]["selector"].items() <= labels.items()


def test_pods_have_time_to_drain_and_a_node_takes_one_at_a_time() -> None:
    for what, text in everything().items():
        settings = next(iter(of(text, "ConfigMap").values()))["data"]
        assert set(settings) <= NAMES, what
        for name, deployment in of(text, "Deployment").items():
            template = deployment["spec"]["template"]
            (container,) = template["spec"]["containers"]
            told = {one["name"]: one["value"] for one in container["env"]}
            drain_s = float(told.get("STREAMSPOOL_DRAIN_S") or settings["STREAMSPOOL_DRAIN_S"])
            pause = container.get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
            assert pause == (["sleep", f"{PAUSE_S:g}"] if name == "api" else [])
            spare_s = template["spec"]["terminationGracePeriodSeconds"] - drain_s - (PAUSE_S if pause else 0)
            assert spare_s >= 10, f"{what}: {name}"
            budget = of(text, "PodDisruptionBudget")[name]["spec"]
            assert budget["maxUnavailable"] == 1
            assert budget["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()


def test_pods_may_do_nothing_and_only_workers_have_provider_keys() -> None:
    for what, text in everything().items():
        for name, deployment in of(text, "Deployment").items():
            pod = deployment["spec"]["template"]["spec"]
            (container,) = pod["containers"]
            assert pod["securityContext"]["runAsNonRoot"] is True
            assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            secrets = {one["secretRef"]["name"] for one in container["envFrom"] if "secretRef" in one}
            assert ("streamspool-providers" in secrets) is (name == "worker"), what


def test_what_scales_is_not_counted_by_the_deployment_and_asks_for_figures_that_there_are() -> None:
    for what in ("overlays/example", "chart with options"):
        text = everything()[what]
        if what == "chart with options" or shutil.which("kubectl"):
            assert all("replicas" not in one["spec"] for one in of(text, "Deployment").values()), what
        (pods,) = of(text, "HorizontalPodAutoscaler").values()
        (jobs,) = of(text, "ScaledObject").values()
        deployments = {one["metadata"]["name"] for one in of(text, "Deployment").values()}
        assert pods["spec"]["scaleTargetRef"]["name"] in deployments
        assert jobs["spec"]["scaleTargetRef"]["name"] in deployments
        (trigger,) = jobs["spec"]["triggers"]
        known = {family.name for gauge in (telemetry.WAITING, telemetry.IN_PLACES) for family in gauge.describe()}
        assert set(re.findall(r"streamspool_\w+", trigger["metadata"]["query"])) == known
        concurrency = Settings.model_fields["worker_concurrency"].default
        assert trigger["metadata"]["threshold"] == str(concurrency * 4 // 5)
        # While Redis is away there are no figures; by default KEDA takes that for 0, and ends workers.
        assert trigger["metadata"]["ignoreNullValues"] == "false"
        assert jobs["spec"]["fallback"]["replicas"] >= jobs["spec"]["minReplicaCount"]


def test_a_managed_redis_has_its_authority_in_every_pod() -> None:
    for what in ("overlays/example", "chart with options"):
        if what != "chart with options" and not shutil.which("kubectl"):
            continue
        for deployment in of(everything()[what], "Deployment").values():
            pod = deployment["spec"]["template"]["spec"]
            assert {"name": "redis-ca", "configMap": {"name": "redis-ca"}} in pod["volumes"]
            mounts = {one["name"]: one["mountPath"] for one in pod["containers"][0]["volumeMounts"]}
            assert set(mounts) == {one["name"] for one in pod["volumes"]}
            assert mounts["redis-ca"] == "/etc/redis"


def test_they_are_of_this_version() -> None:
    about = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert (about["version"], about["appVersion"]) == (__version__, __version__)
    assert about["kubeVersion"] == f">={VERSIONS[0]}.0-0"
    example = yaml.safe_load((KUBERNETES / "overlays/example/kustomization.yaml").read_text())
    assert [one["newTag"] for one in example["images"]] == [__version__]
