"""Planning: who goes in which stage."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey_server.core.plan import (
    ENOUGH,
    NO_STAGE,
    Candidate,
    Newcomer,
    TooManyStagesError,
    biased,
    drawn,
    expanded,
    make_plan,
    place,
)
from covey_server.core.spec import Each, Stage


def fleet(**kinds: int) -> list[Candidate]:
    return [Candidate(f"{kind}-{number:03}", kind) for kind, size in kinds.items() for number in range(size)]


def stage(
    name: str,
    *,
    group: str | None = None,
    percent: float | None = None,
    count: int | None = None,
    each: Each | None = None,
    only: str | None = None,
) -> Stage:
    return Stage(name=name, group=group, percent=percent, count=count, each=each, only=only)


def test_a_group_then_shares_of_the_whole_target() -> None:
    devices = fleet(pi=10)
    stages = [stage("canary", group="canary"), stage("half", percent=50), stage("rest", percent=100)]
    plan = make_plan(stages, devices, {0: {"pi-003", "pi-007", "elsewhere"}}, seed=1)
    assert plan.stages[0].devices == ("pi-003", "pi-007")
    assert [len(each.devices) for each in plan.stages] == [2, 3, 5]
    assert plan.left_out == ()
    assert plan.warnings == ()


def test_what_no_stage_takes_is_left_out_with_the_reason() -> None:
    devices = [*fleet(pi=4), Candidate("odd-1", None, "no firmware profile matches it")]
    plan = make_plan([stage("some", count=3), stage("none", group="empty")], devices, {1: set()}, seed=1)
    assert len(plan.stages[0].devices) == 3
    assert sorted((each.device[:3], each.reason) for each in plan.left_out) == [
        ("odd", "no firmware profile matches it"),
        ("pi-", "no stage takes it"),
    ]
    assert plan.warnings == (
        "stage none is empty: no device of group empty is left for it",
        "1 left out: no firmware profile matches it",
        "1 left out: no stage takes it",
    )


def test_a_draw_is_spread_over_profiles_and_its_seed_repeats_it() -> None:
    devices = fleet(pi=80, jetson=20)
    draw = [stage("tenth", percent=10), stage("rest", percent=100)]
    plan = make_plan(draw, devices, {}, seed=7)
    drawn = plan.stages[0].devices
    assert (sum(one.startswith("pi") for one in drawn), sum(one.startswith("jetson") for one in drawn)) == (8, 2)
    assert make_plan(draw, list(reversed(devices)), {}, seed=7) == plan
    assert make_plan(draw, devices, {}, seed=8).stages[0].devices != drawn


def test_a_percentage_of_few_devices_still_takes_one() -> None:
    plan = make_plan([stage("canary", percent=1), stage("rest", percent=100)], fleet(pi=6), {}, seed=1)
    assert [len(each.devices) for each in plan.stages] == [1, 5]


def test_nobody_to_send_to_is_said() -> None:
    plan = make_plan([stage("all", percent=100)], [], {}, seed=1)
    assert plan.warnings == ("no device of the target gets a build",)


PROFILES = st.sampled_from(["pi", "jetson", "nuc", None])
STAGES = st.lists(st.one_of(st.floats(0.1, 100), st.integers(1, 40), st.just("group")), min_size=1, max_size=6)


@given(st.lists(PROFILES, max_size=60), STAGES, st.integers(0, 1 << 48), st.data())
def test_each_device_is_in_one_stage_or_left_out(
    profiles: list[str | None], kinds: list[float | int | str], seed: int, data: st.DataObject
) -> None:
    devices = [
        Candidate(f"d{number}", profile, data.draw(st.sampled_from([None, None, "no build"])))
        for number, profile in enumerate(profiles)
    ]
    members = {each.device for each in devices if data.draw(st.booleans())}
    stages = [
        stage(f"s{index}", group="g")
        if kind == "group"
        else stage(f"s{index}", count=kind)
        if isinstance(kind, int)
        else stage(f"s{index}", percent=float(kind))
        for index, kind in enumerate(kinds)
    ]
    plan = make_plan(stages, devices, {index: members for index, kind in enumerate(kinds) if kind == "group"}, seed)
    placed = [device for each in plan.stages for device in each.devices]
    everyone = [*placed, *(each.device for each in plan.left_out)]
    assert sorted(everyone) == sorted(each.device for each in devices)
    assert not {each.device for each in devices if each.left_out} & set(placed)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 1000))
def test_every_beginning_of_a_draw_is_in_proportion(first: int, second: int, seed: int) -> None:
    order = [each.device for each in drawn(fleet(a=first, b=second), seed)]
    for length in range(len(order) + 1):
        share = sum(device.startswith("a") for device in order[:length])
        assert abs(share - length * first / (first + second)) <= 1.5


# --- sites, criticality, each -------------------------------------------------------------------------------------


def plants(**sizes: int) -> list[Candidate]:
    """Devices of several sites, two thirds of them of one profile."""
    return [
        Candidate(f"{site}-{number:03}", "pi" if number % 3 else "nuc", site=site, criticality=number)
        for site, size in sizes.items()
        for number in range(size)
    ]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(0, 1000))
def test_a_draw_is_spread_over_sites_too_and_profiles_come_first(sizes: list[int], seed: int) -> None:
    devices = plants(**{f"p{index}": size for index, size in enumerate(sizes)})
    order = drawn(devices, seed)
    assert sorted(each.device for each in order) == sorted(each.device for each in devices)
    for profile in ("pi", "nuc"):
        alike = [each for each in order if each.profile == profile]
        for length in range(len(order) + 1):
            here = sum(each.profile == profile for each in order[:length])
            assert abs(here - length * len(alike) / len(order)) <= 1.5
        for site in {each.site for each in alike}:
            whole = sum(each.site == site for each in alike)
            for length in range(len(alike) + 1):
                part = sum(each.site == site for each in alike[:length])
                assert abs(part - length * whole / len(alike)) <= len(sizes)


def test_a_draw_may_ignore_kinds() -> None:
    devices = fleet(pi=50, nuc=50)
    order = [each.device for each in drawn(devices, 3, "random")]
    assert sorted(order) == sorted(each.device for each in devices)
    assert order != [each.device for each in drawn(devices, 4, "random")]
    assert order != [each.device for each in drawn(devices, 3, "spread")]
    assert order[:50] != sorted(order[:50])


def test_the_least_critical_may_come_first() -> None:
    devices = plants(a=12, b=12)
    order = drawn(devices, 1, "least_critical")
    assert [each.criticality for each in order] == sorted(each.criticality for each in devices)
    plan = make_plan([stage("first", count=4), stage("rest", percent=100)], devices, {}, 1, "least_critical")
    assert plan.stages[0].devices == ("a-000", "a-001", "b-000", "b-001")
    own = Stage(name="first", count=4, draw="least_critical")
    assert make_plan([own, stage("rest", percent=100)], devices, {}, 1).stages[0] == plan.stages[0]


def test_a_stage_may_take_some_of_each_kind() -> None:
    devices = plants(a=30, b=5, c=1)
    stages = [
        stage("one", count=1, each="site"),
        stage("tenth", percent=20, each="site"),
        stage("kinds", count=9, each="profile"),
        stage("rest", percent=100),
    ]
    plan = make_plan(stages, devices, {}, seed=1)
    sites = [sorted(device[0] for device in each.devices) for each in plan.stages]
    assert sites[0] == ["a", "b", "c"]
    assert sites[1] == ["a"] * 5  # 6 of 30 in all, 1 of 5, 1 of 1
    assert len(plan.stages[2].devices) == 2 * 9 - 8
    assert sum(len(each.devices) for each in plan.stages) == 36


def test_one_stage_may_stand_for_one_of_each_site() -> None:
    stages = [stage("canary", count=1), stage("line", each="site"), stage("rest", percent=100)]
    written = expanded(stages, {"site": {"plant b": 9, "a": 3, "": 1}, "profile": {}})
    assert [(each.name, each.only) for each in written] == [
        ("canary", None),
        ("line-other", ""),
        ("line-a", "a"),
        ("line-plant-b", "plant b"),
        ("rest", None),
    ]
    devices = [*plants(a=6), Candidate("lost", "pi")]
    plan = make_plan(written[1:], devices, {}, seed=1)
    assert [len(each.devices) for each in plan.stages] == [1, 6, 0, 0]
    with pytest.raises(TooManyStagesError, match="makes 62 stages; at most 50"):
        expanded(stages, {"site": {f"s{number}": 1 for number in range(60)}, "profile": {}})


def test_names_of_sites_that_look_alike_stay_apart() -> None:
    written = expanded([stage("s", each="site")], {"site": {"a/b": 1, "a b": 1, "x" * 99: 1}, "profile": {}})
    assert len({each.name for each in written}) == 3
    assert all(len(each.name) <= 64 for each in written)


def test_a_target_may_be_as_large_as_it_says() -> None:
    plan = make_plan([stage("half", percent=50), stage("rest", percent=100)], fleet(pi=40), {}, 1, at_most=10)
    assert [len(each.devices) for each in plan.stages] == [5, 5]
    assert {each.reason for each in plan.left_out} == {ENOUGH}


def test_canaries_that_are_not_drawn_are_warned_about() -> None:
    stages = [stage("canary", group="g"), stage("rest", percent=100)]
    assert biased(stages, [{"pi": 2}, {"pi": 8, "nuc": 3}], [{"a": 2}, {"a": 5, "b": 6}]) == [
        "stage canary is all of one site (a); its verdict cannot tell the site's troubles from the version's",
        "stage canary has no device of profile nuc; the first of them are in a later stage",
    ]
    assert biased(stages, [{"pi": 2, "nuc": 1}, {"pi": 8, "nuc": 3}], [{"a": 2, "b": 1}, {"a": 5, "b": 6}]) == []
    assert biased(stages, [{"pi": 2}, {"pi": 8}], [{"": 2}, {"": 8}]) == []


# --- newcomers ----------------------------------------------------------------------------------------------------


def test_newcomers_join_the_present_stage_in_proportion_and_never_one_that_has_passed() -> None:
    stages = [stage("canary", percent=10), stage("half", percent=50), stage("rest", percent=100)]
    placed = {(0, "pi", ""): 10, (1, "pi", ""): 40, (2, "pi", ""): 50}
    new = [Newcomer(each) for each in fleet(pi=100)]
    first = list(place(new, stages, 0, placed).values())
    assert [first.count(index) for index in range(3)] == [10, 40, 50]
    later = list(place(new, stages, 1, placed).values())
    assert [later.count(index) for index in range(3)] == [0, 50, 50]
    last = place(new, stages, 2, placed)
    assert set(last.values()) == {2}
    assert len(last) == 100


def test_newcomers_join_the_stage_of_their_group_or_site_unless_it_has_passed() -> None:
    stages = [stage("g", group="g"), stage("site", each="site", only="a"), stage("some", count=12)]
    new = [Newcomer(Candidate("in-g", "pi", site="a"), frozenset({0})), Newcomer(Candidate("in-a", "pi", site="a"))]
    assert place(new, stages, 0, {}) == {"in-g": 0, "in-a": 1}
    assert place(new, stages, 1, {}) == {"in-g": 1, "in-a": 1}
    assert place(new, stages, 2, {(0, "pi", "a"): 11}) == {"in-g": 2}
    assert NO_STAGE  # what the other is left out for


@given(st.lists(st.sampled_from("abc"), max_size=40), st.integers(0, 3), st.integers(0, 100))
def test_a_fleet_that_comes_late_is_placed_as_one_that_was_there(sites: list[str], start: int, seed: int) -> None:
    stages = [
        stage("one", count=1, each="site"),
        stage("ten", percent=10),
        stage("half", percent=50, each="site"),
        stage("rest", percent=100),
    ]
    devices = [Candidate(f"d{number}", "pi", site=site) for number, site in enumerate(sites)]
    in_order = drawn(devices, seed)
    found = place([Newcomer(each) for each in in_order], stages, start, {})
    assert set(found) == {each.device for each in devices}
    assert all(index >= start for index in found.values())
