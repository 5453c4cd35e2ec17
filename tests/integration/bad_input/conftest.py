"""A real server with its build worker and a real agent, to be given bad input at the level of what a user runs.

Each bad input is one clear line and a non-zero code, or a problem document (RFC 9457). A module's tests share the server and the agent;
its last one asks whether they still do their work: a good push builds and reaches the device, the audit log is whole, and no log holds
a traceback. The rest of the table is shown elsewhere, at the same level: wrong signatures, orders that are none, truncated and corrupt
blocks, a full disk and damaged files on the device in `agent/test_agent_faults.py`; what keeps a server from starting (bad values and
addresses, broken keys, a broker that does not answer) in `test_server_process.py`; hostile bytes from devices in
`fleet/test_fleet_broker.py`.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from covey_hil.digits.data import model_path
from covey_hil.fleet import LocalAgent, LocalServer
from covey_hil.processes import command, wait_for
from covey_server.fleet.ports import free_port

MODEL, DEVICE, TARGET = "digits", "edge-1", "onnxruntime-fp32"
CAMPAIGN = """\
name: bad
model: digits
version: "1.0"
stages:
  - {name: first, percent: 100, soak: 1s}
on_breach: rollback
"""
# name: (what of a good campaign file is replaced, by what, what is said of it)
BAD_CAMPAIGNS = {
    "unknown-field": ("on_breach:", "on_breech:", "line 6: on_breech: is not a field known here"),
    "missing-field": ("model: digits\n", "", "line 1: model: is missing"),
    "no-duration": ("soak: 1s", "soak: soon", "line 5: stages[0].soak: 'soon' is not a duration"),
    "no-such-word": ("on_breach: rollback", "on_breach: hope", "line 6: on_breach: invalid enum value 'hope'"),
    "no-such-group": ("percent: 100", "group: nowhere", "line 5: stages[0].group: there is no group nowhere"),
    "no-such-version": ('"1.0"', '"9.9"', "line 3: version: there is no version 9.9 of model digits"),
    "no-such-model": ("model: digits", "model: nothing", "line 3: version: there is no version 1.0 of model nothing"),
    "bad-yaml": ("stages:", "stages: [", "line 5: not YAML: "),
    "twice": ("name: bad", "name: bad\nname: worse", "line 2: name: is given twice"),
    "empty": (CAMPAIGN, "", "the document is empty"),
}


@dataclass
class Site:
    """A server with its build worker, an agent, and a folder of files. `names` stand for themselves in the tables below."""

    server: LocalServer
    agent: LocalAgent
    folder: Path
    names: dict[str, str] = field(default_factory=dict)

    def run(
        self, *words: str, environment: dict[str, str] | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """One command to its end. `{url}` and the like in `words` are filled in."""
        filled = [word.format(**self.names) for word in words]
        return subprocess.run(
            [command(filled[0]), *filled[1:]],
            cwd=self.folder,
            env={**os.environ, "COVEY_CONFIG": str(self.folder / "no-login"), **(environment or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def covey(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.run("covey", *words, environment=self.server.environment)

    def claim_token(self, **bound_to: Any) -> str:
        return str(self.server.client().create_claim_token(**bound_to)["token"])

    def builds(self) -> list[dict[str, Any]]:
        return self.server.client().builds(None, None, None)


def line_of(done: subprocess.CompletedProcess[str], code: int, *said: str, program: str | None = None) -> str:
    """The one line of an error; checks the exit code and that there is nothing else of its kind, least of all a traceback."""
    told = f"{done.args} -> {done.returncode}\n{done.stdout}{done.stderr}"
    assert done.returncode == code, told
    assert "Traceback" not in done.stderr, told
    lines = done.stderr.splitlines()
    program = program or Path(str(done.args[0])).name
    errors = [line for line in lines if line.startswith(f"{program}: ")]
    assert len(errors) == 1, told
    assert lines[-1] == errors[0], told
    for words in said:
        assert words in errors[0], told
    return errors[0]


def only_line_of(done: subprocess.CompletedProcess[str], code: int, *said: str, program: str | None = None) -> str:
    """As `line_of`, where nothing else is on standard error either."""
    assert done.stderr.count("\n") == 1, done.stderr
    return line_of(done, code, *said, program=program)


def check_it_still_works(site: Site) -> None:
    """After all that nothing was lost. It ends the server and the agent."""
    pushed = site.covey("model", "push", MODEL, "1.1", "{other}", "--target", TARGET, "--wait")
    assert pushed.returncode == 0, pushed.stderr
    assigned = site.covey("device", "assign", DEVICE, MODEL, "1.1")
    assert assigned.returncode == 0, assigned.stderr
    url = f"http://127.0.0.1:{site.agent.port}/v2/models/{MODEL}/ready"

    def active() -> bool:
        slots = site.server.client().device(DEVICE)["models"]
        return any((slot.get("active") or {}).get("version") == "1.1" for slot in slots)

    wait_for("1.1 on the device", active, 90)
    assert httpx.get(url).status_code == 200
    built = {(one["model"], one["version"]) for one in site.builds() if one["state"] == "built"}
    assert built == {(MODEL, "1.0"), (MODEL, "1.1")}
    assert site.server.client().campaigns(10) == []
    audit = site.covey("audit", "verify")
    assert audit.returncode == 0, audit.stderr
    site.server.child.check()
    site.agent.child.check()
    assert site.agent.child.stop() == 0
    os.kill(site.server.child.pid, signal.SIGTERM)
    assert site.server.child.process.wait(30) == 0
    for log in ("server.log", "agent.log", "data/worker.log"):
        assert "Traceback" not in (site.folder / log).read_text(), log


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("bad")
    server = LocalServer(folder / "data", folder / "server.log", port=free_port())
    agent = LocalAgent(DEVICE, folder / DEVICE, folder / "agent.log", telemetry_s=1.0)
    site = Site(server, agent, folder)
    try:
        server.start()
        agent.enroll(server.url, site.claim_token(device=DEVICE))
        agent.start()
        told = json.loads((folder / "data" / "server.json").read_text())
        site.names = {
            "url": server.url,
            "address": server.url.removeprefix("http://"),
            "data": str(folder / "data"),
            "state": str(agent.state),
            "broker_port": str(told["broker"]["port"]),
            "inference_port": str(agent.port),
            "good": str(model_path("1.0")),
            "other": str(model_path("1.1")),
            "nowhere": f"http://127.0.0.1:{free_port()}",
        }
        write_files(folder)
        pushed = site.covey("model", "push", MODEL, "1.0", "{good}", "--target", TARGET, "--wait")
        assert pushed.returncode == 0, pushed.stderr
        yield site
    finally:
        agent.stop()
        server.child.stop()


def write_files(folder: Path) -> None:
    good = model_path("1.0").read_bytes()
    (folder / "truncated.onnx").write_bytes(good[: len(good) // 2])
    (folder / "text.onnx").write_text("this is no model\n")
    (folder / "pickle.pt").write_bytes(pickle.dumps({"weights": [1.0, 2.0]}))
    (folder / "empty.onnx").write_bytes(b"")
    (folder / "request.json").write_text('{"inputs": []}')
    (folder / "a-file").write_text("not a folder")
    for name, (old, new, _) in BAD_CAMPAIGNS.items():
        assert old in CAMPAIGN
        (folder / f"{name}.yaml").write_text(CAMPAIGN.replace(old, new))
