"""What goes wrong on a device: kills, a full disk, bad blocks, orders that are none. It always ends where it should."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from covey_contract.lifecycle import State
from covey_contract.messages import Order, Probation, Report
from covey_contract.reasons import Reason
from covey_contract.signing import seal
from covey_contract.topics import Down
from covey_contract.wire import encode
from covey_hil.testing.agent_site import Device, Site
from covey_hil.testing.made_builds import MadeBuild

Make = Callable[..., MadeBuild]
Wait = Callable[..., Any]


def test_killed_in_mid_download_it_fetches_only_what_is_missing(site: Site, make: Make, wait_for: Wait) -> None:
    server, device = site.server, site.device
    build = make("1.0", 2.0, filler=6_000_000, block_size=16_384)
    server.block_budget = 150
    device.start()
    order = server.order(build)
    wait_for(lambda: server.block_budget == 0, "the download to be under way")
    wait_for(lambda: any(r.progress for r in server.reports), "progress")
    device.kill()
    sent_before = dict(server.sent)
    server.block_budget = None
    device.start()
    report = server.reached(order, State.ACTIVE)
    total = sum(map(len, build.contents))
    fetched_again = report.bytes_fetched
    # All but the last few, which were on their way when it was killed, were on disk.
    assert fetched_again < total - 100 * 16_384
    twice = [key for key, times in server.sent.items() if key in sent_before and times > sent_before[key]]
    assert len(twice) <= 48
    assert device.infer(1.0) == 2.0


@pytest.mark.parametrize(
    "state", [state for state in State if not state.final and state is not State.FETCHING] + [State.ACTIVE], ids=str
)
def test_killed_as_soon_as_it_reports_a_state(site: Site, make: Make, wait_for: Wait, state: State) -> None:
    """The old build answers all the while; the new one is active in the end; the counter never goes back."""
    server, device = site.server, site.device
    one, two = make("1.0", 2.0), make("1.1", 3.0, filler=200_000)
    device.start()
    server.reached(server.order(one), State.ACTIVE)
    killed = threading.Event()

    def kill(report: Report) -> None:
        if report.version == "1.1" and report.state is state and not killed.is_set():
            device.kill()
            killed.set()

    server.on_report = kill
    order = server.order(two, probation=Probation(seconds=1))
    assert killed.wait(60)
    assert device.infer(1.0) in (2.0, 3.0)
    assert device.book.counter == order.counter
    device.start()
    server.reached(order, State.ACTIVE)
    wait_for(lambda: device.serving == two.digest, "the new build to serve")
    assert device.infer(1.0) == 3.0
    assert device.book.counter == order.counter
    wait_for(lambda: len(server.hellos) >= 2, "the second hello")
    assert server.hellos[-1].last_exit is Reason.INTERNAL


def test_a_gateway_that_is_killed_comes_back_with_the_active_build(site: Site, make: Make, wait_for: Wait) -> None:
    build = make("1.0", 2.0)
    site.device.start()
    site.server.reached(site.server.order(build), State.ACTIVE)
    site.device.kill_gateway()
    wait_for(lambda: site.device.serving == build.digest, "the gateway to serve again")
    assert site.device.infer(1.0) == 2.0


def test_control_finds_the_living_gateway_again(site: Site, make: Make, wait_for: Wait) -> None:
    build = make("1.0", 2.0)
    site.device.start()
    site.server.reached(site.server.order(build), State.ACTIVE)
    gateway = site.device.gateway
    assert gateway is not None
    runner = gateway.models[0].runners[0].pid
    site.device.kill()
    assert site.device.infer(1.0) == 2.0
    hellos = len(site.server.hellos)
    site.device.start()
    wait_for(lambda: len(site.server.hellos) > hellos, "the hello")
    wait_for(lambda: len(site.server.telemetry) > 2, "telemetry")
    again = site.device.gateway
    assert again is not None
    assert (again.pid, again.models[0].runners[0].pid) == (gateway.pid, runner)


def test_everything_killed_at_once_as_by_a_power_cut(site: Site, make: Make) -> None:
    one, two = make("1.0", 2.0), make("1.1", 3.0)
    site.device.start()
    site.server.reached(site.server.order(one), State.ACTIVE)
    order = site.server.order(two, probation=Probation(seconds=2))
    site.server.reached(order, State.PROBATION)
    site.device.kill()
    site.device.kill_gateway()
    site.device.start()
    site.server.reached(order, State.ACTIVE)
    assert site.device.infer(1.0) == 3.0


def test_truncated_and_corrupt_blocks(site: Site, make: Make) -> None:
    spoilt: set[tuple[int, int]] = set()

    def spoil(file: int, index: int, data: bytes) -> bytes | None:
        if (file, index) in spoilt:
            return data
        spoilt.add((file, index))
        return [data[:-1], bytes([data[0] ^ 1]) + data[1:], None][index % 3]

    site.server.spoil = spoil
    site.device.start()
    site.server.reached(site.server.order(make("1.0", 2.0, filler=500_000)), State.ACTIVE)
    assert site.device.infer(1.0) == 2.0


def test_orders_that_are_none(site: Site, make: Make) -> None:
    server, device = site.server, site.device
    good, other = make("1.0", 2.0), make("1.1", 3.0)
    device.start()
    server.reached(server.order(good), State.ACTIVE)

    def refused(reason: Reason, **changes: Any) -> None:
        director = changes.pop("director", None)
        order = server.order(other, send=False, **changes)
        server.send_order(order, director=director)
        assert server.reached(order, State.REFUSED).reason is reason

    now = time.time_ns() // 1_000_000
    refused(Reason.BAD_SIGNATURE, director=Ed25519PrivateKey.generate())
    refused(Reason.WRONG_DEVICE, device="press-8")
    refused(Reason.OLD_COUNTER, counter=1)
    refused(Reason.EXPIRED, expires_ms=now - 1)
    refused(Reason.WRONG_MANIFEST, version="9.9")
    # Signed by the director alone: the manifest's signature is not a release key's.
    order = server.order(other, send=False)
    forged = Order(
        assignment=seal(order, "application/vnd.covey.assignment.v1+json", [server.director]),
        manifest=msgspec.structs.replace(server.sealed_manifest(other), signatures=()),
    )
    server.publish(Down.ASSIGNMENT, encode(forged))
    assert server.reached(order, State.REFUSED).reason is Reason.BAD_SIGNATURE
    wrong = make("1.2", 4.0, architecture="riscv64")
    assert server.reached(server.order(wrong), State.REFUSED).reason is Reason.WRONG_HARDWARE
    missing = make("1.3", 5.0, runtime="tensorrt", target="tensorrt-fp16-sm87")
    assert server.reached(server.order(missing), State.REFUSED).reason is Reason.NO_RUNTIME
    assert device.infer(1.0) == 2.0
    assert device.serving == good.digest


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB for what is fetched."""
    folder = tmp_path / "small"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def move_state(device: Device, folder: Path) -> None:
    """The device's whole state folder lies on another file system from now on."""
    target = folder / "state"
    subprocess.run(["cp", "-a", str(device.state), str(target)], check=True)
    device.state = target


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_full_disk_is_told_and_overcome(site: Site, make: Make, small_disk: Path, wait_for: Wait) -> None:
    server, device = site.server, site.device
    move_state(device, small_disk)
    good, big = make("1.0", 2.0), make("1.1", 3.0, filler=3_000_000)
    device.start()
    server.reached(server.order(good), State.ACTIVE)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(5_500_000))
    order = server.order(big)
    wait_for(lambda: any(r.reason is Reason.NO_SPACE for r in server.reports), "the reason")
    # Truly full now, so that not even the state can be written.
    with ballast.open("ab", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    assert device.infer(1.0) == 2.0
    wait_for(lambda: "cannot be stored" in device.log(), "the log line")
    assert device.process is not None
    assert device.process.poll() is None
    assert device.infer(1.0) == 2.0
    ballast.unlink()
    server.reached(order, State.ACTIVE)
    assert device.infer(1.0) == 3.0
    assert "Traceback" not in device.log()


def test_a_file_too_large_for_the_disk_is_a_reason_and_not_a_crash(site: Site, make: Make, wait_for: Wait) -> None:
    """RLIMIT_FSIZE stands for a disk that refuses in the middle of things; no root is needed for it."""
    good, big = make("1.0", 2.0), make("1.1", 3.0, filler=9_000_000)
    site.device.start(limit_file_bytes=8_000_000)
    site.server.reached(site.server.order(good), State.ACTIVE)
    order = site.server.order(big)
    report = wait_for(
        lambda: next((r for r in site.server.reports if r.assignment == order.id and r.state is State.FAILED), None),
        "the failure",
    )
    assert report.reason is Reason.NO_SPACE
    assert site.device.infer(1.0) == 2.0
    site.device.stop()
    site.device.start()
    site.server.reached(order, State.ACTIVE)
    assert site.device.infer(1.0) == 3.0


def test_damaged_state_files_do_not_stop_the_agent(site: Site, make: Make, wait_for: Wait) -> None:
    server, device = site.server, site.device
    build = make("1.0", 2.0, filler=200_000)
    device.start()
    server.reached(server.order(build), State.ACTIVE)
    device.stop()
    sent = server.sent.total()
    for name in ("state.json", "state.copy.json", "outbox.db", "control.json"):
        (device.state / name).write_bytes(b"\x00rubbish" * 600)
    for ending in ("-wal", "-shm"):
        (device.state / f"outbox.db{ending}").unlink(missing_ok=True)
    device.start()
    wait_for(lambda: device.serving == build.digest, "the assignment, told again, to serve")
    assert device.infer(1.0) == 2.0
    assert server.sent.total() == sent
    assert "damaged" in device.log()
    assert "Traceback" not in device.log()


def test_a_broker_that_comes_late_and_goes_away(site: Site, make: Make, wait_for: Wait) -> None:
    server, device = site.server, site.device
    site.broker.stop()
    device.start()
    wait_for(lambda: "cannot be reached; trying again" in device.log(), "the log line")
    site.broker.start()
    wait_for(lambda: server.hellos, "the hello")
    server.reached(server.order(make("1.0", 2.0)), State.ACTIVE)
    assert device.process is not None
    assert psutil.Process(device.process.pid).is_running()


def test_one_clear_line_for_each_bad_start(site: Site, tmp_path: Path, wait_for: Wait) -> None:
    device = site.device
    device.start()
    wait_for(lambda: site.server.hellos, "the hello")

    def line(code: int, *words: str) -> str:
        done = device.command(*words)
        assert done.returncode == code, done.stderr
        last: str = done.stderr.strip().splitlines()[-1]
        assert "Traceback" not in done.stderr
        return last

    assert "another agent runs on" in line(3, "run")
    device.stop()
    gateway_port = site.broker.plain_port  # somebody listens there
    assert "cannot be used" in line(1, "run", "--inference-port", str(gateway_port))
    assert "port" in line(2, "run", "--inference-port", "70000")
    assert "facts file" in line(2, "run", "--facts", str(tmp_path / "none.json"))
    assert "no gateway" in line(1, "infer", "scale", "x.json")
    (device.state / "identity" / "enrolment.json").write_text("{}")
    assert "cannot be read" in line(1, "run")
    (device.state / "identity" / "enrolment.json").unlink()
    assert "not enrolled" in line(4, "status")
