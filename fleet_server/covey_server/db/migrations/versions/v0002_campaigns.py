"""Campaigns over a million devices: what is decided once is kept once, and what has moved is noted."""

from __future__ import annotations

import hashlib

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_MEDIUM = 50


def upgrade() -> None:
    _devices()
    _deployments()
    _campaigns()


def _devices() -> None:
    """What planning reads of each device. Labels `site` and `criticality` had no meaning before; they count once they are set anew."""
    op.add_column("devices", sa.Column("lot", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("devices", sa.Column("site", sa.String(256), nullable=True))
    op.add_column("devices", sa.Column("criticality", sa.BigInteger(), nullable=False, server_default=str(_MEDIUM)))
    op.add_column("devices", sa.Column("timezone", sa.String(64), nullable=False, server_default="UTC"))
    connection = op.get_bind()
    ids = connection.execute(sa.text("SELECT id FROM devices")).scalars().all()
    if ids:
        lots = [{"id": each, "lot": _lot(each)} for each in ids]
        connection.execute(sa.text("UPDATE devices SET lot = :lot WHERE id = :id"), lots)
    op.drop_index("ix_devices_profile", table_name="devices")
    op.create_index("devices_by_kind", "devices", ["profile", "facts_digest", "revoked_ms", "id"])


def _lot(device: str) -> int:
    """As `covey_server.core.draw.lot_of` was when this was written."""
    return int.from_bytes(hashlib.sha256(device.encode()).digest()[:4], "big") >> 1


def _deployments() -> None:
    op.add_column("assignments", sa.Column("due_ms", sa.BigInteger(), nullable=True))
    op.execute("UPDATE assignments SET due_ms = issued_ms WHERE state = 'issued'")
    op.create_index(
        "assignments_due",
        "assignments",
        ["due_ms"],
        sqlite_where=sa.text("due_ms IS NOT NULL"),
        postgresql_where=sa.text("due_ms IS NOT NULL"),
    )
    op.add_column("assignments", sa.Column("reported_seq", sa.BigInteger(), nullable=True))
    op.execute(
        "UPDATE assignments SET reported_seq = (SELECT max(seq) FROM reports"
        " WHERE reports.device = assignments.device AND reports.assignment = assignments.id)"
    )
    op.add_column("assignments", sa.Column("conditions", sa.JSON(), nullable=True))
    op.add_column("desired", sa.Column("answers", sa.BigInteger(), nullable=False, server_default="0"))
    op.add_column("reported", sa.Column("answered", sa.BigInteger(), nullable=False, server_default="0"))
    op.create_table(
        "moved_devices",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("device", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=64), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )


def _campaigns() -> None:
    op.create_table(
        "campaign_choices",
        sa.Column("campaign_id", _ID, nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("build_id", _ID, nullable=True),
        sa.Column("why", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["campaign_id"], ["campaigns.id"]),
        sa.ForeignKeyConstraint(["build_id"], ["builds.id"]),
        sa.PrimaryKeyConstraint("campaign_id", "number"),
    )
    for name in ("paced", "is_open"):
        op.add_column("campaigns", sa.Column(name, sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("campaigns", sa.Column("going_back", sa.JSON(), nullable=True))
    op.add_column("campaigns", sa.Column("meter", sa.JSON(), nullable=True))
    op.add_column("campaigns", sa.Column("admitted_ms", sa.BigInteger(), nullable=True))
    _parts()
    # Whoever is in a campaign is looked at once by the first look of the new server.
    op.execute("INSERT INTO moved_devices (device, model) SELECT DISTINCT device, '' FROM campaign_devices")
    op.create_index(
        "campaign_devices_by_state",
        "campaign_devices",
        [
            "campaign_id",
            "state",
            "stage",
            "order_kind",
            "heard",
            "waiting",
            "served",
            "off_since_ms",
            "active_ms",
            "restored_ms",
        ],
    )
    op.create_index(
        "campaign_devices_at_work",
        "campaign_devices",
        ["campaign_id", "begun_ms"],
        sqlite_where=sa.text("state = 'assigned'"),
        postgresql_where=sa.text("state = 'assigned'"),
    )
    alike = ["campaign_id", "state", "stage", "order_kind", "heard", "waiting", "served"]
    op.create_index(
        "campaign_devices_off",
        "campaign_devices",
        [*alike, "off_since_ms"],
        sqlite_where=sa.text("off_since_ms IS NOT NULL"),
        postgresql_where=sa.text("off_since_ms IS NOT NULL"),
    )
    op.create_index(
        "campaign_devices_unserved",
        "campaign_devices",
        [*alike, "active_ms"],
        sqlite_where=sa.text("state = 'active' AND NOT served"),
        postgresql_where=sa.text("state = 'active' AND NOT served"),
    )
    op.create_index(
        "campaign_devices_drifted",
        "campaign_devices",
        ["campaign_id", "device"],
        sqlite_where=sa.text("drifted_ms IS NOT NULL"),
        postgresql_where=sa.text("drifted_ms IS NOT NULL"),
    )
    op.create_index(
        "campaign_devices_to_go",
        "campaign_devices",
        ["campaign_id", "stage", "timezone", "off_since_ms", "due_ms"],
        sqlite_where=sa.text("state IN ('planned', 'retrying')"),
        postgresql_where=sa.text("state IN ('planned', 'retrying')"),
    )


def _parts() -> None:
    """Made anew, since SQLite cannot take foreign keys away."""
    op.drop_index("campaign_devices_by_state", table_name="campaign_devices")
    op.rename_table("campaign_devices", "campaign_devices_before")
    op.create_table(
        "campaign_devices",
        sa.Column("campaign_id", _ID, nullable=False),
        sa.Column("device", sa.String(length=64), nullable=False),
        sa.Column("stage", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("choice", sa.BigInteger(), nullable=True),
        sa.Column("build_id", _ID, nullable=True),
        sa.Column("previous_build_id", _ID, nullable=True),
        sa.Column("assignment", sa.String(length=64), nullable=True),
        sa.Column("order_kind", sa.String(length=16), nullable=True),
        sa.Column("heard", sa.Boolean(), nullable=False),
        sa.Column("waiting", sa.Boolean(), nullable=False),
        sa.Column("served", sa.Boolean(), nullable=False),
        sa.Column("attempts", sa.BigInteger(), nullable=False),
        sa.Column("begun_ms", sa.BigInteger(), nullable=True),
        sa.Column("due_ms", sa.BigInteger(), nullable=True),
        sa.Column("drifted_ms", sa.BigInteger(), nullable=True),
        sa.Column("timezone", sa.String(length=64), nullable=True),
        sa.Column("off_since_ms", sa.BigInteger(), nullable=True),
        sa.Column("reason", sa.String(length=32), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("assigned_ms", sa.BigInteger(), nullable=True),
        sa.Column("active_ms", sa.BigInteger(), nullable=True),
        sa.Column("restored_ms", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("campaign_id", "device"),
    )
    kept = (
        "campaign_id, device, stage, state, build_id, previous_build_id, assignment, reason, detail, "
        "assigned_ms, active_ms, restored_ms"
    )
    op.execute(
        f"INSERT INTO campaign_devices ({kept}, order_kind, heard, waiting, served, attempts)"  # noqa: S608 - our own names
        f" SELECT {kept}, (SELECT kind FROM assignments WHERE id = campaign_devices_before.assignment),"
        " false, false, false, CASE WHEN assignment IS NULL THEN 0 ELSE 1 END FROM campaign_devices_before"
    )
    op.drop_table("campaign_devices_before")
