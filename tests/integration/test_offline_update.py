"""An update on a stick, with every part as it is: server, repository of releases, operators' commands, agent and its update client."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from covey_agent.client import Client as Application
from covey_hil.acceptance import MODEL, settled
from covey_hil.digits.data import model_path, write_samples
from covey_hil.fleet import LocalAgent, LocalServer
from covey_hil.processes import command, wait_for
from covey_server.fleet.ports import free_port

DEVICE, TARGET = "press-7", "onnxruntime-fp32"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LocalServer]:
    made = LocalServer(tmp_path / "server", tmp_path / "server.log", port=free_port())
    made.start()
    yield made
    made.child.stop()


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[LocalAgent]:
    made = LocalAgent(DEVICE, tmp_path / DEVICE, tmp_path / "agent.log")
    yield made
    made.stop()


def run(name: str, *words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    given = {**os.environ, **environment}
    return subprocess.run(
        [command(name), *map(str, words)], capture_output=True, text=True, check=False, timeout=100, env=given
    )


def test_a_device_that_never_sees_the_server_again_is_updated(
    server: LocalServer, agent: LocalAgent, tmp_path: Path
) -> None:
    operator, stick = server.client(), tmp_path / "press-7.bundle"
    agent.enroll(server.url, operator.create_claim_token(device=DEVICE)["token"])
    calibration, evaluation, _ = write_samples(tmp_path)
    operator.push_version(
        MODEL, "1.1", model_path("1.1"), calibration=calibration, evaluation=evaluation, targets=[TARGET]
    )
    wait_for("the build", lambda: settled(operator, "1.1"), 100)
    operator.assign(DEVICE, MODEL, "1.1", TARGET, probation_s=1.0)
    made = run("covey", "device", "bundle", DEVICE, "-o", stick, "--json", **server.environment)
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["orders"] == [{"device": DEVICE, "model": MODEL}]
    server.child.stop()

    agent.start()
    wait_for("the agent", lambda: agent.status().get("running"), 30)
    done = run("covey-agent", "install", stick, "--state", agent.state)
    assert (done.returncode, done.stderr) == (0, ""), (tmp_path / "agent.log").read_text()
    assert done.stdout.splitlines()[-1] == f"{MODEL} 1.1: active"
    with Application(f"127.0.0.1:{agent.port}") as application:
        (only,) = application.metadata(MODEL)["inputs"]
        picture = np.zeros([max(int(size), 1) for size in only["shape"]], np.float32)
        assert application.infer(MODEL, picture).version == "1.1"

    # And if it does see the server again, that knows of it.
    server.start()

    def slot() -> dict[str, Any]:
        return next(iter(server.client().device(DEVICE)["models"]), {})

    wait_for("the server to hear of it", lambda: slot().get("state") == "active", 60)
    told = [report["state"] for report in reversed(server.client().device_reports(DEVICE))]
    assert told[0] == "assigned"
    assert told[-1] == "active"
    assert slot()["desired"]["state"] == "active"
