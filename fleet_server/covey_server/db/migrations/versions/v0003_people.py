"""People, an audit log that the database itself keeps from being changed, and whom to tell of what happens."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_APPEND_ONLY = "the audit log is append-only"


def upgrade() -> None:
    _people()
    _audit()
    _notifications()
    for table in ("versions", "builds"):
        op.add_column(table, sa.Column("traceparent", sa.String(length=64), nullable=True))


def _people() -> None:
    op.create_table(
        "people",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("email", sa.String(length=254), nullable=True),
        sa.Column("notify", sa.JSON(), nullable=False),
        sa.Column("password", sa.String(length=256), nullable=True),
        sa.Column("password_ms", sa.BigInteger(), nullable=True),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.String(length=64), nullable=False),
        sa.Column("last_login_ms", sa.BigInteger(), nullable=True),
        sa.Column("disabled_ms", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "login_attempts",
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("attempts", sa.BigInteger(), nullable=False),
        sa.Column("until_ms", sa.BigInteger(), nullable=False),
        sa.Column("last_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("key"),
    )
    op.create_index("ix_login_attempts_last_ms", "login_attempts", ["last_ms"])
    # Whoever is logged in logs in again; the table of tokens can then be altered on SQLite, since nothing refers to it.
    op.drop_table("console_sessions")
    with op.batch_alter_table("api_tokens") as tokens:
        tokens.add_column(sa.Column("person_id", _ID, nullable=True))
        tokens.add_column(sa.Column("models", sa.JSON(none_as_null=True), nullable=True))
        tokens.add_column(sa.Column("by_login", sa.Boolean(), nullable=False, server_default=sa.false()))
        tokens.create_foreign_key("api_tokens_person_id_fkey", "people", ["person_id"], ["id"])
    op.create_index("ix_api_tokens_person_id", "api_tokens", ["person_id"])
    op.create_table(
        "console_sessions",
        sa.Column("secret_hash", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("token_id", _ID, nullable=True),
        sa.Column("person_id", _ID, nullable=True),
        sa.Column("csrf", sa.String(length=64), nullable=False),
        sa.Column("origin", sa.String(length=64), nullable=False),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("expires_ms", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["token_id"], ["api_tokens.id"]),
        sa.ForeignKeyConstraint(["person_id"], ["people.id"]),
        sa.PrimaryKeyConstraint("secret_hash"),
    )
    op.create_index("ix_console_sessions_token_id", "console_sessions", ["token_id"])
    op.create_index("ix_console_sessions_person_id", "console_sessions", ["person_id"])


def _audit() -> None:
    with op.batch_alter_table("audit") as audit:
        audit.alter_column("origin", existing_type=sa.String(length=64), type_=sa.String(length=128))
    op.create_index("audit_by_time", "audit", ["at_ms"])
    for column in ("who", "action", "object"):
        op.create_index(f"audit_by_{column}", "audit", [column, "id"])
    if op.get_bind().dialect.name == "sqlite":
        for name, when in (
            ("audit_no_update", "BEFORE UPDATE ON audit"),
            ("audit_no_delete", "BEFORE DELETE ON audit"),
            # REPLACE deletes without asking the trigger above; nothing is put between entries either.
            ("audit_no_insert_between", "BEFORE INSERT ON audit WHEN NEW.id <= (SELECT max(id) FROM audit)"),
        ):
            op.execute(f"CREATE TRIGGER {name} {when} BEGIN SELECT RAISE(ABORT, '{_APPEND_ONLY}'); END")
        return
    op.execute(
        "CREATE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{_APPEND_ONLY}' USING ERRCODE = 'restrict_violation'; END $$"
    )
    op.execute(
        "CREATE FUNCTION audit_refuse_between() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "  # noqa: S608 - our own words
        "IF NEW.id <= (SELECT max(id) FROM audit) THEN "
        f"RAISE EXCEPTION '{_APPEND_ONLY}' USING ERRCODE = 'restrict_violation'; END IF; RETURN NEW; END $$"
    )
    for name, when, calls in (
        ("audit_no_change", "BEFORE UPDATE OR DELETE ON audit FOR EACH ROW", "audit_refuse"),
        ("audit_no_truncate", "BEFORE TRUNCATE ON audit FOR EACH STATEMENT", "audit_refuse"),
        ("audit_no_insert_between", "BEFORE INSERT ON audit FOR EACH ROW", "audit_refuse_between"),
    ):
        op.execute(f"CREATE TRIGGER {name} {when} EXECUTE FUNCTION {calls}()")


def _notifications() -> None:
    op.create_table(
        "webhooks",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("url", sa.String(length=2048), nullable=False),
        sa.Column("events", sa.JSON(), nullable=False),
        sa.Column("secret", sa.LargeBinary(), nullable=False),
        sa.Column("previous_secret", sa.LargeBinary(), nullable=True),
        sa.Column("previous_until_ms", sa.BigInteger(), nullable=True),
        sa.Column("created_ms", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.String(length=64), nullable=False),
        sa.Column("disabled_ms", sa.BigInteger(), nullable=True),
        sa.Column("disabled_why", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("name"),
    )
    op.create_table(
        "notices",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("source", sa.String(length=128), nullable=False),
        sa.Column("event", sa.String(length=64), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("summary", sa.Text(), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("addressed_ms", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("key"),
        sa.UniqueConstraint("source"),
    )
    op.create_index("ix_notices_at_ms", "notices", ["at_ms"])
    op.create_index("ix_notices_addressed_ms", "notices", ["addressed_ms"])
    op.create_table(
        "deliveries",
        sa.Column("id", _ID, autoincrement=True, nullable=False),
        sa.Column("notice_id", _ID, nullable=False),
        sa.Column("webhook_id", _ID, nullable=True),
        sa.Column("recipient", sa.String(length=254), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("attempts", sa.BigInteger(), nullable=False),
        sa.Column("due_ms", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.BigInteger(), nullable=True),
        sa.Column("error", sa.Text(), nullable=False),
        sa.Column("duration_ms", sa.BigInteger(), nullable=True),
        sa.Column("finished_ms", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["notice_id"], ["notices.id"], ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["webhook_id"], ["webhooks.id"], ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("deliveries_due", "deliveries", ["state", "due_ms"])
    op.create_index("ix_deliveries_notice_id", "deliveries", ["notice_id"])
    op.create_index("ix_deliveries_webhook_id", "deliveries", ["webhook_id"])
