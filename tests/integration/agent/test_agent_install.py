"""`covey-agent install`: a stick, a device whose broker is gone, and a server that hears of it all when the broker is back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from covey_contract.envelope import Envelope
from covey_contract.lifecycle import State
from covey_contract.messages import ASSIGNMENT_TYPE, Assignment, Order
from covey_contract.signing import seal
from covey_contract.wire import encode
from covey_hil.testing.agent_site import DEVICE, Site
from covey_hil.testing.made_builds import MODEL, MadeBuild
from covey_server.fleet.bundles import SignedOrder, written
from covey_server.registry.blobs import BlobStore

Make = Callable[..., MadeBuild]


@pytest.fixture
def stick(tmp_path: Path, site: Site) -> Callable[..., tuple[Path, Assignment]]:
    blobs = BlobStore(tmp_path / "blobs")

    def write(build: MadeBuild, manifest: Envelope | None = None, **changes: Any) -> tuple[Path, Assignment]:
        for content in build.contents:
            with blobs.writer(len(content)) as writer:
                writer.write(content)
                writer.commit()
        assignment = site.server.order(build, send=False, **changes)
        sealed = seal(assignment, ASSIGNMENT_TYPE, [site.server.director])
        order = Order(assignment=sealed, manifest=manifest or site.server.sealed_manifest(build))
        path = tmp_path / f"{assignment.id}.bundle"
        files = [entry.sha256 for entry in build.manifest.wire_files()]
        with path.open("wb") as file:
            for piece in written(
                [SignedOrder(assignment.device, MODEL, build.digest, encode(order))], {}, files, blobs
            ):
                file.write(piece)
        return path, assignment

    return write


def test_an_update_from_a_stick(site: Site, make: Make, stick: Callable[..., Any]) -> None:
    server, device = site.server, site.device
    one, two = make("1.0", 2.0), make("1.1", 3.0, filler=3_000_000)
    device.start()
    server.reached(server.order(one), State.ACTIVE)
    site.broker.stop()

    path, assignment = stick(two)
    done = device.command("install", str(path))
    assert (done.returncode, done.stderr) == (0, ""), device.log()
    assert done.stdout.splitlines()[-1] == "scale 1.1: active"
    assert device.infer(5.0) == 15.0
    path.unlink()  # the stick is not needed any longer

    # The network is back: the server is told every step, of an order that it knows, and sends nothing.
    sent = server.sent.total()
    site.broker.start()
    server.reached(assignment, State.ACTIVE)
    assert server.states(assignment)[0] is State.ASSIGNED
    assert server.sent.total() == sent


def test_what_is_said_when_it_is_not_installed(site: Site, make: Make, stick: Callable[..., Any]) -> None:
    server, device = site.server, site.device
    one, bad = make("1.0", 2.0), make("1.1", 3.0, content=b"this is no model")
    path, _ = stick(one)
    done = device.command("install", str(path))
    assert (done.returncode, "no agent runs" in done.stderr) == (1, True)

    device.start()
    server.reached(server.order(one), State.ACTIVE)
    done = device.command("install", str(path.with_name("nothing")))
    assert (done.returncode, "No such file" in done.stderr) == (1, True)
    other, _ = stick(make("1.2", 4.0), device="another")
    done = device.command("install", str(other))
    assert (done.returncode, f"has no order for {DEVICE}; it has some for another" in done.stderr) == (1, True)
    unsigned, _ = stick(make("1.3", 5.0), manifest=server.sealed_manifest(one))
    done = device.command("install", str(unsigned))
    assert (done.returncode, "wrong_manifest" in done.stdout) == (1, True)
    broken, _ = stick(bad)
    done = device.command("install", str(broken))
    assert (done.returncode, "failed (load_failed" in done.stdout) == (1, True)
    assert device.infer(5.0) == 10.0
