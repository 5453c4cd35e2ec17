"""E-values and what they rest on: check vectors, SciPy as the oracle, and what they must do whatever the numbers are."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from covey_server.core.eprocess import binomial, labels, mixture, tilted
from covey_server.core.eprocess.shift import Member, Rule, by_kind, compare, compare_sites
from covey_server.core.eprocess.special import log_incomplete_beta, log_mean_exp, log_normal_cdf, t_to_z

RULE = Rule(tau=0.05)


@pytest.mark.parametrize(
    ("z", "variance", "expected"),
    [(3.5, 1e-4, 4.95322240557), (2.0, 4e-4, 1.39461350622), (-1.0, 1e-4, -2.26668727716)],
)
def test_the_mixture_agrees_with_the_studys_check_vectors(z: float, variance: float, expected: float) -> None:
    assert mixture.log_e_value(z, variance, 0.05) == pytest.approx(expected, abs=1e-10)


@given(st.floats(-60, 12))
def test_the_normal_tail_is_scipys(x: float) -> None:
    assert log_normal_cdf(x) == pytest.approx(float(special.log_ndtr(x)), rel=1e-9, abs=1e-12)


@given(st.floats(-40, 40), st.integers(4, 2000))
def test_students_t_is_mapped_to_the_normal_deviate_of_the_same_tail(t: float, degrees: int) -> None:
    tail = stats.t.sf(abs(t), degrees)
    if tail > 1e-280:
        expected = math.copysign(float(stats.norm.isf(tail)), t)
        assert t_to_z(t, degrees) == pytest.approx(expected, rel=1e-6, abs=1e-6)
    else:
        assert abs(t_to_z(t, degrees)) > 35


@given(st.floats(0.3, 300), st.floats(0.3, 300), st.floats(0.001, 0.999))
def test_the_incomplete_beta_function_is_scipys(a: float, b: float, x: float) -> None:
    expected = float(special.betainc(a, b, x))
    if expected > 1e-250:
        assert math.exp(log_incomplete_beta(a, b, x)) == pytest.approx(expected, rel=1e-8)


def test_the_average_of_e_values_does_not_overflow() -> None:
    assert log_mean_exp([900.0, -900.0]) == pytest.approx(900 - math.log(2))
    assert log_mean_exp([]) == -math.inf
    assert log_mean_exp([-math.inf, 0.0]) == pytest.approx(-math.log(2))


def test_the_mixture_is_on_average_one_while_nothing_is_wrong() -> None:
    """By quadrature over a normal Z, whatever the variance."""
    for variance in (1e-4, 1e-3, 1e-1):
        mean = sum(
            math.exp(mixture.log_e_value(z / 200, variance, 0.05) - (z / 200) ** 2 / 2) for z in range(-8000, 8000)
        ) / (200 * math.sqrt(2 * math.pi))
        assert mean == pytest.approx(1.0, abs=1e-6)


def test_a_random_walk_passes_the_boundary_at_any_look_in_few_cases() -> None:
    """2,000 estimates that get sharper over 200 looks: Ville's inequality says at most 1 % ever pass 1/α = 100."""
    source, passed = random.Random(11), 0
    for _ in range(2000):
        information, total = 0.0, 0.0
        for _ in range(200):
            information += 100.0
            total += source.gauss(0, 10.0)
            if mixture.log_e_value(total / math.sqrt(information), 1 / information, 0.05) >= math.log(100):
                passed += 1
                break
    assert passed <= 30  # 20 expected at most; more than 30 in one of 80 such runs


def test_the_confidence_sequence_ends_where_the_two_sided_mixture_would_halt() -> None:
    for variance in (1e-4, 3e-3):
        half = mixture.radius(variance, 0.05, 0.05)
        weight = 0.05**2 / (variance + 0.05**2)
        log_e = 0.5 * math.log(variance / (variance + 0.05**2)) + 0.5 * half**2 / variance * weight
        assert log_e == pytest.approx(math.log(20))


# --- devices ------------------------------------------------------------------------------------------------------


def gauss(seed: int, count: int, middle: float = 0.0, sigma: float = 0.1) -> list[float]:
    source = random.Random(seed)
    return [source.gauss(middle, sigma) for _ in range(count)]


