"""`covey-agent install`: orders that come on a stick; both ends of it, the command's and the agent's.

What may be done is `deployments`' to say, by the same rules as ever. Here an order is found in a bundle, and followed with the eyes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from covey_agent.asks import Answer, Ask, Install, ask_agent
from covey_agent.book import read_state
from covey_agent.bundle import Bundle, BundleError
from covey_agent.core.acceptance import Refusal
from covey_agent.core.state import Deployment
from covey_agent.errors import AgentError
from covey_agent.identity import load_identity
from covey_agent.manual import Manual
from covey_contract.bundle import order_name
from covey_contract.errors import ContractError
from covey_contract.lifecycle import State
from covey_contract.messages import Assignment, Order
from covey_contract.wire import decode

DONE, FAILED, TIMED_OUT = 0, 1, 3
_POLL_S = 0.1
# Here the bytes are on the device, and the stick is needed no longer.
_HERE = frozenset({State.STAGED, State.WARMING, State.PROBATION})


class Follower(Protocol):
    """The one thing that is wanted of the deployments."""

    def install(self, payload: bytes, bundle: Path) -> Refusal | None: ...


class Installer:
    """The agent's side: `obey` does what is asked at the device, and never raises."""

    def __init__(self, device: str, deployments: Follower, manual: Manual) -> None:
        self._device = device
        self._deployments = deployments
        self._manual = manual

    def obey(self, ask: Ask) -> Answer:
        return self._install(ask) if isinstance(ask, Install) else self._manual.obey(ask)

    def _install(self, ask: Install) -> Answer:
        path = Path(ask.path)
        try:
            with Bundle(path) as bundle:
                payload = bundle.order(order_name(self._device, ask.model))
            refusal = self._deployments.install(payload, path)
        except (BundleError, ContractError) as error:
            return Answer(False, str(error))
        except OSError as error:
            return Answer(False, f"the order cannot be stored: {error}")
        if refusal is not None:
            return Answer(False, f"{ask.model}: {refusal.reason}: {refusal.detail}")
        return Answer(True, f"{ask.model}: the order in {path.name} is followed")


def install_bundle(state: Path, path: Path, timeout_s: float, say: Callable[[str], None]) -> int:
    """The command's side: have each order for this device followed, and say what comes of it. The exit code: 0 when all serve or wait
    for their conditions, 1 if one does not come to that, 3 when it takes longer than `timeout_s`. Raises `AgentError`."""
    device = load_identity(state / "identity").device
    with Bundle(path) as bundle:
        found = bundle.devices()
        if device not in found:
            whose = ", ".join(found) or "nobody"
            raise AgentError(f"{path} has no order for {device}; it has some for {whose}")
        orders = {model: _claimed(bundle, device, model) for model in found[device]}
    deadline = time.monotonic() + timeout_s
    codes = []
    for model, assignment in orders.items():
        answer = ask_agent(state, Install(model, str(path)))
        say(answer.words)
        codes.append(_watch(state, assignment, path, deadline, say) if answer.done else FAILED)
    return max(codes)


def _claimed(bundle: Bundle, device: str, model: str) -> Assignment:
    """What an order says of itself, to know it by. The agent checks it."""
    try:
        order = decode(Order, bundle.order(order_name(device, model)))
        return decode(Assignment, order.assignment.payload)
    except ContractError as error:
        raise BundleError(f"the order for {model} in {bundle.path} cannot be read: {error}") from error


def _watch(state: Path, assignment: Assignment, path: Path, deadline: float, say: Callable[[str], None]) -> int:
    """Say each state that the order comes to, until it is the last."""
    told = ""
    while time.monotonic() < deadline:
        deployment = read_state(state).record(assignment.model).deployment
        if deployment is not None and deployment.order == assignment:
            words = _words(deployment)
            if words != told:
                told = words
                say(f"{assignment.model} {assignment.version}: {words}")
            if deployment.waiting or deployment.state is State.ACTIVE or deployment.state is State.REMOVED:
                return DONE
            if deployment.state.final:
                return FAILED
            if deployment.state not in _HERE and not path.exists():
                raise AgentError(
                    f"{path} is gone before all was read; install it again, or the network brings the rest"
                )
        time.sleep(_POLL_S)
    say(f"{assignment.model} {assignment.version}: it takes longer; `covey-agent status` tells how it stands")
    return TIMED_OUT


def _words(deployment: Deployment) -> str:
    why = " ".join(word for word in (deployment.reason, deployment.detail) if word and word != "none")
    return f"{deployment.state}{f' ({why})' if why else ''}"
