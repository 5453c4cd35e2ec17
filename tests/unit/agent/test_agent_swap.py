"""Whether a new build fits beside the one that serves, and where the device reads how much memory it has."""

from __future__ import annotations

import doctest
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from covey_agent.core import swap
from covey_agent.core.swap import Memory, SwapMode, choose
from covey_agent.memory import available_mb
from covey_hil.testing.agent_world import World
from covey_hil.testing.random_builds import RandomBuild

HUGE = 1 << 62


@pytest.mark.parametrize(
    ("mode", "memory", "chosen"),
    [
        (SwapMode.AUTO, Memory(100.0, 164.0, 64.0), SwapMode.PARALLEL),
        (SwapMode.AUTO, Memory(100.0, 163.9, 64.0), SwapMode.SEQUENTIAL),
        (SwapMode.AUTO, Memory(None, 1.0, 64.0), SwapMode.PARALLEL),
        (SwapMode.PARALLEL, Memory(100.0, 0.0, 64.0), SwapMode.PARALLEL),
        (SwapMode.SEQUENTIAL, Memory(1.0, 1e6, 64.0), SwapMode.SEQUENTIAL),
    ],
)
def test_the_choice(mode: SwapMode, memory: Memory, chosen: SwapMode) -> None:
    assert choose(mode, memory) is chosen


def test_examples() -> None:
    assert doctest.testmod(swap).failed == 0


@pytest.mark.parametrize(("memory_mb", "in_place"), [(1e6, False), (10.0, True)])
def test_a_second_build_takes_the_firsts_place_where_memory_is_short(
    world: World, random_build: Callable[..., RandomBuild], memory_mb: float, in_place: bool
) -> None:
    one, two = random_build((100,), 1, "1"), random_build((100,), 2, "2")
    world.memory_mb = memory_mb
    for build in (one, two):
        world.order(build)
        world.run(lambda build=build: world.is_settled(build))  # type: ignore[misc]
    # The first has nobody's place to take. What it takes is known from the runner that serves: a megabyte.
    assert world.gateway.in_place == [False, in_place]


def groups(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(exist_ok=True, parents=True)
        (root / name).write_text(content)
    return root


@pytest.mark.parametrize(
    ("files", "mb"),
    [
        ({"memory.max": "100000000\n", "memory.current": "60000000\n"}, 40.0),
        (
            {"memory.max": "100000000", "memory.current": "60000000", "memory.stat": "anon 1\ninactive_file 5000000\n"},
            45.0,
        ),
        ({"memory.max": "100", "memory.current": "200"}, 0.0),
        (
            {
                "memory/memory.limit_in_bytes": "50000000",
                "memory/memory.usage_in_bytes": "20000000",
                "memory/memory.stat": "cache 9\ntotal_inactive_file 1000000\n",
            },
            31.0,
        ),
    ],
)
def test_a_control_groups_limit_counts_where_it_is_lower(tmp_path: Path, files: dict[str, str], mb: float) -> None:
    assert available_mb(groups(tmp_path, files)) == pytest.approx(mb)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"memory.max": "max", "memory.current": "60000000"},
        {"memory.max": "100000000"},
        {"memory.max": "\xff\n", "memory.current": "1"},
        {"memory/memory.limit_in_bytes": f"{HUGE}", "memory/memory.usage_in_bytes": "1"},
    ],
)
def test_without_a_limit_it_is_the_machines(tmp_path: Path, files: dict[str, str]) -> None:
    told = available_mb(groups(tmp_path, files))
    assert told == pytest.approx(psutil.virtual_memory().available / 1e6, rel=0.5)
