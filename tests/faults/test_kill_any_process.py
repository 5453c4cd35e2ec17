"""Whatever single process is killed in the middle of a deployment, the fleet ends in the right state, and nothing lies about it.

A real server, broker, build worker and agent; SIGKILL; what a service manager would restart is restarted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from covey_hil.acceptance import MODEL, settled
from covey_hil.digits.data import model_path, write_samples
from covey_hil.fleet import LocalAgent, LocalServer
from covey_hil.processes import descendants, kill_pid, wait_for
from covey_server.fleet.ports import free_port

pytestmark = pytest.mark.timeout(240)

TARGET = "onnxruntime-fp32"
DEVICE = "d1"
PROBATION_S = 2.0


@dataclass
class Fleet:
    server: LocalServer
    agent: LocalAgent

    def slot(self) -> dict[str, Any]:
        slots = self.server.client().device(DEVICE)["models"]
        return next((slot for slot in slots if slot["model"] == MODEL), {})

    def serves(self, version: str) -> bool:
        slot = self.slot()
        return (slot.get("active") or {}).get("version") == version and slot.get("state") == "active"


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    # Slow enough that a download lasts while a process is killed.
    server = LocalServer(
        folder / "server", folder / "server.log", port=free_port(), settings={"block_device_bytes_per_s": "40000"}
    )
    agent = LocalAgent(DEVICE, folder / DEVICE, folder / "agent.log", telemetry_s=1.0)
    try:
        server.start()
        client = server.client()
        agent.enroll(server.url, client.create_claim_token(device=DEVICE)["token"])
        agent.start()
        calibration, evaluation, labels = write_samples(folder)
        for version in ("1.0", "1.1"):
            client.push_version(
                MODEL,
                version,
                model_path(version),
                calibration=calibration,
                evaluation=evaluation,
                labels=labels,
                targets=[TARGET],
            )
        wait_for("the builds", lambda: settled(client, "1.0") and settled(client, "1.1"), 120, every_s=0.5)
        client.assign(DEVICE, MODEL, "1.0", TARGET, probation_s=PROBATION_S)
        wait_for("1.0 to be active", lambda: Fleet(server, agent).serves("1.0"), 60)
        yield Fleet(server, agent)
    finally:
        agent.stop()
        server.child.stop()


def kill_server(fleet: Fleet) -> None:
    fleet.server.child.kill()
    fleet.server.start()


def kill_broker(fleet: Fleet) -> None:
    pid = fleet.server.broker_pid
    assert pid is not None
    kill_pid(pid)


def kill_control(fleet: Fleet) -> None:
    fleet.agent.kill_control()
    fleet.agent.start()


def kill_gateway(fleet: Fleet) -> None:
    pid = fleet.agent.gateway_pid
    assert pid is not None
    kill_pid(pid)


def kill_runner(fleet: Fleet) -> None:
    pid = fleet.agent.gateway_pid
    assert pid is not None
    runners = descendants(pid)
    assert runners
    kill_pid(runners[0])


def power_cut(fleet: Fleet) -> None:
    fleet.agent.power_off()
    fleet.agent.start()


@pytest.mark.parametrize(
    "kill",
    [kill_server, kill_broker, kill_control, kill_gateway, kill_runner, power_cut],
    ids=lambda kill: kill.__name__,
)
def test_the_fleet_ends_in_the_right_state(fleet: Fleet, kill: Callable[[Fleet], None]) -> None:
    version = "1.1" if fleet.serves("1.0") else "1.0"
    client = fleet.server.client()
    counter = client.device(DEVICE)["counter"]
    client.assign(DEVICE, MODEL, version, TARGET, probation_s=PROBATION_S)
    wait_for(
        "the deployment to begin",
        lambda: fleet.slot().get("state") not in {None, "active"} or fleet.serves(version),
        30,
        every_s=0.02,
    )
    kill(fleet)
    wait_for(f"{version} to be active after {kill.__name__}", lambda: fleet.serves(version), 60)
    assert client.device(DEVICE)["counter"] > counter
    assert client.admin.verify_audit()["whole"]


def test_a_dead_runner_is_replaced(fleet: Fleet) -> None:
    """Outside any deployment: the gateway starts it again by itself."""
    before = fleet.agent.gateway_pid
    assert before is not None
    old = set(descendants(before))
    kill_runner(fleet)
    wait_for("a new runner", lambda: set(descendants(before)) - old, 30)
    assert fleet.agent.gateway_pid == before