def test_a_shift_is_estimated_and_evident_and_none_is_not() -> None:
    control = {"pi": gauss(1, 200), "jetson": gauss(2, 100)}
    same = compare({"pi": gauss(3, 30), "jetson": gauss(4, 20)}, control, RULE)
    worse = compare({"pi": gauss(3, 30, 0.1), "jetson": gauss(4, 20, 0.1)}, control, RULE)
    assert same.log_e < math.log(100) < worse.log_e
    assert worse.estimate == pytest.approx(same.estimate + 0.1, abs=0.01)
    assert (worse.canaries, worse.controls, worse.unjudged) == (50, 300, 0)
    low, high = worse.interval(0.05, 0.05)
    assert low < 0.1 < high
    better = compare({"pi": gauss(3, 30, -0.1)}, control, RULE)
    assert better.log_e < 0


def test_a_change_on_one_kind_shows_where_the_others_would_hide_it() -> None:
    control = {kind: gauss(seed, 150) for seed, kind in enumerate("abcd")}
    canaries = {kind: gauss(seed + 10, 12, 0.2 if kind == "c" else 0.0) for seed, kind in enumerate("abcd")}
    found = compare(canaries, control, RULE)
    assert found.kinds["c"].log_e > math.log(100) > found.kinds["a"].log_e
    assert found.log_e > math.log(100)


def test_what_is_tolerated_is_no_evidence() -> None:
    control, canaries = {"pi": gauss(1, 300)}, {"pi": gauss(2, 50, 0.2)}
    assert compare(canaries, control, Rule(0.05, margin=0.3)).log_e < 0
    assert compare(canaries, control, Rule(0.05, margin=0.02)).log_e > math.log(100)


