"""Campaign files for tests, and what came of the campaigns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select

from covey_server.db.tables import AssignmentRow

if TYPE_CHECKING:
    from tests.integration.campaigns.conftest import Rig

FILE = """
name: c
model: digits
version: "1.1"
stages:
  - {name: all, percent: 100}
"""


def text(*lines: str, name: str = "c", stages: str = "  - {name: all, percent: 100}", version: str = "1.1") -> str:
    head = FILE.replace("name: c\n", f"name: {name}\n").replace('"1.1"', f'"{version}"')
    return "\n".join([head.replace("  - {name: all, percent: 100}", stages), *lines, ""])


def orders_of(rig: Rig, device: str) -> list[AssignmentRow]:
    with rig.database.reading() as session:
        found = session.scalars(
            select(AssignmentRow).where(AssignmentRow.device == device).order_by(AssignmentRow.counter)
        )
        return list(found.all())
