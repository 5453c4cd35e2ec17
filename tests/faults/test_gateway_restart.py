"""A gateway that is killed answers again within a second, with the last verified build; a control process that dies disturbs nothing."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time

from covey_agent.gateway.control_api import GatewayStatus
from covey_contract.lifecycle import State
from covey_hil.testing.agent_site import Site
from covey_hil.testing.made_builds import MODEL, SIZE, make_build
from covey_hil.testing.waiting import until

WITHIN_S = 1.0
QUIET_IMPORT_S = 0.3  # on two cores that do nothing else


def answer(status: GatewayStatus | None) -> float | None:
    """What the model makes of 1; None: nobody answers."""
    if status is None:
        return None
    tensor = {"name": "x", "shape": [1, SIZE], "datatype": "FP32", "data": [1.0] * SIZE}
    connection = http.client.HTTPConnection("127.0.0.1", status.http_port, timeout=5)
    try:
        connection.request("POST", f"/v2/models/{MODEL}/infer", json.dumps({"inputs": [tensor]}))
        response = connection.getresponse()
        body = response.read()
        return float(json.loads(body)["outputs"][0]["data"][0]) if response.status == 200 else None
    except OSError:
        return None
    finally:
        connection.close()


def test_a_killed_gateway_answers_again_within_a_second(site: Site) -> None:
    site.device.start()
    site.server.reached(site.server.order(make_build("1.0", 2.0)), State.ACTIVE)
    site.device.kill_gateway()
    began = time.monotonic()
    until(lambda: answer(site.device.gateway) == 2.0, "an answer")
    took = time.monotonic() - began
    # Most of it is two processes that start and the runtime's import. Where tests run beside this one, that alone is measured too.
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", "import numpy, onnxruntime"], check=True)
    busy = max(1.0, (time.monotonic() - began) / QUIET_IMPORT_S)
    assert took < WITHIN_S * busy


def test_while_control_is_dead_every_request_is_answered(site: Site) -> None:
    site.device.start()
    site.server.reached(site.server.order(make_build("1.0", 2.0)), State.ACTIVE)
    status = site.device.gateway
    site.device.kill()
    assert [answer(status) for _ in range(200)] == [2.0] * 200
    site.device.start()
    until(lambda: len(site.server.hellos) > 1, "control")
    assert [answer(status) for _ in range(50)] == [2.0] * 50
