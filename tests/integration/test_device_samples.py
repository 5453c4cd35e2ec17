"""Samples for labelling, all the way: a server process with its broker and worker, a device process with gateway and runner, an application
that asks, and an operator's command line."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from covey_agent.client import Client as Application
from covey_client.api import Client
from covey_client.samples import INDEX
from covey_hil.digits.data import load, model_path
from covey_hil.fleet import LocalAgent, LocalServer
from covey_hil.processes import command, wait_for
from covey_hil.testing.made_samples import keep
from covey_server.fleet.ports import free_port

pytestmark = pytest.mark.timeout(400)
DEVICE, TARGET = "press-7", "onnxruntime-fp32"
KEEPS = ("--capture-share", "1.0")


@dataclass
class Place:
    folder: Path
    server: LocalServer
    agent: LocalAgent
    client: Client

    def covey(self, *words: str) -> tuple[int, str, str]:
        environment = {**os.environ, **self.server.environment, "COVEY_CONFIG": str(self.folder / "config")}
        done = subprocess.run(
            [command("covey"), *words], capture_output=True, text=True, timeout=120, check=False, env=environment
        )
        return done.returncode, done.stdout, done.stderr

    def run(self, *options: str) -> None:
        """The device anew, with other options."""
        self.agent.stop()
        self.agent = agent_of(self.folder, *options)
        self.agent.start()

    def told(self) -> dict[str, Any] | None:
        """What the device says of its samples."""
        device = self.client.device(DEVICE)
        capture: dict[str, Any] | None = device["capture"] if device["online"] else None
        return capture


def agent_of(folder: Path, *options: str) -> LocalAgent:
    return LocalAgent(DEVICE, folder / DEVICE, folder / "agent.log", telemetry_s=0.5, options=options)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    settings = {"worker_targets": TARGET}
    server = LocalServer(tmp_path / "server", tmp_path / "server.log", port=free_port(), settings=settings)
    made = Place(tmp_path, server, agent_of(tmp_path, *KEEPS), Client("http://127.0.0.1:1"))
    try:
        server.start(timeout_s=120)
        made.client = server.client()
        made.agent.enroll(server.url, made.client.create_claim_token(device=DEVICE)["token"])
        yield made
    finally:
        made.agent.stop()
        server.child.stop()


def test_from_a_request_to_a_folder_that_can_be_labelled(place: Place) -> None:
    place.agent.start()
    labels = place.folder / "labels.txt"
    labels.write_text("\n".join("0123456789"))
    place.client.push_version("digits", "1.0", model_path("1.0"), labels=labels, targets=[TARGET])
    wait_for("the build", lambda: place.client.builds("digits", "1.0")[0]["state"] == "built", 120)
    place.client.assign(DEVICE, "digits", "1.0", probation_s=0)
    wait_for("the device to serve", lambda: _serves(place.client), 60)
    images, answers = itertools.cycle(load()[1].images[:6]), {}
    with Application(f"127.0.0.1:{place.agent.port}") as application:

        def asked() -> bool:
            """One more request; whether there are enough samples. Of requests within a tenth of a second one is kept."""
            image = next(images)[None]
            answers[image.tobytes()] = application.infer("digits", image)
            return len(_kept(place)) >= 6

        wait_for("samples", asked, 30)
    wait_for("the device to tell", lambda: (place.told() or {}).get("samples") == len(_kept(place)), 30)
    count = len(_kept(place))

    # The device keeps samples, and does not let them leave: nothing comes, and it is said why.
    code, _, said = place.covey("device", "samples", DEVICE, "--to", str(place.folder / "none"))
    assert (code, "--capture-send" in said, said.count("\n")) == (1, True, 1)
    assert "they stay there" in place.covey("device", "show", DEVICE)[1]
    place.run(*KEEPS, "--capture-send")
    wait_for("the device to let them leave", lambda: (place.told() or {}).get("may_leave"), 60)

    here = place.folder / "here"
    code, out, said = place.covey("device", "samples", DEVICE, "--model", "digits", "--to", str(here), "--json")
    assert code == 0, said
    told = json.loads(out)
    assert (told["items"][0]["state"], told["items"][0]["fetched"], told["new"], told["there"]) == (
        "done",
        count,
        count,
        0,
    )
    lines = [json.loads(line) for line in (here / INDEX).read_text().splitlines()]
    digest = place.client.device(DEVICE)["models"][0]["active"]["digest"]
    assert {(line["model"], line["version"], line["build"]) for line in lines} == {("digits", "1.0", digest)}
    assert (here / lines[0]["classes"]).read_text() == labels.read_text()
    found = {path.name: path.read_bytes() for path in _kept(place)}
    for line in lines:
        path = here / line["file"]
        assert path.read_bytes() == found[path.name]
    for line in lines:
        with np.load(here / line["file"], allow_pickle=False) as arrays:
            for name, scores in answers[arrays["in/image"].tobytes()].items():
                np.testing.assert_array_equal(arrays[f"out/{name}"], scores)

    # Somebody labels; the same again brings nothing twice and leaves the labels alone.
    lines[0]["label"] = 7
    (here / INDEX).write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, out, said = place.covey("device", "samples", DEVICE, "--to", str(here), "--json")
    again = json.loads(out)
    assert (code, again["items"][0]["found"], again["new"], again["there"]) == (0, 0, 0, count)
    assert json.loads((here / INDEX).read_text().splitlines()[0])["label"] == 7

    # The device is off: what the server has can still be had, and deleted.
    place.agent.stop()
    wait_for("the device to be away", lambda: not place.client.device(DEVICE)["online"], 30)
    assert place.covey("device", "samples", DEVICE)[0] == 1
    code, out, _ = place.covey("device", "samples", DEVICE, "--here", "--to", str(place.folder / "second"))
    assert (code, f"{count} new, 0 were there before" in out) == (0, True)
    code, out, _ = place.covey("device", "samples", DEVICE, "--delete")
    assert (code, out) == (0, f"{count} samples were deleted on the server\n")
    assert list((place.server.data / "samples").glob("??/*")) == []
    assert len(_kept(place)) == count
    actions = [one["action"] for one in place.client.admin.audit(action="samples.")]
    assert sorted(set(actions)) == ["samples.delete", "samples.download", "samples.fetch"]


def test_a_server_that_is_killed_in_the_middle_keeps_what_came_and_goes_on(place: Place) -> None:
    for number in range(1, 121):
        keep(place.folder / DEVICE / "capture", number, count=60_000)
    place.run(*KEEPS, "--capture-send")
    wait_for("the device", lambda: (place.told() or {}).get("may_leave"), 60)
    number = place.client.samples.fetch(DEVICE)["items"][0]["id"]
    wait_for("some samples", lambda: place.client.samples.fetch_state(number)["fetched"] >= 10, 60, every_s=0.02)
    place.server.child.kill()
    place.server.start(timeout_s=120)
    broken = place.client.samples.fetch_state(number)
    assert (broken["state"], broken["reason"]) == ("failed", "stopped")
    held = place.client.samples.list(DEVICE)
    assert 10 <= len(held) < 100
    files = {path.name for path in (place.server.data / "samples").glob("??/*")}
    assert files == {one["sha256"] for one in held}
    assert list((place.server.data / "samples" / "incoming").iterdir()) == []
    wait_for("the device to be back", lambda: (place.told() or {}).get("may_leave"), 60)
    code, out, said = place.covey(
        "device", "samples", DEVICE, "--limit", "200", "--to", str(place.folder / "to"), "--json"
    )
    assert code == 0, said
    told = json.loads(out)
    assert (told["items"][0]["fetched"], told["new"]) == (120 - len(held), 120)


def _serves(client: Client) -> bool:
    return any((slot.get("active") or {}).get("version") == "1.0" for slot in client.device(DEVICE)["models"])


def _kept(place: Place) -> list[Path]:
    return sorted((place.folder / DEVICE / "capture").rglob("*.npz"))
