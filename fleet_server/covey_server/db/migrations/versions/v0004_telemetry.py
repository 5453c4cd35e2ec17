"""What telemetry says of a build's outputs and inputs."""

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
