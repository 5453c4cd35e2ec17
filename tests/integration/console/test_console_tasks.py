"""What operators come for, done in a browser: is the fleet well, how goes this rollout, stop it, this device, a model and its
builds, a campaign with its plan first, who did what, who may do what."""

from __future__ import annotations

import io
import json
import re
import zipfile
from typing import TYPE_CHECKING

from playwright.sync_api import expect
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from covey_contract.samples import SampleEntry
from covey_hil.testing.made_samples import sample
from covey_server.db import tables as t

if TYPE_CHECKING:
    from tests.integration.console.conftest import Console, Visitor


def _state(console: Console, campaign: str) -> str | None:
    with console.services.database.reading() as session:
        return session.scalar(select(t.Campaign.state).where(t.Campaign.name == campaign))


def test_is_the_fleet_well(visitor: Visitor) -> None:
    """Online, serving which version, how fast, errors, drift; and from each figure to the devices that it is about."""
    page = visitor.go("/")
    figures = page.locator("#figures")
    expect(figures.locator(".figure").nth(0)).to_contain_text("5of 6")
    expect(figures).to_contain_text(re.compile(r"p50 [\d.]+ ms · p95 [\d.]+ ms"))
    serves = page.get_by_role("row").filter(has=page.get_by_role("link", name="1.1", exact=True))
    expect(serves).to_contain_text("5")
    expect(serves).to_contain_text("2 simulated")
    page.get_by_role("link", name="1 offline", exact=True).click()
    expect(page.locator("#live tbody tr")).to_have_count(1)
    expect(page.locator("#live tbody")).to_contain_text("gate-2")
    expect(page.locator("#count")).to_have_text("1 device")


def test_a_device_that_runs_something_else_is_found(visitor: Visitor) -> None:
    def drift(session: Session) -> None:
        other = session.scalars(
            select(t.Build.digest).join(t.Version, t.Version.id == t.Build.version_id).where(t.Version.name == "1.3")
        ).first()
        session.execute(update(t.Reported).where(t.Reported.device == "crane-1").values(active=other))

    page = visitor.go("/")
    expect(page.locator("#wellness")).not_to_contain_text("runs something else")
    visitor.console.change(drift, "device", "crane-1")
    expect(page.locator("#wellness")).to_contain_text("1 device runs something else than it had reached")
    page.get_by_role("link", name="1 drifted", exact=True).click()
    expect(page.locator("#live tbody tr")).to_have_count(1)
    expect(page.locator("#device-crane-1")).to_contain_text("drifted")


def test_how_goes_this_rollout_and_why_is_it_waiting(visitor: Visitor) -> None:
    page = visitor.go("/campaigns")
    page.get_by_role("link", name="digits-1.2", exact=True).click()
    expect(page.get_by_role("heading", level=1, name="digits-1.2", exact=True)).to_be_visible()
    expect(page.locator("#waiting")).to_contain_text("1 in progress; errors has 31 of 50 requests; soak 10 s left")
    tally = page.locator("#tally")
    for name, count in (("not reached", "3"), ("in progress", "1"), ("failed", "1")):
        expect(tally.locator("div").filter(has_text=name)).to_contain_text(count)
    gate = page.locator("#gate-latency")
    expect(gate).to_contain_text("weighed against a control")
    expect(gate).to_contain_text("2.3 of 100 that halt")
    expect(gate).to_contain_text("+4.1 %")
    expect(gate).to_contain_text("95 % sure: −1.0 % to +8.0 %")
    expect(gate).to_contain_text("12 devices with 40 in control")
    expect(gate.locator("canvas")).to_have_count(2)
    expect(page.locator("#gate-errors")).to_contain_text("no evidence yet")
    page.get_by_role("navigation", name="Devices by state").get_by_role("link", name="failed", exact=True).click()
    expect(page.locator("#devices tbody tr")).to_have_count(1)
    expect(page.locator("#devices tbody")).to_contain_text("could not be loaded: the runtime could not read the model")
    expect(page.locator("#log")).to_contain_text("stage canary passed")


