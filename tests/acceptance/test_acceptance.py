"""The acceptance suite on the bench that is a local process, each check as a test: they build on one another, in their order."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from covey_hil.acceptance import CHECKS, DEVICE, Context
from covey_hil.bench import LocalProcessBench
from covey_hil.fleet import LocalServer
from covey_server.fleet.ports import free_port

TARGETS = ("onnxruntime-fp32", "onnxruntime-int8")


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Context]:
    folder = tmp_path_factory.mktemp("acceptance")
    server = LocalServer(folder / "server", folder / "server.log", port=free_port())
    bench = LocalProcessBench(folder, DEVICE)
    try:
        server.start()
        yield Context(bench, server, folder, TARGETS)
    finally:
        bench.close()
        server.child.stop()


@pytest.fixture(scope="module")
def passed() -> list[str]:
    """The names of the checks that have passed so far."""
    return []


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_acceptance(context: Context, passed: list[str], check: Callable[[Context], None]) -> None:
    before = [earlier.__name__ for earlier in CHECKS[: CHECKS.index(check)]]
    if missing := [name for name in before if name not in passed]:
        pytest.skip(f"it builds on {missing[0]}, which did not pass")
    check(context)
    passed.append(check.__name__)
