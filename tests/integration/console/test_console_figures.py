"""Figures are what they say they are: counts of all windows, quantiles of a stated time, charts that compare two versions."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from playwright.sync_api import expect
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from covey_contract.histogram import merge
from covey_server.console import device_view, latency
from covey_server.db import tables as t

if TYPE_CHECKING:
    from tests.integration.console.conftest import Console, Visitor

HOUR_MS = 3_600_000


def _digests(session: Session) -> list[str]:
    return [digest for digest in session.scalars(select(t.Build.digest)) if digest is not None]


def test_counts_are_of_all_windows_and_quantiles_say_how_far_they_reach(console: Console) -> None:
    now_ms = console.seed.now
    with console.services.database.reading() as session:
        builds = _digests(session)
        whole = latency.lately(session, builds, now_ms, 24 * HOUR_MS)
        part = latency.lately(session, builds, now_ms, 24 * HOUR_MS, limit=20)
    everything = sum(whole.tallies.values(), latency.Tally())
    assert everything.windows == len(whole.windows) > 20
    assert part.tallies == whole.tallies
    assert whole.since_ms == now_ms - 24 * HOUR_MS < part.since_ms
    assert len(part.windows) <= 20 + len(part.tallies) * latency.LEAST_OF_BUILD
    shown = latency.health_of(merge([one.latency for one in part.windows]), everything)
    assert shown.requests == latency.health(whole.windows).requests


def test_a_device_with_a_wrong_clock_is_judged_by_ours(console: Console) -> None:
    name, now_ms = "crane-1", console.services.clock()

    def behind(session: Session) -> None:
        rows = session.scalars(
            select(t.TelemetryRow).where(t.TelemetryRow.device == name).order_by(t.TelemetryRow.seq.desc()).limit(6)
        ).all()
        newest = max(row.end_ms for row in rows)
        for row in rows:
            row.received_ms = now_ms - (newest - row.end_ms) // 1000
            row.start_ms, row.end_ms = row.start_ms - 2 * HOUR_MS, row.end_ms - 2 * HOUR_MS

    console.change(behind, "telemetry", name)
    with console.services.database.reading() as session:
        page = device_view.device(session, name, now_ms)
    assert page.models[0].health.requests == 360
    assert 1.9 * HOUR_MS < page.clock_ms < 2.1 * HOUR_MS


def _chart(visitor: Visitor, where: str) -> dict[str, Any]:
    page = visitor.go(where)
    figure = page.locator("figure[data-chart]")
    expect(figure.locator("canvas")).to_be_visible()
    drawn: dict[str, Any] = json.loads(figure.get_attribute("data-chart") or "{}")
    return drawn


def test_a_halted_campaign_shows_its_evidence_first_and_compares_two_versions(visitor: Visitor) -> None:
    chart = _chart(visitor, "/campaigns/digits-1.3")
    assert [line["group"] for line in chart["lines"] if line["kind"] == "quantile"] == [
        "before: digits 1.1",
        "new: digits 1.3",
        "beside them, not reached",
    ]
    assert [mark["text"] for mark in chart["marks"]] == ["started", "halted", "restored"]
    before, new, beside = (
        [value for value in line["values"] if value is not None]
        for line in chart["lines"]
        if line["kind"] == "quantile"
    )
    assert min(new) > max(before)
    assert min(new) > max(beside)
    page = visitor.page
    expect(page.locator("figure .legend .key:not(.plain)")).to_have_text(
        ["before: digits 1.1", "new: digits 1.3", "beside them, not reached"]
    )
    evidence = page.locator("#live section").first
    expect(evidence).to_contain_text("Halted by the gate “latency” in stage canary")
    expect(evidence).to_contain_text("31.6 ms")
    expect(evidence).to_contain_text("at most × 1.5")


def test_the_words_of_a_charts_marks_do_not_cover_one_another(visitor: Visitor) -> None:
    visitor.page.add_init_script(
        """window.words = [];
        const fill = CanvasRenderingContext2D.prototype.fillText;
        CanvasRenderingContext2D.prototype.fillText = function (text, x, y) {
          if (/^[a-z]/.test(text)) window.words.push([text, x, y, this.measureText(text).width]);
          return fill.apply(this, arguments);
        };"""
    )
    for width in (390, 1280):
        visitor.page.set_viewport_size({"width": width, "height": 900})
        _chart(visitor, "/campaigns/digits-1.3")
        words = visitor.page.evaluate("window.words")
        assert {"halted", "restored"} <= {word[0] for word in words}
        last = {word[0]: word for word in words}.values()
        for one in last:
            for other in last:
                apart = abs(one[2] - other[2]) >= 11 or one[1] + one[3] <= other[1] or other[1] + other[3] <= one[1]
                assert one is other or apart, (width, one, other)


def test_no_page_shows_raw_words_of_the_engine(visitor: Visitor) -> None:
    for where in ("/", "/campaigns/digits-1.3", "/devices/press-1", "/audit", "/models/digits"):
        text = visitor.go(where).locator("main").inner_text()
        for raw in ("end_to_end", "rolled_back", "->", '{"', "_ms", "None"):
            assert raw not in text, (where, raw)


def test_an_unwell_fleet_says_what_is_not_well(visitor: Visitor) -> None:
    def away(session: Session) -> None:
        session.execute(update(t.Device).where(t.Device.id == "press-2").values(online=False))

    visitor.console.change(away, "device", "press-2")
    page = visitor.go("/")
    expect(page.locator("#wellness")).to_contain_text("offline")
