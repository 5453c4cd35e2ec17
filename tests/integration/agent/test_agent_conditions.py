"""Conditions in real processes: an application's lock and its requests hold a new build up; kills in between change nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from covey_contract.conditions import Conditions
from covey_contract.lifecycle import State
from covey_contract.reasons import Reason
from covey_hil.testing.agent_site import Site
from covey_hil.testing.made_builds import MadeBuild

Make = Callable[..., MadeBuild]
Wait = Callable[..., Any]


def test_a_locked_device_stages_and_waits_through_kills(site: Site, make: Make, wait_for: Wait) -> None:
    server, device = site.server, site.device
    one, two = make("1.0", 2.0), make("1.1", 3.0)
    device.start()
    server.reached(server.order(one), State.ACTIVE)
    assert device.command("lock", "--owner", "line-control", "--ttl", "1h").stdout == "locked by line-control\n"

    order = server.order(two, conditions=Conditions(unlocked=True))

    def waits() -> bool:
        last = server.last(order)
        return last is not None and (last.state, last.reason) == (State.STAGED, Reason.LOCKED)

    wait_for(waits, "the device to wait")
    last = server.last(order)
    assert last is not None
    assert last.detail == "locked by line-control"
    assert "staged: locked" in device.command("status").stdout

    # Control dies; then the gateway, which comes back locked, with the build that serves.
    device.kill()
    device.start()
    wait_for(lambda: len(server.hellos) >= 2, "the hello after the kill")
    assert server.hellos[-1].models[0].reason is Reason.LOCKED
    device.kill_gateway()
    wait_for(lambda: device.serving == one.digest, "the active build to serve again")
    status = device.gateway
    assert status is not None
    assert status.locked_by == ("line-control",)
    assert waits()
    assert device.infer(5.0) == 10.0

    assert device.command("unlock", "--owner", "line-control").stdout == "unlocked\n"
    server.reached(order, State.ACTIVE)
    assert device.infer(5.0) == 15.0


def test_the_way_back_does_not_wait_for_the_lock(site: Site, make: Make) -> None:
    server, device = site.server, site.device
    one, two = make("1.0", 2.0), make("1.1", 3.0)
    device.start()
    server.reached(server.order(one), State.ACTIVE)
    server.reached(server.order(two), State.ACTIVE)
    assert device.command("lock", "--owner", "line-control").returncode == 0
    server.reached(server.order(one, conditions=Conditions(unlocked=True), rollback=True), State.ACTIVE)
    assert device.infer(5.0) == 10.0


def test_an_idle_device_is_waited_for(site: Site, make: Make, wait_for: Wait) -> None:
    server, device = site.server, site.device
    device.start()
    server.reached(server.order(make("1.0", 2.0)), State.ACTIVE)
    device.infer(1.0)
    two = make("1.1", 3.0)
    order = server.order(two, conditions=Conditions(idle_s=3600.0))
    wait_for(lambda: (last := server.last(order)) and last.reason is Reason.WAITING_FOR_IDLE, "the device to wait")
    assert device.infer(5.0) == 10.0
    status = device.gateway
    assert status is not None
    assert status.idle_s < 3600.0
    server.reached(server.order(two, conditions=Conditions(idle_s=0.1)), State.ACTIVE)
    assert device.infer(5.0) == 15.0


def test_lock_and_unlock_say_what_is_wrong(site: Site, wait_for: Wait) -> None:
    device = site.device
    nobody = device.command("lock", "--owner", "a")
    assert (nobody.returncode, "no gateway runs" in nobody.stderr) == (1, True)
    device.start()
    wait_for(lambda: device.gateway, "the gateway")
    for words in (("--owner", "a b"), ("--owner", "a", "--ttl", "2d"), ("--owner", "a", "--ttl", "25h")):
        done = device.command("lock", *words)
        assert done.returncode in (1, 2)
        assert len(done.stderr.splitlines()) == 1
    assert device.command("unlock", "--owner", "a").stdout == "a held no lock\n"
