"""An agent as a whole: it says hello, fetches, serves, swaps, goes back, reports, obeys commands."""

from __future__ import annotations

import json
import re
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from covey_contract.envelope import encode_envelope
from covey_contract.lifecycle import State
from covey_contract.messages import COMMAND_TYPE, Command, CommandKind, Probation
from covey_contract.reasons import Reason
from covey_contract.signing import seal
from covey_contract.topics import Down
from covey_hil.testing.agent_site import Site
from covey_hil.testing.made_builds import MadeBuild

Make = Callable[..., MadeBuild]
Wait = Callable[..., Any]

WHOLE_LIFE = [
    State.ASSIGNED,
    State.FETCHING,
    State.VERIFYING,
    State.STAGED,
    State.WARMING,
    State.PROBATION,
    State.ACTIVE,
]


def test_a_deployments_whole_life_swap_and_return(site: Site, make: Make, wait_for: Wait) -> None:
    server, device = site.server, site.device
    one, two = make("1.0", 2.0, filler=300_000), make("1.1", 3.0)
    device.start()
    hello = wait_for(lambda: server.hellos, "the hello")[0]
    assert (hello.last_counter, hello.models, hello.last_exit) == (0, (), Reason.STARTED)

    first = server.order(one)
    report = server.reached(first, State.ACTIVE)
    assert server.states(first) == WHOLE_LIFE
    assert hello.last_seq is not None
    assert hello.last_seq < report.seq
    assert report.bytes_fetched == sum(map(len, one.contents))
    assert device.infer(5.0) == 10.0

    second = server.order(two)
    assert server.reached(second, State.ACTIVE).previous == one.digest
    assert device.infer(5.0) == 15.0

    # The retained build needs no block.
    before = server.sent.total()
    back = server.order(one)
    assert server.reached(back, State.ACTIVE).bytes_fetched == 0
    assert server.sent.total() == before
    assert device.infer(5.0) == 10.0

    # The same build again is nothing new.
    again = server.order(one)
    server.reached(again, State.ACTIVE)
    assert server.states(again) == [State.ASSIGNED, State.ACTIVE]

    gone = server.remove(one)
    server.reached(gone, State.REMOVED)
    wait_for(lambda: device.serving is None, "the model to be gone")

    wait_for(lambda: server.telemetry, "telemetry")
    assert server.telemetry[-1].resources is not None
    assert device.stop() == 0
    wait_for(lambda: device.gateway is None, "the gateway to end with the agent")


def test_a_device_with_memory_for_one_build_swaps_in_place(site: Site, make: Make, wait_for: Wait) -> None:
    server, device = site.server, site.device
    one, two, three = make("1.0", 2.0), make("1.1", 3.0), make("1.2", 4.0)
    device.start("--swap", "sequential")
    for build in (one, two):
        server.reached(server.order(build), State.ACTIVE)
    assert device.infer(5.0) == 15.0
    assert "in place of the build that serves" in device.log()
    # In probation there is one runner; when it dies the build before is started again, and both sides know.
    order = server.order(three, probation=Probation(seconds=60))
    server.reached(order, State.PROBATION)
    status = wait_for(lambda: device.serving == three.digest and device.gateway, "the switch")
    (runner,) = status.models[0].runners
    psutil.Process(runner.pid).kill()
    report = server.reached(order, State.ROLLED_BACK)
    assert (report.reason, report.previous) == (Reason.RUNNER_CRASHED, two.digest)
    assert device.infer(5.0) == 15.0


def test_three_builds_leave_only_two_on_disk(site: Site, make: Make) -> None:
    site.device.start()
    builds = [make(f"1.{n}", 1.0 + n, filler=100_000) for n in range(3)]
    for build in builds:
        site.server.reached(site.server.order(build), State.ACTIVE)
    kept = {path.name for path in (site.device.state / "builds").iterdir()}
    assert kept == {builds[1].digest, builds[2].digest}
    blobs = {path.name for path in (site.device.state / "blobs").iterdir()}
    assert blobs == {entry.sha256 for build in builds[1:] for entry in build.manifest.files}
    assert all(path.stat().st_mode & 0o222 == 0 for path in (site.device.state / "blobs").iterdir())


def test_a_build_that_cannot_load_leaves_the_old_one_serving(site: Site, make: Make) -> None:
    good, bad = make("1.0", 2.0), make("1.1", 3.0, content=b"this is no model")
    site.device.start()
    site.server.reached(site.server.order(good), State.ACTIVE)
    report = site.server.reached(site.server.order(bad), State.FAILED)
    assert report.reason is Reason.LOAD_FAILED
    assert report.previous == good.digest
    assert site.device.infer(1.0) == 2.0


