"""A made-up fleet, put into a database by a few statements: devices of several kinds at many sites, versions of a model, and a
campaign with all of its orders out.

A few template rows are written as the server writes them, and multiplied by SQL; so every column has a value that it may have.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec
from sqlalchemy import delete, text
from sqlalchemy.orm import Session

from covey_contract.facts import Facts, RuntimeFact
from covey_hil.testing.rows import add_build, add_version, report_of
from covey_profiles import load_profiles, match
from covey_server.core.draw import lot_of
from covey_server.db.engine import Database
from covey_server.db.tables import (
    Device,
    Group,
)
from covey_server.fleet.labels import put_labels
from covey_server.fleet.sql import table_of

MODEL = "digits"
NOW_MS = 1_800_000_000_000
TEMPLATES = 1_000
SITES = 400
TARGETS = ("onnxruntime-fp32", "onnxruntime-int8", "openvino-int8", "tflite-int8")
_ID = "dev-{:07}"
_RUNTIMES = (
    RuntimeFact(name="onnxruntime", version="1.31.1", devices=("CPUExecutionProvider",)),
    RuntimeFact(name="openvino", version="2026.4.1", devices=("CPU",)),
    RuntimeFact(name="tflite", version="2.3.0"),
)
# (architecture, board, CPU, its flags): what profiles tell apart.
_HARDWARE = (
    ("x86_64", "", "Intel(R) N100", ("avx2", "avx_vnni")),
    ("x86_64", "", "Intel(R) Xeon(R) Gold 6430", ("avx2", "avx512f", "avx512_vnni", "amx_int8")),
    ("aarch64", "Raspberry Pi 4 Model B Rev 1.4", "Cortex-A72", ()),
    ("aarch64", "Raspberry Pi 5 Model B Rev 1.0", "Cortex-A76", ("asimddp",)),
    ("riscv64", "StarFive VisionFive 2", "SiFive U74", ()),  # no build fits it: it is left out
)


def facts_of(number: int) -> Facts:
    """Of the template with that number: five kinds of hardware, 200 states of software each."""
    architecture, board, cpu, flags = _HARDWARE[number % len(_HARDWARE)]
    patch = number // len(_HARDWARE)
    return Facts(
        architecture=architecture,
        board=board,
        cpu_model=cpu,
        cpu_cores=4,
        cpu_flags=flags,
        memory_mb=8000,
        storage_free_mb=20_000 + number,
        os="Debian GNU/Linux 12 (bookworm)",
        kernel=f"6.1.0-{patch}",
        libc="glibc 2.36",
        python="3.11.2",
        runtimes=_RUNTIMES,
        agent_version="0.1.0",
        timezone=("Europe/Berlin", "Asia/Shanghai", "America/Chicago")[number % 3],
        simulated=True,
    )


def add_devices(database: Database, number: int) -> None:
    """Devices `dev-0000000` and on, all but one in twenty connected; the group `pilot` holds one in a thousand."""
    devices = table_of(Device)
    with database.session() as session:
        profiles = load_profiles()
        for template in range(min(TEMPLATES, number)):
            facts = facts_of(template)
            found = match(facts, profiles)
            row = Device(
                id=f"template-{template}",
                profile=None if found.profile is None else found.profile.id,
                profile_reason=found.reason,
                simulated=True,
                facts=msgspec.to_builtins(facts),
                facts_digest=facts.digest(),
                enrolled_ms=NOW_MS,
                online=template % 20 != 0,
                last_seen_ms=NOW_MS - 60_000,
                timezone=facts.timezone,
            )
            put_labels(
                row, {"site": f"site-{template % SITES}", "criticality": ("low", "medium", "high")[template % 3]}
            )
            session.add(row)
        session.flush()
        session.execute(text("CREATE TEMPORARY TABLE ids (n INTEGER PRIMARY KEY, id VARCHAR(64), lot BIGINT)"))
        _bulk(session, "ids", [(n, _ID.format(n), lot_of(_ID.format(n))) for n in range(number)])
        ids = text("ids")
        given = {"id": "ids.id", "lot": "ids.lot"}
        names = [column.name for column in devices.c]
        columns = ", ".join(given.get(name, f"devices.{name}") for name in names)
        session.execute(
            text(
                f"INSERT INTO devices ({', '.join(names)}) SELECT {columns} FROM {ids} JOIN devices"  # noqa: S608 - our own names
                f" ON devices.id = 'template-' || (ids.n % {min(TEMPLATES, number)})"
            )
        )
        session.execute(delete(Device).where(Device.id.startswith("template-")))
        session.add(Group(name="pilot", description="", created_ms=NOW_MS))
        session.flush()
        session.execute(
            text("INSERT INTO group_members (group_name, device) SELECT 'pilot', id FROM ids WHERE n % 1000 = 0")
        )
        session.execute(text("DROP TABLE ids"))
    settle(database)


def _bulk(session: Session, table: str, rows: Sequence[tuple[int, str, int]]) -> None:
    """By the driver's own way, the quickest."""
    raw = session.connection().connection.driver_connection
    assert raw is not None  # noqa: S101 - for the type checker
    if session.get_bind().dialect.name == "sqlite":
        raw.executemany(f"INSERT INTO {table} VALUES (?, ?, ?)", rows)  # noqa: S608 - our own name
        return
    with raw.cursor() as cursor, cursor.copy(f"COPY {table} FROM STDIN") as copy:
        for row in rows:
            copy.write_row(row)


def settle(database: Database) -> None:
    """What the database does by itself in quiet moments: statistics, and PostgreSQL's clean-up."""
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql("ANALYZE" if database.sqlite else "VACUUM ANALYZE")


def add_versions(database: Database, *names: str) -> None:
    """Versions of the model, each built for every target."""
    with database.session() as session:
        for name in names:
            version = add_version(session, name, now_ms=NOW_MS)
            for target in TARGETS:
                digest = hashlib.sha256(f"{name} {target}".encode()).hexdigest()
                add_build(session, version, digest, target=target, report=report_of(target))
