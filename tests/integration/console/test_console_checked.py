"""A target that was only checked: said in words and without alarm, also where a TensorRT engine waits for its builder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
from sqlalchemy import select
from sqlalchemy.orm import Session

from covey_server.db import tables as t
from covey_server.registry.checks import CHECK_TARGET

if TYPE_CHECKING:
    from tests.integration.console.conftest import Console

FOUND = "the graph is fit for TensorRT (TensorRT-RTX 1.7.1.116 built engines for SM 80, 89); none is released"


def test_a_checked_target_is_told_on_model_and_build(console: Console) -> None:
    ids: list[int] = []

    def work(session: Session) -> None:
        version = session.scalars(select(t.Version).where(t.Version.name == "1.2")).one()
        check = t.Build(
            version_id=version.id,
            target=CHECK_TARGET,
            state="checked",
            report={
                "target": CHECK_TARGET,
                "outcome": "checked",
                "reason": FOUND,
                "toolchain": {"tensorrt-rtx": "1.7.1.116"},
            },
            created_ms=console.services.clock(),
            finished_ms=console.services.clock(),
        )
        session.add(check)
        session.flush()
        engine = select(t.Build.id).where(
            t.Build.version_id == version.id, t.Build.target.startswith("tensorrt-fp16", autoescape=True)
        )
        ids.extend([check.id, session.scalars(engine).one()])

    console.change(work, "build")
    with httpx.Client(base_url=console.url, follow_redirects=True, timeout=60) as client:
        client.get("/login", params={"code": console.code()})
        model = client.get("/models/digits?version=1.2").text
        check, engine = (client.get(f"/builds/{one}").text for one in ids)
    waits = "its graph is fit for TensorRT, checked through TensorRT-RTX 1.7.1.116"
    assert FOUND in model
    assert waits in model
    assert "4 of 6 builds ready" in model
    assert ">checked<" in check
    assert FOUND in check
    assert "Build again" not in check
    assert waits in engine
