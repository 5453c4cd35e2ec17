"""Devices: who is there, what they run, and their orders."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from covey_server.db.tables import AssignmentRow, Build, Device, RenewalRequest, Reported, Version
from covey_server.fleet import certificates, renewal


def collect(session: Session, now_ms: int) -> Iterator[Metric]:
    yield _present(session)
    yield _running(session)
    yield _orders(session)
    yield _certificates(session, now_ms)
    yield _renewals(session)


def _present(session: Session) -> Metric:
    family = GaugeMetricFamily(
        "covey_devices",
        "Enrolled devices, by firmware profile, connection, and whether they are simulated.",
        labels=["profile", "online", "simulated"],
    )
    columns = (Device.profile, Device.online, Device.simulated)
    rows = session.execute(select(*columns, func.count()).where(Device.revoked_ms.is_(None)).group_by(*columns))
    for profile, online, simulated, number in rows:
        family.add_metric([profile or "none", _word(online), _word(simulated)], number)
    return family


def _running(session: Session) -> Metric:
    family = GaugeMetricFamily(
        "covey_devices_running",
        "Devices by the model and version that they report as active.",
        labels=["model", "version"],
    )
    # Counted by digest first, so that the names are joined to a few rows and not to one for each device.
    counted = (
        select(Reported.active, func.count().label("number"))
        .where(Reported.active.is_not(None))
        .group_by(Reported.active)
        .subquery()
    )
    rows = session.execute(
        select(Version.model, Version.name, func.sum(counted.c.number))
        .select_from(counted)
        .join(Build, Build.digest == counted.c.active)
        .join(Version, Version.id == Build.version_id)
        .group_by(Version.model, Version.name)
    )
    for model, version, number in rows:
        family.add_metric([model, version], int(number))
    return family


def _orders(session: Session) -> Metric:
    family = GaugeMetricFamily(
        "covey_assignments", "Assignments ever issued, by kind and state.", labels=["kind", "state"]
    )
    columns = (AssignmentRow.kind, AssignmentRow.state)
    for kind, state, number in session.execute(select(*columns, func.count()).group_by(*columns)):
        family.add_metric([kind, state], number)
    return family


def _certificates(session: Session, now_ms: int) -> Metric:
    family = GaugeMetricFamily(
        "covey_device_certificates",
        "Devices by their certificate: good, ending (in its last 14 days), expired.",
        labels=["state"],
    )
    for state, number in certificates.count(session, now_ms).items():
        family.add_metric([state], number)
    return family


def _renewals(session: Session) -> Metric:
    query = select(func.count()).select_from(RenewalRequest).where(RenewalRequest.state == renewal.WAITING)
    family = GaugeMetricFamily(
        "covey_renewals_waiting", "Keys of devices with expired certificates that wait for an operator."
    )
    family.add_metric([], session.scalar(query) or 0)
    return family


def _word(value: bool) -> str:
    return "true" if value else "false"
