"""The campaign builder: the form can say all that the file can, and neither loses anything on the way to the other."""

from __future__ import annotations

import doctest
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from covey_server.console.builder import file, texts
from covey_server.console.builder.grammar import Field, Group, Node, Rows, leaves, tree
from covey_server.core.document import parse
from covey_server.core.spec import parse_spec
from covey_server.errors import Invalid

# Everything that the grammar has, as far as one file can hold it.
EVERYTHING = """\
name: everything
model: digits
version: "1.1"
objective: latency
target:
  groups: [line-a, line-b]
  devices: [press-1]
  select: {labels.site: [north, south], facts.cpu_cores: 4, simulated: false}
  membership: live
  at_most: 500
exclude: {groups: [lab]}
draw: least_critical
seed: 7
stages:
  - name: canary
    group: canary
    soak: 10m
    approval: true
    gates: {errors: {max_rate: 0.02, method: threshold}}
    pace: {per_minute: 5, in_flight: 2}
  - {name: some, percent: 10, draw: random, not_before: "2026-12-01T22:00:00+01:00", min_reached: 0.9}
  - {name: sites, each: site, soak: 1h}
gates:
  evidence: {alpha: 0.005, confidence: 0.9, min_canaries: 12, burn_in: 5m}
  install_failures: {max_rate: 0.05, max_count: 2, min_devices: 10, base_rate: 0.01}
  errors: {max_rate: 0.01}
  latency:
    - {quantile: 0.5, max_ratio: 1.1}
    - {quantile: 0.99, max_ms: 40, pass_below: 1.2, measure: compute}
  drift: {max_psi: 0.3}
  temperature: {max_c: 85}
  throttling: {}
  memory: {max_ratio: 2}
  silence: {after: 3m}
  expressions:
    - {name: slow-and-hot, bad: p99_ms > 40 and temperature_c > 80, max_share: 0.2}
on_breach: {action: rollback, scope: stage}
retry: {times: 2, after: 5m, factor: 3, causes: [failed, timed_out, refused], then: person}
timeout: 2h
quarantine: {failures: 2}
probation: {seconds: 60, max_errors: 1, max_slowdown: 2}
schedule: {start: "2026-12-01T22:00:00+01:00", end: "2026-12-03T04:00:00+01:00", at_end: rollback}
pace: {per_minute: 10, growth: {per: 50, at_most: 200, factor: 1.5, count: notified}, bandwidth: 5MB/s}
maintenance:
  windows:
    - {from: "22:00", to: "05:00", days: [sat, sun], month_days: [1, 15]}
  zone: Europe/Berlin
  fetch: inside
conditions: {not_before: "2026-12-01T22:00:00+01:00", mains_power: true, idle: 30s, unlocked: true}
served: {requests: 10, of: all, within: 20m}
approval: true
conflict: queue
priority: 3
min_reached: 0.8
settle: 30s
assignment_ttl: 2d
"""


def _flat(node: Group, values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The form's fields as a browser sends them."""
    for child in node.children:
        if child.name not in values:
            continue
        path, value = f"{prefix}{child.name}", values[child.name]
        if isinstance(child, Rows):
            for index, row in enumerate(value):
                yield from _flat(child.item, row, f"{path}.{index}.")
        elif isinstance(child, Group):
            if child.optional:
                yield f"{path}.on", "yes"
            yield from _flat(child, value, f"{path}.")
        else:
            yield path, value


def test_the_form_and_the_file_lose_nothing_on_the_way_to_each_other() -> None:
    form = dict(_flat(tree(), file.shown(parse(EVERYTHING).value)))
    assert parse_spec(file.write(file.read(form))) == parse_spec(EVERYTHING)


def test_every_field_has_words_and_a_place_and_every_choice_a_name() -> None:
    nodes: list[Node] = list(leaves())
    assert {node.key for node in nodes} - texts.TEXTS.keys() == set()
    assert texts.TEXTS.keys() - {node.key for node in nodes} == set()
    for node in nodes:
        if isinstance(node, Field):
            assert all(texts.choice(one) != "" and "_" not in texts.choice(one) for one in node.choices), node.key
    places = Counter(name for _, names, _ in texts.SECTIONS for name in names)
    assert places == Counter(child.name for child in tree().children)
    for kind, names in texts.MAIN.items():
        assert set(names) <= {node.key.partition(".")[2] for node in nodes if node.key.startswith(f"{kind}.")}, kind


def test_what_is_left_empty_is_not_written() -> None:
    assert file.read({"name": "a", "model": " ", "gates.errors.max_rate": ""}) == {"name": "a"}
    # A gate that is only ticked is judged, with its defaults.
    assert file.read({"gates.throttling.on": "yes"}) == {"gates": {"throttling": {}}}
    # All days are no condition.
    every = {"maintenance.windows.0.from": "22:00", "maintenance.windows.0.days": "mon tue wed thu fri sat sun"}
    assert file.read(every) == {"maintenance": {"windows": [{"from": "22:00"}]}}


def test_rows_come_and_go_and_a_path_that_is_none_is_refused() -> None:
    document = file.read({"stages.0.name": "a", "stages.1.name": "b"})
    assert file.changed(document, "stages", "")["stages"] == [{"name": "a"}, {"name": "b"}, {}]
    assert file.changed(document, "", "stages.0")["stages"] == [{"name": "b"}, {}]
    assert file.changed({}, "gates.latency", "") == {"gates": {"latency": [{}]}}
    for path in ("name", "stages.9999999999.gates.latency", "nothing.here", "gates"):
        with pytest.raises(Invalid):
            file.changed({}, path, "")


@pytest.mark.parametrize("text", ["- a list", "name: [1, 2]", "stages: {name: a}", "gates: 7", "stages: [1, null]"])
def test_a_file_that_is_no_campaign_still_shows_a_form(text: str) -> None:
    assert isinstance(file.shown(parse(text).value), dict)


def test_examples_in_docstrings() -> None:
    assert doctest.testmod(file).failed == 0
