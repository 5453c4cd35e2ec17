"""The acceptance suite: what any device with a Covey agent must be able to do, checked on a bench against a real server.

The checks run in order, each on what the one before left behind. `CHECKS` is the suite; `covey-hil accept` and
the tests run the same list.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from covey_client.api import Client
from covey_hil.bench import Bench
from covey_hil.digits.data import load, model_path, write_samples
from covey_hil.fleet import LocalServer
from covey_hil.load.wire import Answer, Connection, infer_request
from covey_hil.processes import wait_for

MODEL = "digits"
DEVICE = "bench-1"
PROBATION_S = 2.0  # long enough for a runner that crashes at its first requests


class CheckError(Exception):
    """The device did not do what it must."""


@dataclass
class Context:
    """What the checks share: the bench, the server it is enrolled with, and what was measured."""

    bench: Bench
    server: LocalServer
    folder: Path
    targets: tuple[str, ...] = ()  # to be built; without any, all that the device's profile may want
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def client(self) -> Client:
        return self.server.client()

    def slot(self) -> dict[str, Any]:
        slots = self.client.device(DEVICE)["models"]
        return next((slot for slot in slots if slot["model"] == MODEL), {})

    def serves(self, version: str) -> bool:
        active = self.slot().get("active") or {}
        return active.get("version") == version and self.slot().get("state") == "active"

    def ask(self, images: np.ndarray[Any, np.dtype[np.float32]]) -> list[tuple[Answer, float]]:
        """Ask for each image in turn; answers and seconds."""
        return asyncio.run(_ask(self.bench.inference_address(), images))


def enrol(context: Context) -> None:
    """The device enrols with a one-time token and is online; the token does not work twice."""
    token = context.client.create_claim_token(device=DEVICE)["token"]
    context.bench.enroll(context.server.url, token)
    context.bench.power_on()
    wait_for("the device to be online", lambda: context.client.device(DEVICE)["online"], 30)
    if context.client.device(DEVICE)["profile"] is None:
        raise CheckError("no firmware profile matches the device")


def deploy(context: Context) -> None:
    """A pushed version is built, chosen, delivered and served."""
    _push(context, "1.0")
    began = time.monotonic()
    context.client.assign(DEVICE, MODEL, "1.0", probation_s=PROBATION_S)
    wait_for("1.0 to be active", lambda: context.serves("1.0"), 60)
    context.figures["deploy_s"] = round(time.monotonic() - began, 2)


def parity(context: Context) -> None:
    """The device answers as the build did when it was made: as many of the held-out images right, to the image."""
    _, held_out = load()
    answers = context.ask(held_out.images)
    if bad := [answer.status for answer, _ in answers if answer.status != 200]:
        raise CheckError(f"{len(bad)} of {len(answers)} requests failed, with {sorted(set(bad))}")
    right = sum(int(_top(answer)) == label for (answer, _), label in zip(answers, held_out.labels, strict=True))
    build = _build(context, answers[0][0].build)
    expected = build["report"]["accuracy"]
    accuracy = right / len(answers)
    context.figures["accuracy"] = {"device": accuracy, "build": expected["build"], "source": expected["source"]}
    if abs(accuracy - expected["build"]) > 1.5 / len(answers):
        raise CheckError(f"accuracy {accuracy:.4f} on the device, {expected['build']:.4f} when it was built")


def latency(context: Context) -> None:
    """The median answer comes within the latency objective of the device's firmware profile."""
    from covey_profiles import load_profiles

    _, held_out = load()
    seconds = [taken for _, taken in context.ask(held_out.images)]
    p50, p99 = statistics.median(seconds) * 1000, float(np.quantile(seconds, 0.99)) * 1000
    profile = load_profiles()[context.client.device(DEVICE)["profile"]]
    objective = profile.latency_objective_ms
    context.figures["latency_ms"] = {"p50": round(p50, 3), "p99": round(p99, 3), "objective": objective}
    if p50 > objective:
        raise CheckError(f"p50 {p50:.2f} ms; the profile's objective is {objective} ms")


def power_loss(context: Context) -> None:
    """Power lost while a new version arrives: after it the device serves a verified version, and gets to the new one."""
    _push(context, "1.1")
    context.client.assign(DEVICE, MODEL, "1.1", probation_s=PROBATION_S)
    wait_for(
        "the deployment to begin",
        lambda: context.slot().get("state") in {"fetching", "verifying", "staged", "warming", "probation"},
        30,
        every_s=0.02,
    )
    context.bench.power_cut()
    wait_for("the server to notice", lambda: not context.client.device(DEVICE)["online"], 60)
    began = time.monotonic()
    context.bench.power_on()
    wait_for("the device to serve again", lambda: _answers(context), 60)
    context.figures["power_on_to_first_answer_s"] = round(time.monotonic() - began, 2)
    wait_for("1.1 to be active", lambda: context.serves("1.1"), 60)


def roll_back(context: Context) -> None:
    """Sent back to the version before, the device serves it again without fetching it."""
    began = time.monotonic()
    context.client.assign(DEVICE, MODEL, "1.0", probation_s=PROBATION_S)
    wait_for("1.0 to be active", lambda: context.serves("1.0"), 60)
    context.figures["roll_back_s"] = round(time.monotonic() - began, 2)


CHECKS: tuple[Callable[[Context], None], ...] = (enrol, deploy, parity, latency, power_loss, roll_back)


def _push(context: Context, version: str) -> None:
    """Push a version of digits and wait for its builds."""
    calibration, evaluation, labels = write_samples(context.folder)
    context.client.push_version(
        MODEL,
        version,
        model_path(version),
        calibration=calibration,
        evaluation=evaluation,
        labels=labels,
        targets=context.targets,
        budget=0.01,
    )
    wait_for(f"the builds of {version}", lambda: settled(context.client, version), 180, every_s=0.5)


def settled(client: Client, version: str) -> bool:
    """Whether every build of a version of digits has come to an end, or waits for a worker that is not here."""
    builds = client.builds(model=MODEL, version=version)
    return bool(builds) and all(b["state"] not in {"queued", "building"} or b.get("waiting_for") for b in builds)


def _build(context: Context, digest: str) -> dict[str, Any]:
    for summary in context.client.builds(model=MODEL):
        if summary.get("digest") == digest:
            return context.client.build(summary["id"])
    raise CheckError(f"the device answered with build {digest[:12]}, which the server does not know")


def _answers(context: Context) -> bool:
    _, held_out = load()
    try:
        return context.ask(held_out.images[:1])[0][0].status == 200
    except OSError:
        return False


def _top(answer: Answer) -> int:
    if answer.logits is None:
        raise CheckError("an answer without logits")
    return int(answer.logits.argmax())


async def _ask(address: tuple[str, int], images: np.ndarray[Any, np.dtype[np.float32]]) -> list[tuple[Answer, float]]:
    connection = await Connection.open(*address)
    try:
        found = []
        for image in images:
            request = infer_request(MODEL, image, f"{address[0]}:{address[1]}")
            began = time.perf_counter()
            answer = await connection.ask(request)
            found.append((answer, time.perf_counter() - began))
        return found
    finally:
        connection.close()
