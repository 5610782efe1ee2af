"""Peers, installed by name into `.bench/peers`: nothing outside it is changed, and no right is needed.

Debian's packages are downloaded and unpacked, not installed: no service starts. Versions are pinned where the registry
keeps old ones; what was measured is written into the report (`versions`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.bench.load import ROOT, WORK
from tests.bench.machine import CannotMeasure

PEERS = WORK / "peers"
DEBIAN, LITELLM, NODE, PORTKEY = PEERS / "debian", PEERS / "litellm", PEERS / "node", PEERS / "portkey"
NGINX, MODULES = "usr/sbin/nginx", "usr/lib/nginx/modules"
NCHAN = f"{MODULES}/ngx_nchan_module.so"

DEBS = ("nginx", "nginx-light", "libnginx-mod-nchan")
PIP = "litellm[proxy]==1.106.2"
NPM = {"@durable-streams/server": "0.3.7", "redis": "6.3.1", "resumable-stream": "2.2.13"}
NPM_PORTKEY = {"@portkey-ai/gateway": "1.15.2"}
OVERRIDES = {"hono": "4.9.7", "@hono/node-server": "1.14.0"}
"""With the newest of these, which its ranges allow, Portkey answers every request with 500."""


def debian() -> None:
    """nginx with nchan, unless the machine has them."""
    if not _nginx_root():
        _need("apt-get", "dpkg")
        archives = PEERS / "debs"
        (archives / "partial").mkdir(parents=True, exist_ok=True)
        options = [
            "-o",
            "Debug::NoLocking=1",
            "-o",
            f"Dir::Cache::archives={archives}",
            "-y",
            "--no-install-recommends",
        ]
        _run(["apt-get", "-qq", *options, "--reinstall", "--download-only", "install", *DEBS])
        for package in sorted(archives.glob("*.deb")):
            _run(["dpkg", "-x", str(package), str(DEBIAN)])


def litellm() -> None:
    if not (LITELLM / "bin/litellm").exists():
        if uv := shutil.which("uv"):
            _run([uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, str(LITELLM)])
            _run([uv, "pip", "install", "--quiet", "--python", str(LITELLM / "bin/python"), PIP])
        else:
            _run([sys.executable, "-m", "venv", str(LITELLM)])
            _run([str(LITELLM / "bin/python"), "-m", "pip", "install", "--quiet", PIP])


def node() -> None:
    """resumable-stream and durable-streams."""
    _npm(NODE, NPM)


def portkey() -> None:
    _npm(PORTKEY, NPM_PORTKEY, OVERRIDES)


def _nginx_root() -> Path | None:
    return next((root for root in (Path("/"), DEBIAN) if (root / NGINX).exists() and (root / NCHAN).exists()), None)


def nginx() -> list[str]:
    """The command that runs it. Unpacked, nchan wants a directory of Debian's that is not there: it gets one of its own,
    in a mount namespace, for which it takes root."""
    root = _nginx_root()
    assert root
    if root == Path("/") or Path("/var/lib/nginx").exists():
        return [str(root / NGINX)]
    if os.geteuid():
        raise CannotMeasure("nginx with nchan: run as root, or apt install nginx-light libnginx-mod-nchan")
    return [
        "unshare",
        "--mount",
        "sh",
        "-c",
        'mount -t tmpfs none /var/lib && mkdir /var/lib/nginx && exec "$@"',
        "sh",
        str(root / NGINX),
    ]


def nginx_modules() -> Path:
    root = _nginx_root()
    assert root
    return root / MODULES


def versions() -> dict[str, str]:
    """What is there, by the names of the packages."""
    found: dict[str, str] = {}
    for path in sorted((PEERS / "debs").glob("*.deb")):
        name, version, _ = path.name.replace("%3a", ":").split("_")
        if name in ("nginx", "libnginx-mod-nchan"):
            found[name] = version
    for path in LITELLM.glob("lib/python*/site-packages/litellm-*.dist-info"):
        found["litellm"] = path.name.split("-")[1].removesuffix(".dist")
    for directory, names in ((NODE, NPM), (PORTKEY, NPM_PORTKEY)):
        for name in names:
            package = directory / "node_modules" / name / "package.json"
            if package.exists():
                found[name] = json.loads(package.read_text())["version"]
    if program := shutil.which("node"):
        found["node"] = _run([program, "--version"]).strip().lstrip("v")
    return found


def library_path() -> str:
    """Where unpacked Debian packages keep their libraries."""
    return ":".join(str(path) for path in DEBIAN.glob("usr/lib/*-linux-gnu*"))


def _npm(directory: Path, packages: Mapping[str, str], overrides: Mapping[str, str] | None = None) -> None:
    if all((directory / "node_modules" / name).exists() for name in packages):
        return
    _need("node", "npm")
    directory.mkdir(parents=True, exist_ok=True)
    package = {"private": True, "type": "module", "dependencies": dict(packages), "overrides": dict(overrides or {})}
    (directory / "package.json").write_text(json.dumps(package))
    _run(["npm", "install", "--silent", "--no-audit", "--no-fund"], directory)


def _need(*programs: str) -> None:
    missing = [name for name in programs if not shutil.which(name)]
    if missing:
        raise CannotMeasure(f"not on PATH: {', '.join(missing)}")


def _run(command: list[str], cwd: Path = ROOT) -> str:
    done = subprocess.run(command, cwd=cwd, check=False, capture_output=True, text=True)
    if done.returncode:
        raise CannotMeasure(
            f"{re.sub(str(ROOT), '.', ' '.join(command[:3]))} … failed: {(done.stderr or done.stdout)[-600:]}"
        )
    return done.stdout
