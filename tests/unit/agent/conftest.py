"""A store in a fresh folder, builds to put into it, and an agent whose every step may be its last."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from covey_agent import durable
from covey_agent.store import Store
from covey_hil.testing.agent_world import World
from covey_hil.testing.random_builds import RandomBuild


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path)
    made.prepare()
    return made


@pytest.fixture
def random_build() -> Callable[..., RandomBuild]:
    return RandomBuild


@pytest.fixture
def no_flushing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill, other than a power cut, leaves what was written; without flushing it is tried a hundred times a second."""
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, lambda _file: None)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_flushing: None) -> World:  # noqa: ARG001  # for its effect
    made = World(tmp_path)
    real = durable.write

    def write(path: Path, data: bytes, mode: int = 0o644) -> None:
        made.fuse.step()
        real(path, data, mode)
        made.fuse.step()

    monkeypatch.setattr(durable, "write", write)
    return made