def test_a_runner_that_dies_in_probation_is_taken_back(site: Site, make: Make, wait_for: Wait) -> None:
    good, bad = make("1.0", 2.0), make("1.1", 3.0)
    device, server = site.device, site.server
    device.start()
    server.reached(server.order(good), State.ACTIVE)
    order = server.order(bad, probation=Probation(seconds=30))
    server.reached(order, State.PROBATION)
    status = wait_for(lambda: device.serving == bad.digest and device.gateway, "the switch")
    # Killed while the server is gone: the device goes back by itself, and tells later.
    runner = next(one for one in status.models[0].runners if one.build == bad.digest)
    site.broker.stop()
    psutil.Process(runner.pid).kill()
    wait_for(lambda: device.serving == good.digest, "the way back")

    def booked() -> bool:
        deployment = device.book.models["scale"].deployment
        return deployment is not None and deployment.state is State.ROLLED_BACK

    wait_for(booked, "the book to know")
    assert device.infer(1.0) == 2.0
    site.broker.start()
    report = server.reached(order, State.ROLLED_BACK)
    assert report.reason is Reason.RUNNER_CRASHED
    assert report.previous == good.digest


def test_a_newer_order_supersedes_one_that_is_on_its_way(site: Site, make: Make) -> None:
    server = site.server
    slow, quick = make("1.0", 2.0, filler=3_000_000), make("1.1", 3.0)
    server.block_budget = 20
    site.device.start()
    first = server.order(slow)
    server.reached(first, State.FETCHING)
    server.block_budget = None
    second = server.order(quick)
    server.reached(second, State.ACTIVE)
    last = server.last(first)
    assert last is not None
    assert (last.state, last.reason) == (State.FAILED, Reason.SUPERSEDED)
    assert site.device.infer(1.0) == 3.0


def test_reports_are_spooled_until_they_are_acknowledged(site: Site, make: Make, wait_for: Wait) -> None:
    server = site.server
    server.acknowledge = False
    site.device.start()
    order = server.order(make("1.0", 2.0))
    server.reached(order, State.ACTIVE)
    seen = set(server.seqs)
    site.device.kill()
    server.acknowledge = True
    site.device.start()
    wait_for(lambda: all(server.seqs[seq] >= 2 for seq in seen), "everything to be sent again")
    assert server.states(order) == WHOLE_LIFE


def test_commands(site: Site, wait_for: Wait) -> None:
    server = site.server
    site.device.start()
    wait_for(lambda: server.hellos, "the hello")
    now = time.time_ns() // 1_000_000

    def send(command: Command, times: int = 1) -> None:
        for _ in range(times):
            server.publish(Down.COMMAND, encode_envelope(seal(command, COMMAND_TYPE, [server.director])))

    fields: dict[str, Any] = {"device": "press-7", "issued_ms": now, "expires_ms": now + 60_000}
    send(Command(id="old", kind=CommandKind.PING, **{**fields, "expires_ms": now - 1}))
    send(Command(id="other", kind=CommandKind.PING, **{**fields, "device": "press-8"}))
    stranger = seal(Command(id="x", kind=CommandKind.PING, **fields), COMMAND_TYPE, [server.release])
    server.publish(Down.COMMAND, encode_envelope(stranger))
    send(Command(id="twice", kind=CommandKind.PING, **fields), times=3)
    send(Command(id="facts", kind=CommandKind.FACTS, **fields))
    send(Command(id="logs", kind=CommandKind.LOGS, lines=5, **fields))
    send(Command(id="diagnostics", kind=CommandKind.DIAGNOSTICS, **fields))
    wait_for(lambda: len(server.replies) >= 4, "four replies")
    assert [reply.id for reply in server.replies] == ["twice", "facts", "logs", "diagnostics"]
    facts = server.replies[1].facts
    assert facts is not None
    assert not facts.simulated
    assert facts.digest() == server.hellos[0].facts_digest
    assert "agent.log" in server.replies[2].text
    told = json.loads(server.replies[3].text)
    assert {check["name"]: check["ok"] for check in told["checks"]}["agent"]
    assert told["status"]["device"] == "press-7"
    assert {"run", "gateway"} <= {word for one in told["processes"] for word in re.split(r"[ .]", one["words"])}