def test_a_shift_far_beyond_any_control_device_is_found_and_shown_as_large_as_it_is() -> None:
    """Pulling canaries in to where the control lies must hide neither."""
    control, canaries = {"pi": gauss(1, 300, sigma=0.01)}, {"pi": gauss(2, 20, 1.5, sigma=0.01)}
    found = compare(canaries, control, Rule(0.05, margin=0.4))
    assert found.log_e > math.log(1e6)
    assert found.estimate == pytest.approx(1.5, abs=0.02)
    sites = [Member("pi", str(number // 5), value) for number, value in enumerate(control["pi"])]
    moved = [Member("pi", f"c{number // 5}", value) for number, value in enumerate(canaries["pi"])]
    by_site = compare_sites(moved, sites, Rule(0.05, margin=0.4))
    assert by_site.log_e > math.log(100)
    assert by_site.estimate == pytest.approx(1.5, abs=0.02)


def test_a_single_wild_device_is_pulled_in() -> None:
    control = {"pi": gauss(1, 300)}
    calm = compare({"pi": gauss(2, 19)}, control, RULE)
    wild = compare({"pi": [*gauss(2, 19), 50.0]}, control, RULE)
    assert wild.estimate - calm.estimate < 0.03
    assert wild.log_e < math.log(100)


def test_devices_that_were_lost_count_as_the_worst_in_both_groups_alike() -> None:
    control = gauss(1, 300)
    lost = compare({"pi": [*gauss(2, 35), *[math.inf] * 15]}, {"pi": control}, RULE)
    assert lost.log_e > math.log(100)
    both = compare({"pi": [*gauss(2, 35), *[math.inf] * 15]}, {"pi": [*gauss(1, 210), *[math.inf] * 90]}, RULE)
    assert both.log_e < math.log(100)
    most = compare({"pi": [math.inf] * 20}, {"pi": [math.inf] * 200 + control[:100]}, RULE)
    assert math.isfinite(most.estimate)
    assert most.log_e < math.log(100)


def test_kinds_without_enough_control_are_left_out_and_counted() -> None:
    found = compare({"pi": gauss(1, 10), "new": gauss(2, 5, 3.0)}, {"pi": gauss(3, 50), "new": gauss(4, 4)}, RULE)
    assert (found.canaries, found.unjudged, list(found.kinds)) == (10, 5, ["pi"])
    none = compare({"new": gauss(2, 5, 3.0)}, {}, RULE)
    assert (none.judged, none.unjudged, none.log_e) == (False, 5, -math.inf)


numbers_of_devices = st.lists(st.floats(-3, 3) | st.just(math.inf), max_size=40)


@settings(max_examples=60)
@given(
    st.dictionaries(st.sampled_from("abc"), numbers_of_devices),
    st.dictionaries(st.sampled_from("abc"), numbers_of_devices),
    st.randoms(use_true_random=False),
)
def test_the_order_of_devices_does_not_matter_and_worse_canaries_are_no_better(
    canaries: dict[str, list[float]], control: dict[str, list[float]], source: random.Random
) -> None:
    found = compare(canaries, control, RULE)
    mixed = {kind: source.sample(values, len(values)) for kind, values in control.items()}
    again = compare(canaries, mixed, RULE)
    assert not math.isnan(found.log_e)
    assert again.estimate == pytest.approx(found.estimate, abs=1e-9)
    worse = compare({kind: [value + 0.5 for value in values] for kind, values in canaries.items()}, control, RULE)
    assert worse.estimate >= found.estimate - 1e-12
    assert found.canaries + found.unjudged == sum(map(len, canaries.values()))


def test_with_whole_sites_the_site_is_the_unit() -> None:
    """Sites move together: with devices as units three bad sites look like sixty witnesses."""
    source = random.Random(3)
    members: list[Member] = []
    for site in range(40):
        moves = source.gauss(0, 0.2)
        members += [Member("pi", str(site), moves + source.gauss(0, 0.05)) for _ in range(20)]
    by_mean = sorted({one.site for one in members}, key=lambda name: -_mean(members, name))
    chosen = by_mean[1:4]  # unlucky, not worse
    canaries = [one for one in members if one.site in chosen]
    control = [one for one in members if one.site not in chosen]
    as_devices = compare(by_kind(canaries), by_kind(control), RULE)
    as_sites = compare_sites(canaries, control, RULE)
    assert (as_sites.canaries, as_sites.controls) == (3, 37)
    assert as_devices.log_e > math.log(1000)
    assert as_sites.log_e < as_devices.log_e - math.log(1000)


def _mean(members: Sequence[Member], site: str) -> float:
    values = [one.value for one in members if one.site == site]
    return sum(values) / len(values)


# --- counts -------------------------------------------------------------------------------------------------------


def test_installs_halt_at_the_studys_numbers() -> None:
    found = [binomial.least_to_halt(tried, 0.01, 0.01) for tried in (10, 30, 50, 100, 200)]
    assert found == [3, 4, 5, 6, 9]


def test_install_evidence_is_on_average_at_most_one_at_the_base_rate() -> None:
    for tried in (1, 7, 40):
        mean = sum(
            stats.binom.pmf(failed, tried, 0.02) * math.exp(binomial.log_e_value(failed, tried, 0.02))
            for failed in range(tried + 1)
        )
        assert mean == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(("failed", "tried", "base"), [(3, 2, 0.01), (-1, 2, 0.01), (0, 1, 0.0), (0, 1, 1.0)])
def test_impossible_counts_are_refused(failed: int, tried: int, base: float) -> None:
    with pytest.raises(ValueError, match=r"base rate|failed of"):
        binomial.log_e_value(failed, tried, base)


def test_evidence_from_the_draw_is_on_average_exactly_one() -> None:
    """Over all ways in which T of the devices may have been the canaries."""
    n, m, total = 12, 60, 7
    mean = sum(
        stats.hypergeom.pmf(x, n + m, total, n) * math.exp(labels.log_e_value({"pi": (x, n, total - x, m)}))
        for x in range(total + 1)
    )
    assert mean == pytest.approx(1.0, abs=1e-9)


def test_three_crashes_among_fifty_canaries_and_none_beside_them_are_evidence() -> None:
    assert labels.log_e_value({"pi": (3, 50, 0, 950)}) > math.log(100)
    assert labels.log_e_value({"pi": (3, 50, 57, 950)}) < 0
    assert labels.log_e_value({}) == 0.0
    with pytest.raises(ValueError, match="3 of 2 canaries"):
        labels.log_e_value({"pi": (3, 2, 0, 9)})


@settings(max_examples=40)
@given(st.lists(st.floats(-3, 3), min_size=6, max_size=9), st.integers(1, 3))
def test_the_tilted_sum_is_on_average_at_most_one_over_all_draws(values: list[float], canaries: int) -> None:
    """Exact, by going through every way to draw the canaries, whatever the numbers are."""
    found = []
    for chosen in combinations(range(len(values)), canaries):
        drawn = [values[index] for index in chosen]
        rest = [value for index, value in enumerate(values) if index not in chosen]
        found.append(math.exp(tilted.log_e_value({"a": drawn}, {"a": rest}).overall))
    assert sum(found) / len(found) <= 1 + 1e-9


def test_the_tilted_sum_sees_what_bursts_hide() -> None:
    control = [0.0] * 190 + [2.5] * 10
    assert tilted.log_e_value({"a": [0.0] * 8 + [2.5] * 2}, {"a": control}).log_e < math.log(100)
    assert tilted.log_e_value({"a": [0.0] * 2 + [2.5] * 8}, {"a": control}).log_e > math.log(1000)
    assert tilted.log_e_value({}, {"a": control}).log_e == -math.inf