def test_stop_it_and_go_back(visitor: Visitor) -> None:
    page = visitor.go("/campaigns/digits-1.2")
    page.get_by_role("button", name="Pause", exact=True).press("Enter")
    expect(page.locator(".head .badge").first).to_have_text("paused")
    expect(page.locator("#waiting")).to_contain_text("paused by admin in stage line-a")
    page.get_by_role("button", name="Resume", exact=True).click()
    expect(page.locator(".head .badge").first).to_have_text("running")
    page.get_by_role("button", name="Roll back", exact=True).click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("Take every device of digits-1.2 back to the build it had before?")
    dialog.get_by_role("button", name="Cancel", exact=True).click()
    assert _state(visitor.console, "digits-1.2") == "running"
    page.get_by_role("button", name="Roll back", exact=True).click()
    dialog.get_by_role("button", name="Do it", exact=True).click()
    expect(page.locator(".head .badge").first).to_have_text("rolling back")
    assert _state(visitor.console, "digits-1.2") == "rolling_back"
    page = visitor.go("/audit?kind=campaign")
    expect(page.locator("tbody tr").first).to_contain_text("rolled a campaign back")
    expect(page.locator("tbody tr").first).to_contain_text("digits-1.2")


def test_this_device(visitor: Visitor) -> None:
    page = visitor.go("/devices?q=press-1")
    page.get_by_role("link", name="press-1", exact=True).click()
    card = page.locator("#model-digits")
    expect(card).to_contain_text("1.1")
    expect(card).to_contain_text("ranked highest for generic-x86-64")
    expect(card).to_contain_text("not built yet: a builder for tensorrt-fp16-sm87 (none has come)")
    expect(page.locator("#history li").first).to_contain_text("rolled back")
    expect(page.locator("#resources")).to_contain_text("41.5 MB")
    expect(page.locator("#resources")).to_contain_text("12, 1.50 MB of 200 MB from 1 % of the requests")
    expect(card).to_contain_text("Rows at once, 5 min")
    expect(card).to_contain_text("2.5 at most 4")
    labels = page.get_by_label("One NAME=VALUE a line")
    labels.fill("line=a\nsite=south")
    page.get_by_role("button", name="Save labels", exact=True).click()
    expect(page.locator("#place")).to_contain_text("site: south")
    moment = page.locator("#history time").first
    expect(moment).to_have_attribute("title", re.compile(r"\d{4}.*(CET|CEST|GMT\+)"))


def test_samples_for_labelling(visitor: Visitor) -> None:
    """Only where the device lets them leave; how far the fetch is; one archive with an index; and deleted again."""
    console = visitor.console
    page = visitor.go("/devices/press-1")
    place = page.locator("#samples")
    expect(place).to_contain_text("This device’s own settings do not let samples leave it.")
    expect(page.get_by_role("button", name="Fetch samples")).to_have_count(0)

    def let(session: Session) -> None:
        row = session.get_one(t.Device, "press-1")
        assert row.resources is not None
        row.resources = {**row.resources, "capture": {**row.resources["capture"], "may_leave": True}}

    console.change(let, "device", "press-1")
    page.get_by_role("button", name="Fetch samples").click()
    expect(page.get_by_role("dialog")).to_contain_text("They may show people.")
    page.get_by_role("dialog").get_by_role("button", name="Do it", exact=True).click()
    expect(place).to_contain_text("The fetch waits for its turn.")
    expect(page.get_by_role("button", name="Fetch samples")).to_be_disabled()

    def now(**values: object) -> None:
        def change(session: Session) -> None:
            session.execute(update(t.SampleFetch).values(values))

        console.change(change, "device", "press-1")

    now(state="running", found=2, fetched=1)
    expect(place).to_contain_text("1 of 2 new samples fetched")
    expect(place.get_by_role("progressbar", name="Samples fetched")).to_have_attribute("value", "1")
    assert console.services.fleet is not None
    shelf = console.services.fleet.samples.shelf
    shelf.prepare()
    for number in (1, 2):
        data = sample(time_ms=number)
        entry = SampleEntry(model="digits", name=f"{number}-000001.npz", size=len(data))
        shelf.keep(1, "press-1", entry, io.BytesIO(data))
    now(
        state="done",
        fetched=2,
        ended_ms=console.services.clock(),
        detail="left out: 3-000001.npz: it made room for newer ones",
    )
    expect(place).to_contain_text("2 of 2 new samples fetched")
    expect(place).to_contain_text("On the server: 2")
    with page.expect_download() as begun:
        page.get_by_role("link", name="Download samples").click()
    with zipfile.ZipFile(begun.value.path()) as archive:
        lines = [json.loads(line) for line in archive.read("index.jsonl").splitlines()]
        assert [line["file"] for line in lines] == [f"press-1/digits/{number}-000001.npz" for number in (2, 1)]
        assert archive.read(lines[0]["file"]) == sample(time_ms=2)
    page.get_by_role("button", name="Delete samples").click()
    expect(page.get_by_role("dialog")).to_contain_text("The device keeps its own.")
    page.get_by_role("dialog").get_by_role("button", name="Do it", exact=True).click()
    expect(page.get_by_role("link", name="Download samples")).to_have_count(0)
    now(state="failed", reason="timed_out", detail="it does not answer")
    expect(place).to_contain_text("it does not answer")
    page = visitor.go("/audit?kind=samples")
    expect(page.locator("tbody tr")).to_have_count(3)
    for words in ("fetched samples from a device", "downloaded samples", "deleted samples"):
        expect(page.locator("tbody")).to_contain_text(words)


