"""Issuing: counters, desired, superseded; a few statements for any number of devices."""

from __future__ import annotations

import msgspec
import pytest
from sqlalchemy import event, insert, select, update

from covey_hil.testing.rows import add_campaign
from covey_server.db.engine import Database
from covey_server.db.tables import AssignmentRow, CampaignDevice, Desired, Device
from covey_server.errors import NotFound
from covey_server.fleet.assignments import NewOrder, issue, reissue


def _order(device: str, build: int = 1, model: str = "digits", **more: object) -> NewOrder:
    return NewOrder(device, model, build, build, "rollout", **more)  # type: ignore[arg-type]


def test_counters_go_up_and_the_newest_is_desired(database: Database, now_ms: int) -> None:
    with database.session() as session:
        (first,) = issue(session, [_order("d0001")], now_ms)
        second, other = issue(session, [_order("d0001", 2), _order("d0001", 2, "other")], now_ms + 1)
    with database.reading() as session:
        rows = {row.id: row for row in session.scalars(select(AssignmentRow))}
        assert [rows[key].counter for key in (first, second, other)] == [1, 2, 3]
        assert [rows[key].state for key in (first, second, other)] == ["superseded", "issued", "issued"]
        assert session.get_one(Desired, ("d0001", "digits")).assignment == second
        assert session.get_one(Desired, ("d0001", "other")).assignment == other
        assert session.get_one(Device, "d0001").counter == 3


def test_what_has_ended_is_not_superseded(database: Database, now_ms: int) -> None:
    with database.session() as session:
        (first,) = issue(session, [_order("d0001")], now_ms)
        session.execute(update(AssignmentRow).values(state="active"))
        issue(session, [_order("d0001", 2, action="remove")], now_ms)
    with database.reading() as session:
        assert session.get_one(AssignmentRow, first).state == "active"
        newest = session.scalars(select(AssignmentRow).where(AssignmentRow.counter == 2)).one()
        assert newest.why == {"action": "remove"}


def test_refusals(database: Database, now_ms: int) -> None:
    with database.session() as session:
        assert issue(session, [], now_ms) == []
        with pytest.raises(NotFound, match="'nobody'"):
            issue(session, [_order("nobody")], now_ms)
        with pytest.raises(ValueError, match="two orders"):
            issue(session, [_order("d0001"), _order("d0001", 2)], now_ms)
        with pytest.raises(msgspec.ValidationError):
            issue(session, [_order("d0001", probation={"seconds": "long"})], now_ms)


def test_a_fleet_costs_a_few_statements(database: Database, now_ms: int) -> None:
    many = 2000
    with database.session() as session:
        row = dict(session.execute(select(Device.__table__).limit(1)).mappings().one())
        session.execute(insert(Device), [{**row, "id": f"m{number:05}"} for number in range(many)])
    said: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda _c, _cur, statement, *_: said.append(statement))
    orders = [_order(f"m{number:05}") for number in range(many)]
    with database.session() as session:
        assert len(issue(session, orders, now_ms)) == many
    assert len(said) < 30


def test_reissue_keeps_the_decision_and_its_campaign(database: Database, now_ms: int) -> None:
    with database.session() as session:
        campaign = add_campaign(session, 1, "c")
        order = _order("d0001", campaign_id=campaign.id, why={"reason": "x"}, ttl_ms=90_000, action="remove")
        (old,) = issue(session, [order], now_ms)
        session.add(CampaignDevice(campaign_id=campaign.id, device="d0001", stage=0, state="assigned", assignment=old))
        session.flush()
        (new,) = reissue(session, [old], now_ms + 5000)
    with database.reading() as session:
        row = session.get_one(AssignmentRow, new)
        assert (row.counter, row.expires_ms, row.campaign_id) == (2, now_ms + 95_000, campaign.id)
        assert row.why == {"reason": "x", "action": "remove"}
        assert session.get_one(AssignmentRow, old).state == "superseded"
        assert session.scalars(select(CampaignDevice.assignment)).one() == new
