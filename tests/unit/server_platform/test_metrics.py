"""What Prometheus is told, and that the dashboard and the alerts ask for nothing else."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import event, insert, select

from covey_contract.histogram import Histogram, Recorder
from covey_contract.messages import BuildWindow
from covey_hil.testing.rows import add_campaign, add_version
from covey_server.db.engine import Database
from covey_server.db.tables import (
    Build,
    Campaign,
    CampaignDevice,
    CampaignEvent,
    Device,
    Reported,
)
from covey_server.fleet import traffic
from covey_server.fleet.counters import HELP, Counters
from covey_server.fleet.sql import table_of
from covey_server.fleet.traffic import BOUNDS, Traffic, spread
from covey_server.metrics.campaigns import EventCounts
from covey_server.metrics.exporter import FRESH_S, Exporter
from covey_server.metrics.requests import by_version
from covey_server.releases.upkeep import ReleasesCollector

if TYPE_CHECKING:
    from tests.unit.server_platform.conftest import FakeClock, Site

DEPLOY = Path(__file__).parents[3] / "deploy"
RULES = DEPLOY / "prometheus" / "covey.rules.yaml"
DASHBOARD = DEPLOY / "grafana" / "covey.json"
BUILD = "ab" * 32


def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed (Debian, Ubuntu: prometheus)")
    return found


# --- traffic ----------------------------------------------------------------------------------------------------------


def _histogram(*values: float) -> Histogram:
    recorder = Recorder()
    for value in values:
        recorder.record(value)
    return recorder.snapshot()


def _window(*values: float, build: str = BUILD, failed: int = 0) -> BuildWindow:
    return BuildWindow(
        model="digits",
        version="1.0",
        build=build,
        ok=len(values) - failed,
        errors={"timeout": failed} if failed else {},
        fallbacks=1,
        end_to_end=_histogram(*values),
    )


@given(st.lists(st.floats(1e-6, 100.0), max_size=60))
def test_every_value_is_counted_under_the_bounds_that_are_above_it(values: list[float]) -> None:
    """A histogram of the devices is 4.4 % wide; its edges at half octaves are the bounds, so no count lands wrongly."""
    buckets = [0] * (len(BOUNDS) + 1)
    spread(_histogram(*values), buckets)
    assert sum(buckets) == len(values)
    for index, bound in enumerate(BOUNDS):
        # A value within a rounding of a bound may be on either side of it, in the device's own histogram already.
        surely, perhaps = sum(v < bound * (1 - 1e-9) for v in values), sum(v < bound * (1 + 1e-9) for v in values)
        assert surely <= sum(buckets[: index + 1]) <= perhaps


@given(st.integers(-3, 0), st.integers(-20, 10), st.lists(st.integers(0, 5), max_size=8))
def test_coarse_histograms_are_counted_whole(scale: int, offset: int, counts: list[int]) -> None:
    total = sum(counts)
    buckets = [0] * (len(BOUNDS) + 1)
    spread(Histogram(scale=scale, count=total, sum=1.0, max=1.0, offset=offset, counts=tuple(counts)), buckets)
    assert sum(buckets) == total


def test_devices_cannot_make_series_at_will(database: Database) -> None:
    counted = Traffic()
    counted.note_windows([_window(0.01, build=f"{number:064x}") for number in range(traffic.MAX_BUILDS + 50)])
    counted.note_swaps((f"m{number}", "active") for number in range(2000))
    assert len(counted.totals()) == traffic.MAX_BUILDS
    assert len(counted.swaps()) == 501
    assert sum(counted.swaps().values()) == 2000
    with database.reading() as session:
        assert list(by_version(session, counted.totals())) == [("unknown", "unknown")]


def test_a_device_that_talks_nonsense_takes_nothing_away() -> None:
    counted = Traffic()
    counted.note_windows([_window(0.01)])
    counted.note_windows([BuildWindow(model="d", version="1", build=BUILD, ok=-5, errors={"x": -7}, fallbacks=-1)])
    totals = counted.totals()[BUILD]
    assert (totals.ok, totals.failed, totals.fallbacks) == (1, 0, 1)


# --- a fleet ----------------------------------------------------------------------------------------------------------


def fill(database: Database, devices: int = 4) -> None:
    """A model with two versions, a campaign under way, and devices that run them."""
    with database.session() as session:
        versions = [add_version(session, name) for name in ("1.0", "1.1")]
        for number, version in enumerate(versions):
            digest = BUILD if number == 0 else "cd" * 32
            build = {"version_id": version.id, "created_ms": 1}
            session.add(Build(target="onnxruntime-fp32", state="built", digest=digest, **build))
            session.add(Build(target="openvino-int8", state="queued", **build))
            session.add(
                Build(target="tensorrt-fp16-sm87", state="queued", waiting_for="a builder (none has come)", **build)
            )
        campaign = add_campaign(session, versions[1].id, "digits-1.1")
        names = [f"d{number:05}" for number in range(devices)]
        session.execute(
            insert(Device),
            [
                {
                    "id": name,
                    "profile": "raspberry-pi-5" if number % 2 else None,
                    "facts": {},
                    "facts_digest": "",
                    "enrolled_ms": 1,
                    "online": number % 4 != 0,
                    "simulated": True,
                }
                for number, name in enumerate(names)
            ],
        )
        reported = table_of(Reported)
        rows = [{"device": name, "model": "digits", "active": BUILD, "updated_ms": 1} for name in names]
        blank = {"answered": 0, "reason": "none", "detail": ""}
        session.execute(insert(reported), [{**blank, **row} for row in rows])
        session.execute(
            insert(CampaignDevice),
            [{"campaign_id": campaign.id, "device": name, "stage": 0, "state": "assigned"} for name in names],
        )
        session.add(
            CampaignEvent(campaign_id=campaign.id, at_ms=1, kind="started", who="anna", message="started", detail={})
        )


class _Releases:
    """What `ReleasesCollector` asks for."""

    def status(self) -> list[Any]:
        return []


def exporter(database: Database, clock: FakeClock, **parts: Any) -> Exporter:
    counters = Counters()
    for name in HELP:
        counters.add(name, 2.0, kind="hello")
    counted = Traffic()
    counted.note_windows([_window(0.001, 0.002, 0.004, failed=1), _window(0.1, build="ff" * 32)])
    counted.note_swaps([("digits", "active"), ("digits", "rolled_back")])
    more = [ReleasesCollector(_Releases())]  # type: ignore[arg-type]
    return Exporter(database, clock, counters, counted, more, **parts)


@pytest.fixture
def text(any_database: Database, clock: FakeClock) -> str:
    fill(any_database)
    return exporter(any_database, clock).text().decode()


def families(text: str) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(found: dict[str, Metric], family: str, sample: str, **labels: str) -> float:
    return next(
        one.value for one in found[family].samples if one.name == sample and labels.items() <= one.labels.items()
    )


def test_the_figures_are_those_of_the_fleet(text: str) -> None:
    found = families(text)
    one = {"model": "digits", "version": "1.0"}
    latency = "covey_inference_latency_seconds"
    for family, sample, labels, expected in (
        ("covey_devices", "covey_devices", {"profile": "none", "online": "false", "simulated": "true"}, 1),
        ("covey_devices", "covey_devices", {"profile": "raspberry-pi-5", "online": "true"}, 2),
        ("covey_devices_running", "covey_devices_running", one, 4),
        ("covey_builds", "covey_builds", {"target": "openvino-int8", "state": "queued"}, 2),
        ("covey_build_queue_length", "covey_build_queue_length", {}, 4),
        ("covey_campaigns", "covey_campaigns", {"state": "running"}, 1),
        ("covey_campaigns", "covey_campaigns", {"state": "halted"}, 0),
        ("covey_campaign_events", "covey_campaign_events_total", {"kind": "started"}, 1),
        ("covey_campaign_devices", "covey_campaign_devices", {"campaign": "digits-1.1", "state": "assigned"}, 4),
        ("covey_inference_requests", "covey_inference_requests_total", one, 3),
        ("covey_inference_errors", "covey_inference_errors_total", one, 1),
        ("covey_inference_fallbacks", "covey_inference_fallbacks_total", one, 1),
        (latency, f"{latency}_count", one, 3),
        (latency, f"{latency}_bucket", {**one, "le": "0.00276214"}, 2),
        (latency, f"{latency}_count", {"model": "unknown"}, 1),
        ("covey_swaps", "covey_swaps_total", {"model": "digits", "outcome": "rolled_back"}, 1),
        ("covey_deliveries", "covey_deliveries", {"by": "webhook", "state": "dead"}, 0),
        ("covey_messages", "covey_messages_total", {"kind": "hello"}, 2),
    ):
        assert value(found, family, sample, **labels) == expected, (sample, labels)
    assert value(found, latency, f"{latency}_sum", **one) == pytest.approx(0.007)
    oldest = value(found, "covey_build_queue_oldest_seconds", "covey_build_queue_oldest_seconds")
    assert oldest == pytest.approx(1_800_000_000, rel=1e-6)


def test_promtool_finds_nothing_to_complain_of(text: str) -> None:
    done = subprocess.run([promtool(), "check", "metrics"], input=text, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_metrics_name_no_device_and_no_person(site: Site) -> None:
    fill(site.services.database)
    answer = site.client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert "d00000" not in answer.text
    assert "anna" not in answer.text
    assert "process_resident_memory_bytes" in families(answer.text)


# --- cost -------------------------------------------------------------------------------------------------------------


class _Slow:
    """A collector that takes as long as it is told, by a clock that only it moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.takes = 0.0
        self.asked = 0

    def collect(self) -> Iterator[Metric]:
        self.asked += 1
        self.now += self.takes
        yield GaugeMetricFamily("slow", "How often it was asked.", value=self.asked)


