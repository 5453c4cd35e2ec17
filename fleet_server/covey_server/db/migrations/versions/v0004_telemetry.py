"""What telemetry says of a build's outputs and inputs, and of the device's resources."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for name in ("outputs", "inputs"):
        op.add_column("telemetry", sa.Column(name, sa.JSON(), nullable=False, server_default="{}"))
    op.add_column("telemetry", sa.Column("resources", sa.JSON(), nullable=True))
    op.create_index("telemetry_by_arrival", "telemetry", ["received_ms"])
    # A control group is drawn by lot, and looked for at the canaries' sites.
    op.create_index("devices_by_lot", "devices", ["lot"])
    op.create_index("devices_by_site", "devices", ["site"])
    # What the console asks of the whole fleet.
    op.create_index("devices_by_state", "devices", ["profile", "online", "simulated", "revoked_ms"])
    revoked = sa.text("revoked_ms IS NOT NULL")
    op.create_index("devices_revoked", "devices", ["id"], sqlite_where=revoked, postgresql_where=revoked)
    op.create_index("devices_by_enrolment", "devices", ["enrolled_ms"])
    op.create_index("reports_by_state", "reports", ["state", "at_ms"])
    op.create_index("reported_by_state", "reported", ["state", "device"])
