"""When devices' certificates end, and who asks for the next one after that."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("devices", sa.Column("certificate_ends_ms", sa.BigInteger(), nullable=True))
    op.create_index("devices_by_certificate", "devices", ["certificate_ends_ms"])
    op.execute(
        "UPDATE devices SET certificate_ends_ms = (SELECT max(not_after_ms) FROM certificates "
        "WHERE certificates.device = devices.id AND certificates.revoked_ms IS NULL)"
    )
    op.create_table(
        "renewal_requests",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("device", sa.String(length=64), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("origin", sa.String(length=128), nullable=False),
        sa.Column("asked_ms", sa.BigInteger(), nullable=False),
        sa.Column("seen_ms", sa.BigInteger(), nullable=False),
        sa.Column("ended_ms", sa.BigInteger(), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("decided_ms", sa.BigInteger(), nullable=True),
        sa.Column("decided_by", sa.String(length=64), nullable=True),
        sa.ForeignKeyConstraint(["device"], ["devices.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("device", "key"),
    )
    op.create_index("renewal_requests_by_state", "renewal_requests", ["state", "id"])