def test_figures_are_kept_longer_the_longer_they_take(database: Database, clock: FakeClock) -> None:
    slow = _Slow()
    made = Exporter(database, clock, None, None, [slow], monotonic=lambda: slow.now)
    asked = slow.asked
    made.text()
    slow.now += FRESH_S - 0.1
    made.text()
    assert slow.asked == asked + 1
    slow.now += 0.2
    slow.takes = 2.0
    made.text()
    slow.now += 39.9
    made.text()
    assert slow.asked == asked + 2
    slow.now += 0.2
    made.text()
    assert slow.asked == asked + 3


def test_a_scrape_of_ten_thousand_devices_is_a_few_statements(database: Database, clock: FakeClock) -> None:
    """No statement for each device, and no row of a device read: so it stays as cheap as counting."""
    fill(database, 10_000)
    statements: list[str] = []
    event.listen(database.engine, "before_cursor_execute", lambda *told: statements.append(told[2]))
    text = exporter(database, clock).text().decode()
    assert value(families(text), "covey_devices_running", "covey_devices_running") == 10_000
    assert len(statements) < 30


def test_events_are_read_once(database: Database, clock: FakeClock) -> None:
    fill(database)
    counts = EventCounts()
    with database.reading() as session:
        campaign = session.scalars(select(Campaign.id)).one()
        assert [one.value for one in counts.collect(session).samples] == [1]
    with database.session() as session:
        for kind in ("halted", "started"):
            session.add(CampaignEvent(campaign_id=campaign, at_ms=clock(), kind=kind, who="x", message="x", detail={}))
    with database.reading() as session:
        told = {one.labels["kind"]: one.value for one in counts.collect(session).samples}
        assert counts.collect(session).samples == counts.collect(session).samples
    assert told == {"started": 2, "halted": 1}


