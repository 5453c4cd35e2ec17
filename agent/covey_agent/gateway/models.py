"""All models of this device, by name, and the orders of the control process on them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from covey_agent.gateway.control_api import Load, Loaded
from covey_agent.gateway.enclosure import Enclosure
from covey_agent.gateway.errors import OrderError
from covey_agent.gateway.model import Model
from covey_agent.gateway.runner_process import BuildSpec
from covey_agent.gateway.settings import Settings
from covey_contract.building import MANIFEST_FILE
from covey_contract.errors import DecodeError
from covey_contract.manifest import MODEL_NAME, Manifest, build_digest
from covey_contract.messages import BuildWindow
from covey_contract.reasons import Reason
from covey_contract.wire import decode


def system_ms() -> int:
    return time.time_ns() // 1_000_000


class Models:
    """`idle`: what to write before a command that is to begin at idle priority (`runner.priority.idle_command`)."""

    def __init__(
        self,
        settings: Settings,
        clock: Callable[[], float],
        now_ms: Callable[[], int] = system_ms,
        *,
        idle: Sequence[str] = (),
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._now_ms = now_ms
        self._idle = tuple(idle)
        self._enclosure = Enclosure(settings.budgets)
        self._models: dict[str, Model] = {}
        self._window_start_ms = now_ms()

    def get(self, name: str) -> Model | None:
        return self._models.get(name)

    def all(self) -> list[Model]:
        return list(self._models.values())

    async def load(self, order: Load) -> Loaded:
        """Raises `OrderError` with the reason."""
        spec = read_spec(order)
        model = self._models.get(order.model)
        if model is None:
            model = self._models[order.model] = Model(
                order.model,
                threads=self._settings.budgets.of(order.model).threads_of(self._settings.threads),
                enclosure=self._enclosure,
                idle=self._idle,
                limits=self._settings.limits,
                clock=self._clock,
                now_ms=self._now_ms,
            )
        return await model.load(spec, order)

    def known(self, name: str) -> Model:
        """Raises `OrderError` for a model of which nothing was ever loaded."""
        model = self._models.get(name)
        if model is None:
            raise OrderError(Reason.INTERNAL, f"nothing of model {name!r} is loaded")
        return model

    def collect(self) -> tuple[int, int, tuple[BuildWindow, ...]]:
        """Start and end (Unix ms) of the window that ends now, and what each build did in it."""
        start, self._window_start_ms = self._window_start_ms, self._now_ms()
        return start, self._window_start_ms, tuple(window for model in self.all() for window in model.collect())

    async def close(self, timeout_s: float) -> None:
        """End all runners: those that answer may finish within the timeout, in seconds."""
        closing = asyncio.gather(*(model.close() for model in self.all()))
        try:
            await asyncio.wait_for(asyncio.shield(closing), timeout_s)
        except asyncio.TimeoutError:
            for model in self.all():
                model.kill()
            await closing


def read_spec(order: Load) -> BuildSpec:
    """The build in the order's folder; raises `OrderError` if it is not the one that the order names."""
    if not MODEL_NAME.fullmatch(order.model):
        raise OrderError(Reason.BAD_MESSAGE, f"{order.model!r} is not the name of a model")
    folder = Path(order.folder)
    try:
        data = (folder / MANIFEST_FILE).read_bytes()
        manifest = decode(Manifest, data)
    except (OSError, ValueError, DecodeError) as error:  # a path with a zero byte is a ValueError
        raise OrderError(Reason.LOAD_FAILED, f"the build's manifest cannot be read: {error}") from error
    if build_digest(data) != order.build:
        raise OrderError(Reason.DIGEST_MISMATCH, f"the manifest in {folder} is not that of build {order.build[:12]}")
    if manifest.model != order.model:
        raise OrderError(Reason.WRONG_MANIFEST, f"the build is of model {manifest.model!r}, not {order.model!r}")
    return BuildSpec(order.build, folder, manifest)