def test_a_device_that_came_back_is_let_in(visitor: Visitor) -> None:
    """Its certificate has expired, its key asks, and the page shows that while it is open."""
    console, key = visitor.console, "63f0ed51" * 8
    page = visitor.go("/devices/gate-2")
    expect(page.get_by_role("button", name="Approve key")).to_have_count(0)
    now_ms = console.services.clock()

    def ask(session: Session) -> None:
        asked = {
            "origin": "renew 192.0.2.7",
            "asked_ms": now_ms,
            "seen_ms": now_ms,
            "ended_ms": now_ms,
            "state": "waiting",
        }
        session.add(t.RenewalRequest(device="gate-2", key=key, **asked))
        session.execute(update(t.Device).where(t.Device.id == "gate-2").values(certificate_ends_ms=now_ms - 60_000))

    console.change(ask, "device", "gate-2")
    card = page.locator(f"#renewal-{key[:16]}")
    expect(card).to_contain_text("192.0.2.7")
    expect(page.locator("#place")).to_contain_text("Certificate ended")
    card.get_by_role("button", name="Approve key").click()
    expect(card).to_have_count(0)
    with console.services.database.reading() as session:
        request = session.scalars(select(t.RenewalRequest)).one()
        assert (request.state, request.decided_by) == ("approved", "admin")


def test_a_group_is_made_with_a_count_before_it_is_saved(visitor: Visitor) -> None:
    page = visitor.go("/groups")
    page.get_by_role("link", name="New group", exact=True).click()
    page.get_by_label("Name", exact=True).fill("line-b")
    page.get_by_label("all that fit these conditions, also those that come later").check()
    page.get_by_label("Fact or label 1", exact=True).fill("labels.line")
    page.get_by_label("Values 1", exact=True).fill("b")
    expect(page.locator("#preview")).to_contain_text("3 devices fit now")
    page.get_by_label("Fact or label 1", exact=True).fill("nonsense")
    expect(page.locator("#preview")).to_contain_text("'nonsense' is not profile, simulated, labels.NAME or facts.PATH")
    page.get_by_label("Fact or label 1", exact=True).fill("labels.line")
    page.get_by_role("button", name="Save", exact=True).click()
    expect(page.get_by_role("heading", level=1, name="line-b", exact=True)).to_be_visible()
    expect(page.locator("tbody tr")).to_have_count(3)
    page = visitor.go("/groups")
    expect(page.locator("#group-line-b")).to_contain_text("3")


def test_a_model_is_uploaded_and_its_builds_are_seen(visitor: Visitor) -> None:
    page = visitor.go("/models")
    page.get_by_role("link", name="Push a version", exact=True).click()
    page.get_by_label("Model", exact=True).fill("digits")
    page.get_by_label("Version", exact=True).fill("3.0")
    page.get_by_label("Trained model").set_input_files(
        {"name": "digits.onnx", "mimeType": "application/octet-stream", "buffer": b"onnx" * 50_000}
    )
    page.get_by_role("button", name="Push", exact=True).click()
    page.wait_for_url("**/models/digits?version=3.0")
    matrix = page.get_by_role("group", name="Builds", exact=True)
    expect(matrix.get_by_role("row").filter(has_text="3.0")).to_contain_text("no builder yet")
    expect(matrix.get_by_role("row").filter(has_text="1.2")).to_contain_text("refused")
    matrix.get_by_role("link", name=re.compile("refused")).click()
    expect(page.locator(".lead")).to_contain_text("accuracy falls by 0.0134")


