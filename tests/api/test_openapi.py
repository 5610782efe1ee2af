"""/openapi.json as programs read it: nothing refers to nothing, a client can be made of it, and what it promises is so."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from api.openapi.document import OPERATIONS
from tests.harness.processes import ROOT, Stack
from tests.support.clients import PROGRAMS
from tests.support.wire import KEY_A, Client

pytestmark = pytest.mark.timeout(300)
GENERATORS = ROOT / ".venv-generators/bin"


def program(name: str) -> str:
    if not (GENERATORS / name).exists():
        pytest.skip(f"no {GENERATORS / name}: run `make clients`")
    return str(GENERATORS / name)


@pytest.fixture(scope="module")
def document(client: Client) -> dict[str, Any]:
    found: dict[str, Any] = client.get("/openapi.json").json()
    return found


@pytest.fixture(scope="module")
def file(document: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("openapi") / "openapi.json"
    path.write_text(json.dumps(document))
    return path


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(target := value.get("$ref"), str):
            yield target
        for one in value.values():
            yield from references(one)
    elif isinstance(value, list):
        for one in value:
            yield from references(one)


def run(*command: str, directory: Path | None = None, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, "NO_COLOR": "1", **environment},
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
    return done.stdout


def test_every_reference_leads_to_something(document: dict[str, Any]) -> None:
    targets = set(references(document))
    assert len(targets) > 50
    for target in targets:
        found = document
        for name in target.removeprefix("#/").split("/"):
            found = found[name]


def test_every_route_has_a_name_of_its_own_and_says_what_it_answers(document: dict[str, Any]) -> None:
    described = {
        f"{method.upper()} {path}": one for path, ops in document["paths"].items() for method, one in ops.items()
    }
    assert set(described) == set(OPERATIONS)
    assert len({one["operationId"] for one in described.values()}) == len(described)
    for name, one in described.items():
        assert re.fullmatch(r"[a-z]+[A-Za-z]+", one["operationId"]), name
        assert one["responses"]["default"] == {"$ref": "#/components/responses/Error"}, name
        assert one["responses"]["200"]["content"], name


def test_a_server_with_keys_says_so(document: dict[str, Any], alice: Client) -> None:
    keyed = alice.get("/openapi.json").json()
    assert keyed["security"] == [{"key": []}, {"signedIn": []}]
    assert document["security"] == [{}, {"key": []}]
    assert keyed["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    assert keyed["servers"] == [{"url": "/"}]
    assert {"streamToken": []} in keyed["paths"]["/v1/streams/{generation_id}"]["get"]["security"]


def test_it_is_openapi(file: Path) -> None:
    run(program("openapi-spec-validator"), str(file))


def test_a_client_made_of_it_runs_a_chat_and_a_batch(file: Path, keyed: Stack, tmp_path: Path) -> None:
    made = tmp_path / "made"
    said = run(
        program("openapi-python-client"), "generate", "--path", str(file), "--output-path", str(made), "--meta", "none"
    )
    assert "Endpoint will not be generated" not in said, said
    found = json.loads(
        run(program("python"), str(PROGRAMS / "generated.py"), keyed.url, KEY_A, PYTHONPATH=str(tmp_path))
    )
    assert found == {
        "said": ["one two", "one two"],
        "refused": "not_found",
        "batch": ["completed", 1],
        "line": "one two",
    }


def test_no_request_that_it_allows_breaks_the_server(file: Path, keyed: Stack, tmp_path: Path) -> None:
    """Each route, with what its schema says and with what it does not; and what comes is what is described."""
    said = run(
        program("schemathesis"),
        "run",
        str(file),
        f"--url={keyed.url}",
        f"--header=Authorization: Bearer {KEY_A}",
        "--checks=not_a_server_error,response_schema_conformance,content_type_conformance,status_code_conformance",
        "--phases=fuzzing",
        "--max-examples=3",
        "--seed=1",
        "--generation-database=none",
        "--no-color",
        "--request-timeout=60",
        "--exclude-operation-id=followEvents",  # it has no end
        "--suppress-health-check=too_slow,filter_too_much",  # those are about this machine, and its own generator
        directory=tmp_path,  # it leaves a cache
    )
    count = len(OPERATIONS) - 1
    assert f"Selected: {count}/{count + 1}" in said
    assert f"Tested: {count}" in said