# --- files ------------------------------------------------------------------------------------------------------------


def test_the_rules_are_right_and_do_what_they_say() -> None:
    for words in (
        ("check", "rules", RULES.name),
        ("check", "config", "prometheus.yml"),
        ("test", "rules", "covey.rules.test.yaml"),
    ):
        done = subprocess.run([promtool(), *words], cwd=RULES.parent, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr


_NAME = re.compile(r"\b(covey[a-z0-9_:]*|process_[a-z_]+|up)\b")


def _asked(expressions: list[str]) -> set[str]:
    """The names of metrics in expressions, without what stands in quotes or braces."""
    bare = (re.sub(r'"[^"]*"|\{[^}]*\}', "", one) for one in expressions)
    return {name for one in bare for name in _NAME.findall(one)}


def _rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def _dashboard_expressions() -> list[str]:
    document = json.loads(DASHBOARD.read_text())
    found = [target["expr"] for panel in document["panels"] for target in panel.get("targets", [])]
    found += [one["expr"] for one in document["annotations"]["list"]]
    return found + [one["query"]["query"] for one in document["templating"]["list"] if isinstance(one["query"], dict)]


def test_alerts_and_dashboard_ask_for_what_the_server_tells(text: str) -> None:
    told = set(families(text))
    samples = {one.name for family in families(text).values() for one in family.samples} | told
    samples |= {f"{name}_total" for name in told}
    recorded = {rule["record"] for rule in _rules() if "record" in rule}
    asked = _asked([rule["expr"] for rule in _rules()] + _dashboard_expressions())
    assert asked - samples - recorded - {"up"} == set()
    assert len(_dashboard_expressions()) > 20
    # And the labels that they choose by are there.
    labels = {label for family in families(text).values() for one in family.samples for label in one.labels}
    chosen = set(re.findall(r"([a-z_]+)=~?\"", " ".join([*_dashboard_expressions(), *(r["expr"] for r in _rules())])))
    assert chosen - labels - {"job", "reason", "role"} == set()


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    for rule in _rules():
        if "alert" in rule:
            assert rule["labels"]["severity"] in {"info", "warning", "critical"}, rule["alert"]
            assert rule["annotations"]["summary"], rule["alert"]


def test_the_dashboards_panels_have_places_and_numbers_of_their_own() -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    places = [(p["gridPos"]["x"], p["gridPos"]["y"], p["gridPos"]["w"], p["gridPos"]["h"]) for p in panels]
    cells = [(x + i, y + j) for x, y, w, h in places for i in range(w) for j in range(h)]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) == 23