def test_a_campaign_is_built_planned_and_only_then_started(visitor: Visitor) -> None:
    page = visitor.go("/new-campaign?model=digits&version=1.1")
    file = page.get_by_label("Campaign file (YAML)")
    page.get_by_label("Name of the campaign").fill("built-here")
    page.get_by_label("Soak", exact=True).first.fill("25m")
    page.get_by_label("Soak", exact=True).first.press("Tab")
    expect(file).to_have_value(re.compile(r"name: built-here\n(.*\n)*- \{name: canary, group: canary, soak: 25m\}"))
    page.get_by_role("button", name="Add a stage", exact=True).click()
    expect(page.get_by_label("Name", exact=True)).to_have_count(4)
    page.get_by_role("button", name="Remove 4", exact=True).click()
    expect(page.get_by_label("Name", exact=True)).to_have_count(3)
    page.get_by_text("Who has a say").click()
    page.get_by_label("Somebody else has to approve it").check()
    expect(file).to_have_value(re.compile("approval: true"))
    # What is written into the file by hand comes back into the form.
    file.fill(file.input_value().replace("soak: 25m", "soak: 26m"))
    page.get_by_role("button", name="Read the file into the form", exact=True).click()
    expect(page.get_by_label("Soak", exact=True).first).to_have_value("26m")
    page.get_by_role("button", name="Show the plan", exact=True).click()
    expect(page.get_by_role("heading", name="Plan of built-here", exact=True)).to_be_visible()
    expect(page.locator("#plan")).to_contain_text("press-1")
    assert _state(visitor.console, "built-here") is None
    page.get_by_role("button", name="Keep it for later", exact=True).click()
    page.wait_for_url("**/campaigns/built-here")
    expect(page.locator(".head")).to_contain_text("waits for approval")
    page.get_by_role("link", name="Clone", exact=True).click()
    expect(page.get_by_label("Name of the campaign")).to_have_value("built-here-2")


def test_a_mistake_in_the_file_is_named_with_its_line(visitor: Visitor) -> None:
    page = visitor.go("/new-campaign?model=digits&version=1.1")
    file = page.get_by_label("Campaign file (YAML)")
    file.fill(file.input_value().replace("stages:", "stagez:"))
    page.get_by_role("button", name="Show the plan", exact=True).click()
    expect(page.locator("#plan-problem")).to_contain_text("Line 4, stagez")


def test_who_did_what(visitor: Visitor) -> None:
    page = visitor.go("/audit")
    page.get_by_label("About", exact=True).select_option(label="people")
    page.get_by_role("button", name="Show", exact=True).click()
    expect(page.locator("tbody tr")).to_have_count(1)
    expect(page.locator("tbody")).to_contain_text("added a person")
    expect(page.locator("tbody")).to_contain_text("anna")
    page.get_by_role("link", name="Verify the chain", exact=True).click()
    expect(page.get_by_role("status").filter(has_text="The log is whole.")).to_be_visible()


def test_people_and_tokens(visitor: Visitor) -> None:
    page = visitor.go("/settings/people")
    page.get_by_label("Name", exact=True).fill("bert")
    page.get_by_label("Role", exact=True).select_option(label="operator")
    page.get_by_role("button", name="Add and invite", exact=True).click()
    expect(page.locator("#invitation")).to_contain_text("/invitation?code=")
    invitation = page.locator("#invitation").inner_text()
    page = visitor.go("/settings/tokens")
    page.get_by_label("Name", exact=True).fill("pipeline")
    page.get_by_role("button", name="Make a token", exact=True).click()
    expect(page.locator("#secret")).to_contain_text("covey_")
    page = visitor.go("/settings/tokens")
    expect(page.locator("#token-pipeline")).to_contain_text("operator")
    page.get_by_role("button", name="Revoke pipeline", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Do it", exact=True).click()
    expect(page.locator("#token-pipeline")).to_have_count(0)
    # Who was invited chooses a password, and may do what the role may: not what administrators do.
    page.get_by_role("button", name="Log out", exact=True).click()
    page.goto(invitation)
    page.get_by_label("Password", exact=True).fill("a sentence that nobody guesses")
    page.get_by_label("The same again").fill("a sentence that nobody guesses")
    page.get_by_role("button", name="Keep it and log in", exact=True).click()
    expect(page.get_by_role("heading", level=1, name="Fleet", exact=True)).to_be_visible()
    page = visitor.go("/settings")
    expect(page.get_by_role("navigation", name="Settings").get_by_role("link", name="People")).to_be_hidden()
    expect(page.locator("main")).to_contain_text("push models, run campaigns, change devices and groups")
    page = visitor.go("/campaigns/built-here")
    expect(page.get_by_role("button", name="Approve", exact=True)).to_have_count(0)
    visitor.complaints.clear()


def test_webhooks_show_what_came_of_deliveries(visitor: Visitor) -> None:
    page = visitor.go("/settings/webhooks")
    expect(page.locator("#webhook-chat")).to_contain_text("a campaign halts")
    expect(page.locator("#deliveries tbody tr")).to_have_count(1)
    page.get_by_role("button", name="Send a test to chat", exact=True).click()
    expect(page.locator("#deliveries tbody tr")).to_have_count(2)
    expect(page.locator("#deliveries tbody tr").first).to_contain_text("pending")
