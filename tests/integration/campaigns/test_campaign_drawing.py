"""The draw in SQL and that in plain Python give the same plan, whatever the fleet, the stages and the way to draw."""

from __future__ import annotations

import random
from typing import Any

from covey_server.campaigns.planning import LEFT_OUT, parts_of, prepare
from covey_server.core.criticality import criticality_of
from covey_server.core.plan import Candidate, expanded, make_plan
from covey_server.core.spec import read_spec
from covey_server.db.engine import Database
from covey_server.db.tables import Device
from tests.integration.campaigns.conftest import Rig

SITES = [None, "ulm", "bonn", "kiel"]
STAGES = [
    "{name: S, group: canary}",
    "{name: S, select: {labels.line: a}}",
    "{name: S, percent: P}",
    "{name: S, count: C}",
    "{name: S, percent: P, each: site}",
    "{name: S, count: C, each: profile}",
    "{name: S, each: site, only: ulm}",
    '{name: S, each: site, only: ""}',
]


def fleet(rig: Rig, draw: random.Random) -> list[dict[str, Any]]:
    """Devices of two profiles, of sites or none, and what the plan in Python needs to know of them."""
    found = []
    profiles = [None, "raspberry-pi-5", "generic-x86-64"]
    for number in range(40):
        labels = {"line": draw.choice("ab")} if draw.random() < 0.7 else {}
        if (site := draw.choice(SITES)) is not None:
            labels["site"] = site
        if draw.random() < 0.5:
            labels["criticality"] = str(draw.randrange(0, 101, 25))
        name = f"d{draw.randrange(10**9)}-{number}"
        canary = draw.random() < 0.1
        rig.add_device(name, *(["canary"] if canary else []), labels=labels)
        found.append({"name": name, "labels": labels, "canary": canary, "profile": draw.choice(profiles)})
    return found


def test_sql_and_python_draw_alike(database: Database) -> None:
    rig = Rig(database)
    rig.add_version("1.1")
    draw = random.Random(11)
    devices = fleet(rig, draw)
    rig.add_device("a-canary", "canary")
    devices.append({"name": "a-canary", "labels": {}, "canary": True})
    with database.reading() as session:
        profile_of = {row.id: row.profile for row in session.query(Device.id, Device.profile)}
    for seed in range(25):
        stages = random_stages(draw)
        way, at_most = draw.choice(["spread", "random", "least_critical"]), draw.choice([None, None, 17])
        target = "" if at_most is None else f"target: {{groups: [all], at_most: {at_most}}}\n"
        text = f"name: c\nmodel: digits\nversion: '1.1'\ndraw: {way}\n{target}stages:\n" + "".join(
            f"  - {stage}\n" for stage in stages
        )
        spec, document = read_spec(text)
        candidates = [
            Candidate(
                each["name"],
                profile_of[each["name"]],
                None,
                each["labels"].get("site", ""),
                criticality_of(each["labels"]),
            )
            for each in devices
        ]
        members = {
            index: {
                each["name"]
                for each in devices
                if (each["canary"] if stage.group else each["labels"].get("line") == "a")
            }
            for index, stage in enumerate(spec.stages)
            if stage.group or stage.select
        }
        assert expanded(spec.stages, {"site": {}, "profile": {}}) == spec.stages
        plan = make_plan(spec.stages, candidates, members, seed, spec.draw, at_most)
        with database.reading() as session:
            prepared = prepare(session, spec, seed, document.error)
            in_sql = [
                tuple(part.device for part in parts_of(session, prepared, index, 1000))
                for index in range(len(spec.stages))
            ]
            left_out = {(part.device, part.reason) for part in parts_of(session, prepared, LEFT_OUT, 1000)}
            said = list(prepared.warnings)
            prepared.draw.drop()
        assert in_sql == [stage.devices for stage in plan.stages], text
        assert left_out == {(each.device, each.reason) for each in plan.left_out}
        assert [words for words in plan.warnings if words not in said] == []


def random_stages(draw: random.Random) -> list[str]:
    percent, count, stages = 0.0, 0, []
    for index in range(draw.randrange(1, 6)):
        percent, count = percent + draw.choice([1, 3.3, 12.5, 15]), count + draw.randrange(1, 6)
        stage = draw.choice(STAGES).replace("S", f"s{index}", 1)
        stages.append(stage.replace("P", f"{percent:g}").replace("C", str(count)))
    return stages