def test_diagnostics_by_hand_hold_no_secret(site: Site, make: Make, tmp_path: Path) -> None:
    device = site.device
    device.start()
    site.server.reached(site.server.order(make("1.0", 2.0)), State.ACTIVE)
    path = tmp_path / "d.zip"
    done = device.command("diagnose", "-o", str(path))
    assert (done.returncode, done.stderr) == (0, "")
    with zipfile.ZipFile(path) as archive:
        assert sorted(archive.namelist()) == ["agent.log", "diagnostics.json", "gateway.log"]
        told = json.loads(archive.read("diagnostics.json"))
        everything = b"".join(archive.read(name) for name in archive.namelist())
    assert all(check["ok"] for check in told["checks"]), told["checks"]
    assert told["models"]["scale"]["active"] == device.serving
    assert told["disk"]["folders_mb"]["blobs"] >= 0
    assert b"PRIVATE KEY" not in everything
    for line in (device.state / "identity" / "key.pem").read_bytes().splitlines():
        assert line not in everything


@pytest.mark.parametrize("what", [Down.ASSIGNMENT, Down.COMMAND, Down.BLOCK, Down.ACK])
def test_hostile_bytes_do_not_stop_the_loop(site: Site, make: Make, wait_for: Wait, what: Down) -> None:
    site.device.start()
    wait_for(lambda: site.server.hellos, "the hello")
    for payload in (b"", b"{}", b"\xff" * 100, b"[" * 100_000, b'{"seqs":[-1]}', b'{"assignment":1}', b"x" * 119_000):
        site.server.publish(what, payload)
    order = site.server.order(make("1.0", 2.0))
    site.server.reached(order, State.ACTIVE)
    assert "Traceback" not in site.device.log()


def test_status_and_doctor(site: Site, make: Make) -> None:
    device = site.device
    build = make("1.0", 2.0)
    device.start()
    site.server.reached(site.server.order(build), State.ACTIVE)
    told = json.loads(device.command("status", "--json").stdout)
    assert (told["device"], told["running"], told["connected"]) == ("press-7", True, True)
    assert (told["models"][0]["version"], told["models"][0]["serving"]) == ("1.0", build.digest)
    assert "scale: 1.0" in device.command("status").stdout
    doctor = device.command("doctor", "--margin-mb", "1")
    assert doctor.returncode == 0, doctor.stdout
    assert "not locked" in doctor.stdout
    assert "FAIL" not in doctor.stdout
    device.stop()
    site.broker.stop()
    doctor = device.command("doctor", "--margin-mb", "1")
    assert doctor.returncode == 1
    assert "FAIL broker" in doctor.stdout


def test_the_idle_control_process_is_small(site: Site, wait_for: Wait) -> None:
    site.device.start()
    wait_for(lambda: len(site.server.telemetry) >= 3, "some telemetry")
    assert site.device.process is not None
    assert psutil.Process(site.device.process.pid).memory_info().rss < 60e6


def test_people_at_the_device_go_back_and_pin(site: Site, make: Make, wait_for: Wait) -> None:
    server, device = site.server, site.device
    one, two, three = make("1.0", 2.0), make("1.1", 3.0), make("1.2", 4.0)
    assert "no agent runs" in device.command("rollback", "scale").stderr
    device.start()
    server.reached(server.order(one), State.ACTIVE)
    order = server.order(two)
    server.reached(order, State.ACTIVE)
    done = device.command("rollback", "scale")
    assert (done.returncode, done.stdout) == (0, f"scale goes back to build {one.digest[:12]}\n"), done.stderr
    wait_for(lambda: device.serving == one.digest, "the build before to serve")
    assert server.reached(order, State.ROLLED_BACK).reason is Reason.OPERATOR
    assert device.infer(5.0) == 10.0

    assert device.command("pin", "scale", "--why", "trade fair").returncode == 0
    assert "pinned: trade fair" in device.command("status").stdout
    refused = server.order(three)
    assert server.reached(refused, State.REFUSED).detail == "trade fair"
    assert device.infer(5.0) == 10.0
    assert device.command("unpin", "scale").stdout == "scale follows orders again\n"
    server.reached(refused, State.ACTIVE)
    assert device.infer(5.0) == 20.0
    for words in (("rollback", "nothing"), ("pin", "../x")):
        failed = device.command(*words)
        assert failed.returncode in (1, 2)
        assert len(failed.stderr.splitlines()) == 1
