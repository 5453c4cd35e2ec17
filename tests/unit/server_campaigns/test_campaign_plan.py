"""Planning: who goes in which stage."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from covey_server.core.plan import Candidate, make_plan, spread
from covey_server.core.spec import Duration, Stage


def fleet(**kinds: int) -> list[Candidate]:
    return [Candidate(f"{kind}-{number:03}", kind) for kind, size in kinds.items() for number in range(size)]


def stage(name: str, *, group: str | None = None, percent: float | None = None, count: int | None = None) -> Stage:
    return Stage(name=name, group=group, percent=percent, count=count, soak=Duration(0))


def test_a_group_then_shares_of_the_whole_target() -> None:
    devices = fleet(pi=10)
    stages = [stage("canary", group="canary"), stage("half", percent=50), stage("rest", percent=100)]
    plan = make_plan(stages, devices, {"canary": {"pi-003", "pi-007", "elsewhere"}}, seed=1)
    assert plan.stages[0].devices == ("pi-003", "pi-007")
    assert [len(each.devices) for each in plan.stages] == [2, 3, 5]
    assert plan.left_out == ()
    assert plan.warnings == ()


def test_what_no_stage_takes_is_left_out_with_the_reason() -> None:
    devices = [*fleet(pi=4), Candidate("odd-1", None, "no firmware profile matches it")]
    plan = make_plan([stage("some", count=3), stage("none", group="empty")], devices, {"empty": set()}, seed=1)
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
    plan = make_plan(stages, devices, {"g": members}, seed)
    placed = [device for each in plan.stages for device in each.devices]
    everyone = [*placed, *(each.device for each in plan.left_out)]
    assert sorted(everyone) == sorted(each.device for each in devices)
    assert not {each.device for each in devices if each.left_out} & set(placed)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 1000))
def test_every_beginning_of_a_draw_is_in_proportion(first: int, second: int, seed: int) -> None:
    profiles: dict[str, str | None] = {f"a{number}": "a" for number in range(first)}
    profiles |= {f"b{number}": "b" for number in range(second)}
    order = spread(profiles, seed)
    for length in range(len(order) + 1):
        share = sum(device.startswith("a") for device in order[:length])
        assert abs(share - length * first / (first + second)) <= 1.5
