"""The whole API under what nobody would send on purpose, drawn from its own OpenAPI document: no answer is a server error,
and every answer is of a type and shape that the document tells of.

By an administrator, so that nothing hides behind a 403; half of the names are such that exist. A run draws a few requests for
each operation; `COVEY_FUZZ_EXAMPLES=200 ./dev pytest tests/integration/test_openapi_fuzz.py` draws more.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, response_schema_conformance

from covey_contract.building import BuildReport, Outcome
from covey_contract.facts import Facts, RuntimeFact
from covey_hil.testing.rows import add_build, add_version
from covey_profiles import load_profiles, match
from covey_server.app import build_services
from covey_server.db.tables import Device, Reported
from covey_server.routes import application
from covey_server.services import Services
from covey_server.settings import Settings

EXAMPLES = int(os.environ.get("COVEY_FUZZ_EXAMPLES", "5"))
SETTINGS = {
    "local-worker": "false",
    "command-wait-s": "0.1",
    "webhook-timeout-s": "0.5",
    "webhook-private": "true",
    "enrol-per-minute": "100000",
}
# A login is work on purpose, and a long run makes many of them.
pytestmark = pytest.mark.timeout(120 + 10 * EXAMPLES)
CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance]
CAMPAIGN = """\
name: digits-1.1
model: digits
version: "1.1"
stages:
  - {name: canary, group: line-a, soak: 15s}
  - {name: rest, percent: 100}
gates:
  install_failures: {max_count: 1}
"""
# What exists, by the name of the path's parameter and by what the path is about.
NAMES: dict[str, dict[str, list[object]]] = {
    "/devices": {"device": ["press-1", "press-2"]},
    "/groups": {"name": ["line-a", "all"]},
    "/models": {"model": ["digits"], "version": ["1.1"]},
    "/builds": {"build_id": [1, 2, 3]},
    "/jobs": {"job_id": [1, 2, 3]},
    "/campaigns": {"name": ["digits-1.1"]},
    "/people": {"name": ["anna"]},
    "/tokens": {"name": ["ci"]},
    "/webhooks": {"name": ["chat"]},
    "/deliveries": {"number": [1]},
    "/sample-fetches": {"fetch": [1]},
}

schema = schemathesis.openapi.from_dict(application().openapi())


@schemathesis.serializer("application/offset+octet-stream")
def piece(_: Any, value: Any) -> bytes:
    """A piece of an upload is bytes, whatever was drawn."""
    return value if isinstance(value, bytes) else repr(value).encode()


@schema.hook
def map_path_parameters(context: Any, path_parameters: dict[str, Any] | None) -> dict[str, Any] | None:
    """Half of the names are such that exist; which half follows from what was drawn."""
    path = context.operation.path.removeprefix("/api/v1")
    known = next((names for start, names in NAMES.items() if path.startswith(start)), {})
    for name, drawn in (path_parameters or {}).items():
        lot = zlib.crc32(repr(drawn).encode())
        if path_parameters is not None and name in known and lot % 2:
            path_parameters[name] = known[name][lot // 2 % len(known[name])]
    return path_parameters


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A whole server with its broker, in a process of its own: its address and an administrator's token."""
    data = tmp_path_factory.mktemp("fuzz") / "data"
    services = build_services(Settings(data=data))
    _populate(services)
    services.database.close()
    command: list[str | Path] = [
        Path(sys.executable).with_name("covey-server"),
        "run",
        "--data",
        data,
        "--listen",
        "127.0.0.1:0",
    ]
    command += [word for name, value in SETTINGS.items() for word in (f"--{name}", value)]
    with (data / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    told = data / "server.json"
    deadline = time.monotonic() + 90
    while not told.exists():
        assert process.poll() is None, (data / "log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    url, token = json.loads(told.read_text())["url"], (data / "admin-token").read_text().strip()
    _ask(url, token)
    yield url, token
    assert process.poll() is None, "the server did not survive it"
    process.terminate()
    assert process.wait(30) == 0


def _populate(services: Services) -> None:
    """Two devices that run one version, and a newer one built in two targets and refused in another."""
    runtimes = (
        RuntimeFact(name="onnxruntime", version="1.31.1"),
        RuntimeFact(name="openvino", version="2026.4.1", devices=("CPU",)),
    )
    facts = Facts(
        architecture="x86_64", cpu_cores=4, memory_mb=8000, libc="glibc 2.36", runtimes=runtimes, simulated=True
    )
    profile = match(facts, load_profiles()).profile
    with services.database.session() as session:
        for name in ("1.0", "1.1"):
            version = add_version(session, name)
            for target, state in (
                ("onnxruntime-fp32", "built"),
                ("openvino-fp16", "built"),
                ("openvino-int8", "refused"),
            ):
                report = BuildReport(target=target, outcome=Outcome(state), reason="" if state == "built" else "worse")
                digest = f"{zlib.crc32(f'{name} {target}'.encode()):064x}" if state == "built" else None
                add_build(session, version, digest, target=target, state=state, report=msgspec.to_builtins(report))
        session.flush()
        running = f"{zlib.crc32(b'1.0 onnxruntime-fp32'):064x}"
        for name in ("press-1", "press-2"):
            session.add(
                Device(
                    id=name,
                    profile=None if profile is None else profile.id,
                    simulated=True,
                    facts=msgspec.to_builtins(facts),
                    facts_digest=facts.digest(),
                    labels={"line": "a"},
                    enrolled_ms=1,
                    online=True,
                    resources={"capture": {"share": 0.5, "limit_mb": 200.0, "may_leave": True}},
                )
            )
            session.flush()
            session.add(Reported(device=name, model="digits", active=running, updated_ms=1))


def _ask(url: str, token: str) -> None:
    """What the API itself can make."""
    with httpx.Client(base_url=f"{url}/api/v1", headers={"Authorization": f"Bearer {token}"}) as client:
        for method, path, body in (
            ("PUT", "/groups/line-a", {"devices": ["press-1"]}),
            ("POST", "/people", {"name": "anna", "role": "operator"}),
            ("POST", "/tokens", {"name": "ci", "role": "viewer"}),
            ("POST", "/webhooks", {"name": "chat", "url": "http://127.0.0.1:9/"}),
            ("POST", "/webhooks/chat/test", {}),
            ("POST", "/sample-fetches", {"device": "press-1"}),
        ):
            answer = client.request(method, path, json=body)
            assert answer.is_success, answer.text
        answer = client.post("/campaigns", content=CAMPAIGN, headers={"Content-Type": "application/yaml"})
        assert answer.is_success, answer.text


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
    derandomize=True,
)
def test_no_request_is_a_server_error(case: schemathesis.Case[Any], server: tuple[str, str]) -> None:
    url, token = server
    response = case.call(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=30)
    # Nobody is there to answer a command: that is no fault of the server, and it says so.
    silent = response.status_code == 503 and response.json()["code"] == "no_reply"
    case.validate_response(response, checks=CHECKS[1:] if silent else CHECKS)
