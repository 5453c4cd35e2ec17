"""One simulated fleet, and the campaigns that are run on it: nothing changed, and something changed.

An hour before, a swap, a burn-in that does not count, then two hours with a look each minute. Canaries are drawn spread over the kinds
as stages draw them; the control is drawn from the rest, as many of each kind as the server takes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.verdicts.fleet import Fleet, Floats, Ints, Minute, Model
from benchmarks.verdicts.recording import Recording, Slowdown, Span
from benchmarks.verdicts.rules import RULES, Look, Pools, Side, ours, pool, side
from covey_server.core.spec.gates import Evidence

BEFORE = 60
BURN_IN = 5
LOOKS = 120
DETECTION = 30  # looks that a campaign with a change gets
STAGGER = 30  # minutes over which swaps are spread, where they are
MAX_CONTROLS = Evidence().max_controls

# Minutes until each rule halted, from the end of the burn-in; None: it did not.
Halts = dict[str, int | None]


@dataclass(frozen=True)
class Outcome:
    """What the rules said in one campaign: `scenario` and its number of canaries; `kind`: the only one that changed."""

    scenario: str
    canaries: int
    halts: Halts
    kind: int | None = None


def run(seed: int, model: Model, *, beyond: bool) -> list[Outcome]:
    """All campaigns on the fleet with this seed; `beyond`: those that the study left out, too."""
    return list(_Run(seed, model).campaigns(beyond=beyond))


def evidence_over_time(seed: int, model: Model, looks: int) -> list[tuple[str, list[Look]]]:
    """What the rules would see of fifty canaries of one fleet, look by look: with nothing changed, and with something."""
    one = _Run(seed, model)
    canaries = one.spread(50)
    controls = one.controls(canaries)
    found = []
    for name, change in (
        ("nothing changed", slower(1.0)),
        ("all requests +3 %", slower(1.03)),
        ("only the tail +10 %", slower_tail(1.1)),
        ("all requests +10 %", slower(1.1)),
    ):
        recorded = one.recorded(canaries, change, looks)
        found.append(
            (name, [Look(one.seen(canaries, recorded, at), one.looks[at].rows(controls)) for at in range(looks)])
        )
    return found


class _Run:
    def __init__(self, seed: int, model: Model) -> None:
        self.fleet = Fleet(seed, model)
        self.draw = np.random.default_rng([seed, 1])
        minutes = self.fleet.minutes()
        self.minutes = [next(minutes) for _ in range(BEFORE + BURN_IN + LOOKS)]
        everyone = np.arange(model.devices)
        self.all = Recording(self.fleet.cut, everyone)
        for minute in self.minutes:
            self.all.add(minute)
        self.before = self.all.span(0, BEFORE)
        start = BEFORE + BURN_IN
        self.looks = [
            side(self.fleet.kind, self.fleet.site, self.before, self.all.span(start, start + at))
            for at in range(1, LOOKS + 1)
        ]

    # --- the campaigns --------------------------------------------------------------------------------------------

    def campaigns(self, *, beyond: bool) -> Iterator[Outcome]:
        fifty, fifty_more = self.spread(50), self.spread(50)
        ten, ten_more = self.spread(10), self.spread(10)
        yield self.unchanged("unchanged", fifty)
        yield self.unchanged("unchanged", fifty_more)
        yield self.unchanged("unchanged", ten)
        yield self.unchanged("unchanged", ten_more)
        yield self.unchanged("unchanged", self.spread(200))
        yield self.changed("whole_10pct", fifty, slower(1.1))
        yield self.changed("tail_10pct", fifty, slower_tail(1.1))
        worst = self.fleet.seed % len(self.fleet.model.kinds)
        yield replace(self.changed("one_kind_20pct", fifty, slower(1.2, self.fleet.kind == worst)), kind=worst)
        yield self.changed("whole_10pct", ten, slower(1.1))
        yield self.changed("whole_20pct", ten, slower(1.2))
        yield self.changed("tail_20pct", ten, slower_tail(1.2))
        yield self.failing("errors_x10", fifty)
        yield self.failing("errors_x10", ten)
        if beyond:
            yield self.crashing("crash_10pct", fifty, share=0.1)
            yield self.crashing("crash_30pct", ten, share=0.3)
            yield self.quiet_everywhere("unchanged_with_outages", fifty_more)
            yield self.late("unchanged_late_reports", fifty_more, None)
            yield self.late("whole_10pct_late_reports", fifty, slower(1.1))
            yield self.staggered("unchanged_staggered", fifty_more, None)
            yield self.staggered("whole_10pct_staggered", fifty, slower(1.1))
            sites = self.sites(5)
            yield self.by_site("unchanged_whole_sites_as_devices", sites, None, by_site=False)
            yield self.by_site("unchanged_whole_sites", sites, None, by_site=True)
            yield self.by_site("whole_20pct_whole_sites", sites, slower(1.2), by_site=True)
            yield self.warming_up("unchanged_warm_up", fifty_more)

    def unchanged(self, name: str, canaries: Ints) -> Outcome:
        controls = self.controls(canaries)
        return self._judge(name, canaries, controls, lambda at: self.looks[at].rows(canaries), LOOKS)

    def changed(self, name: str, canaries: Ints, change: Slowdown) -> Outcome:
        recorded = self.recorded(canaries, change)
        return self._judge_recorded(name, canaries, recorded)

    def failing(self, name: str, canaries: Ints) -> Outcome:
        """Each request that did not fail fails with nine times its device's own rate."""
        recorded = Recording(self.fleet.cut, canaries)
        rate = np.minimum(9 * self.fleet.error_rate, 0.9)
        for minute in self.minutes[BEFORE + BURN_IN : BEFORE + BURN_IN + DETECTION]:
            more = self.draw.binomial(np.maximum(minute.requests - minute.failed, 0), rate)
            recorded.add(minute, failed=minute.failed + more)
        return self._judge_recorded(name, canaries, recorded)

    def crashing(self, name: str, canaries: Ints, share: float) -> Outcome:
        """So many canaries crash within the first ten minutes and are not heard of again; two minutes later that counts."""
        dead = self.draw.random(len(canaries)) < share
        dead[self.draw.integers(len(canaries))] = True
        dies = np.where(dead, self.draw.integers(0, 10, len(canaries)), LOOKS + 10)
        start = BEFORE + BURN_IN

        def seen(at: int) -> Side:
            ends = start + np.minimum(at + 1, dies)
            found = side(
                self.fleet.kind[canaries],
                self.fleet.site[canaries],
                _rows(self.before, canaries),
                self.all.span(np.full(len(canaries), start), ends, canaries),
            )
            return replace(found, lost=at + 1 >= dies + 2)

        return self._judge(name, canaries, self.controls(canaries), seen, DETECTION, silence=True)

    def quiet_everywhere(self, name: str, canaries: Ints) -> Outcome:
        """Nothing changed, but devices of both groups go off and come back: one in fifty an hour, for a quarter of an hour."""
        count = len(self.fleet.kind)
        off = np.zeros((LOOKS, count), bool)
        for device, at in zip(*np.nonzero(self.draw.random((count, LOOKS)) < 1 / 3000), strict=True):
            off[at : at + 15, device] = True
        controls = self.controls(canaries)
        return self._judge(
            name,
            canaries,
            controls,
            lambda at: replace(self.looks[at].rows(canaries), lost=off[at][canaries]),
            LOOKS,
            control=lambda at: replace(self.looks[at].rows(controls), lost=off[at][controls]),
            silence=True,
        )

    def late(self, name: str, canaries: Ints, change: Slowdown | None) -> Outcome:
        """A third of all devices report late: cut off for ten to thirty minutes, then all at once."""
        count, looks = len(self.fleet.kind), LOOKS if change is None else DETECTION
        cut_off, lasts = self.draw.integers(0, 40, count), self.draw.integers(10, 30, count)
        lasts = np.where(self.draw.random(count) < 1 / 3, lasts, 0)
        start = BEFORE + BURN_IN
        recorded = self.recorded(canaries, change) if change is not None else None

        def known(at: int, devices: Ints) -> Ints:
            away = (at + 1 > cut_off[devices]) & (at + 1 <= cut_off[devices] + lasts[devices])
            return np.where(away, cut_off[devices], at + 1)

        def seen(at: int, devices: Ints, recording: Recording | None) -> Side:
            ends = known(at, devices)
            zeros = np.zeros(len(devices), int)
            after = (
                self.all.span(start + zeros, start + ends, devices)
                if recording is None
                else recording.span(zeros, ends)
            )
            before = _rows(self.before, devices)
            return side(self.fleet.kind[devices], self.fleet.site[devices], before, after)

        controls = self.controls(canaries, most=60)
        return self._judge(
            name,
            canaries,
            controls,
            lambda at: seen(at, canaries, recorded),
            looks,
            control=lambda at: seen(at, controls, None),
        )

    def staggered(self, name: str, canaries: Ints, change: Slowdown | None) -> Outcome:
        """Swaps are spread over half an hour; each control device shares the moment of a canary."""
        looks = LOOKS - STAGGER if change is None else DETECTION
        swaps = np.sort(self.draw.integers(0, STAGGER, len(canaries)))
        controls = self.controls(canaries, most=60)
        moments = swaps[self.draw.integers(0, len(canaries), len(controls))]
        changed = self.recorded(canaries, change) if change is not None else None

        def seen(at: int, devices: Ints, moment: Ints, recording: Recording | None) -> Side:
            now = at + 1
            begun = moment < now
            rows, at_swap = devices[begun], moment[begun]
            # Each with its own hour before its own swap; the burn-in comes after it.
            before = self.all.span(at_swap, BEFORE + at_swap, rows)
            start, end = BEFORE + BURN_IN + at_swap, np.full(len(rows), BEFORE + BURN_IN + now)
            if recording is None:
                after = self.all.span(start, end, rows)
            else:
                after = recording.span(at_swap, np.full(len(rows), now), np.nonzero(begun)[0])
            return side(self.fleet.kind[rows], self.fleet.site[rows], before, after)

        return self._judge(
            name,
            canaries,
            controls,
            lambda at: seen(at, canaries, swaps, changed),
            looks,
            control=lambda at: seen(at, controls, moments, None),
        )

    def by_site(self, name: str, canaries: Ints, change: Slowdown | None, *, by_site: bool) -> Outcome:
        controls = self.controls(canaries)
        if change is None:
            return self._judge(
                name, canaries, controls, lambda at: self.looks[at].rows(canaries), LOOKS, by_site=by_site
            )
        return self._judge_recorded(name, canaries, self.recorded(canaries, change), by_site=by_site)

    def warming_up(self, name: str, canaries: Ints) -> Outcome:
        """Nothing changed, but for 30 % that wear off within minutes of the swap, most of it during the burn-in."""
        first = BURN_IN
        recorded = self.recorded(
            canaries, lambda at, _, __: math.log1p(0.3 * math.exp(-(at + first) / 2.0)), minutes=LOOKS
        )
        return self._judge_recorded(name, canaries, recorded, looks=LOOKS)

    # --- drawing --------------------------------------------------------------------------------------------------

    def spread(self, count: int) -> Ints:
        """Drawn at random, every kind in proportion."""
        kind, place = self.fleet.kind, np.zeros(len(self.fleet.kind))
        for each in np.unique(kind):
            members = self.draw.permutation(np.nonzero(kind == each)[0])
            place[members] = (np.arange(len(members)) + 0.5) / len(members)
        return np.argsort(place, kind="stable")[:count]

    def sites(self, count: int) -> Ints:
        chosen = self.draw.choice(int(self.fleet.site.max()) + 1, count, replace=False)
        return np.nonzero(np.isin(self.fleet.site, chosen))[0]

    def controls(self, canaries: Ints, most: int = MAX_CONTROLS) -> Ints:
        rest = np.setdiff1d(np.arange(len(self.fleet.kind)), canaries)
        drawn = [
            self.draw.permutation(rest[self.fleet.kind[rest] == each])[:most] for each in np.unique(self.fleet.kind)
        ]
        return np.sort(np.concatenate(drawn))

    # --- judging --------------------------------------------------------------------------------------------------

    def recorded(self, canaries: Ints, change: Slowdown, minutes: int = DETECTION) -> Recording:
        recorded = Recording(self.fleet.cut, canaries)
        start = BEFORE + BURN_IN
        for minute in self.minutes[start : start + minutes]:
            recorded.add(minute, change)
        return recorded

    def _judge_recorded(
        self, name: str, canaries: Ints, recorded: Recording, *, by_site: bool = False, looks: int = DETECTION
    ) -> Outcome:
        return self._judge(
            name,
            canaries,
            self.controls(canaries),
            lambda at: self.seen(canaries, recorded, at),
            looks,
            recorded=recorded,
            by_site=by_site,
        )

    def seen(self, canaries: Ints, recorded: Recording, at: int) -> Side:
        """The canaries at a look, as they were recorded since the burn-in."""
        before = _rows(self.before, canaries)
        return side(self.fleet.kind[canaries], self.fleet.site[canaries], before, recorded.span(0, at + 1))

    def _judge(
        self,
        name: str,
        canaries: Ints,
        controls: Ints,
        seen: Callable[[int], Side],
        looks: int,
        *,
        control: Callable[[int], Side] | None = None,
        recorded: Recording | None = None,
        silence: bool = False,
        by_site: bool = False,
    ) -> Outcome:
        """Look each minute; a rule that has halted has halted. Where time is not what it was, our own rule alone looks."""
        plain = control is None and not by_site
        halts: Halts = dict.fromkeys(RULES if plain else ("covey_e_process",))
        start = BEFORE + BURN_IN
        pools = Pools(pool(_rows(self.before, canaries))), Pools(pool(_rows(self.before, controls)))
        for at in range(looks):
            if plain:
                one = (start + at, start + at + 1)
                ours_minute = self.all.span(*one, canaries) if recorded is None else recorded.span(at, at + 1)
                pools[0].minutes.append(pool(ours_minute))
                pools[1].minutes.append(pool(self.all.span(*one, controls)))
            look = Look(
                seen(at),
                self.looks[at].rows(controls) if control is None else control(at),
                pools[0],
                pools[1],
                silence,
                by_site,
            )
            if not len(look.canaries.kind):
                continue
            for rule, halted in halts.items():
                if halted is None and (RULES[rule](look) if plain else ours(look)):
                    halts[rule] = at + 1
            if all(halted is not None for halted in halts.values()):
                break
        return Outcome(name, 0 if by_site or "whole_sites" in name else len(canaries), halts)


def slower(factor: float, of: Ints | None = None) -> Slowdown:
    """All requests, of all devices or of those of which `of` is true."""
    shift = math.log(factor)
    return lambda _, device, __: shift if of is None else shift * of[device]


def slower_tail(factor: float) -> Slowdown:
    shift = math.log(factor)
    return lambda _, __, tail: shift * tail


def _rows(span: Span, rows: Ints) -> Span:
    return Span(span.first[rows], span.counts[rows], span.requests[rows], span.failed[rows])


__all__ = ["Floats", "Minute", "Outcome", "run"]
