"""The fleet model: devices whose requests, minute by minute, are drawn one by one. Nothing in it knows of any rule.

What makes judging hard is in it: four kinds of hardware, devices that differ, heavy tails, minutes that hang together (AR(1)),
sites that share their ups and downs, a daily rhythm, noisy neighbours, devices that drift, error rates that differ a hundredfold.
`docs/verdicts.md` states it in words.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr, ndtri

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.integer[Any]]


# Requests faster than this many standard deviations above their device's median are counted only (the fastest 93 %).
CUT_SIGMAS = 1.5


@dataclass(frozen=True)
class Kind:
    """A kind of hardware: its share of the fleet, median latency in ms, requests a minute, spread of ln latency."""

    share: float
    latency_ms: float
    requests: float
    sigma: float


@dataclass(frozen=True)
class Model:
    """All of it as numbers; spreads are standard deviations of ln latency unless said otherwise, times are minutes."""

    devices: int = 600
    kinds: tuple[Kind, ...] = (
        Kind(0.35, 40.0, 600.0, 0.20),
        Kind(0.30, 15.0, 900.0, 0.25),
        Kind(0.20, 8.0, 1200.0, 0.30),
        Kind(0.15, 4.0, 1800.0, 0.35),
    )
    site_size: int = 20
    device_sigma: float = 0.20
    device_requests_sigma: float = 0.5  # of ln requests a minute, between devices of one kind
    tail_share: float = 0.03  # of requests, times a factor between devices
    tail_share_sigma: float = 0.4
    tail_shift: float = 0.9  # of ln latency
    tail_sigma: float = 0.45
    minute_sigma: float = 0.06
    minute_memory: float = 0.8  # AR(1)
    site_sigma: float = 0.05
    site_memory: float = 0.98
    rhythm: float = 0.10  # amplitude of ln latency over a day, each site with its own phase by up to two hours
    load_rhythm: float = 0.4  # of ln requests
    episode_starts: float = 1 / 400  # a minute and device
    episode_ends: float = 1 / 8
    episode_shift: float = 0.25  # mean of an exponential, of ln latency
    drift_share: float = 0.05  # of devices that get slower or faster all the time
    drift_hour: float = 0.05
    errors: float = 0.001  # mean share of requests that fail
    errors_shape: float = 0.5  # gamma over devices: the smaller, the more unlike
    burst_starts: float = 1 / 600
    burst_ends: float = 1 / 3
    burst_factor: float = 30.0


HARSH = Model(drift_share=0.15, drift_hour=0.15, episode_starts=1 / 200, episode_shift=0.5, site_sigma=0.08)


@dataclass(frozen=True)
class Minute:
    """One minute of the whole fleet: by device, how many requests there were and how many failed; and of those that took longer
    than `Fleet.cut`, the device, the log2 latency in seconds, and whether it is of the tail. Faster ones are counted, not drawn:
    no quantile that is judged lies among them."""

    device: Ints
    log2_latency: Floats
    tail: npt.NDArray[np.bool_]
    requests: Ints
    failed: Ints


@dataclass
class Fleet:
    """A fleet drawn from the model. `minutes()` goes on for ever; the same seed gives the same fleet and minutes."""

    seed: int
    model: Model = Model()
    kind: Ints = field(init=False)
    site: Ints = field(init=False)
    error_rate: Floats = field(init=False)
    cut: Floats = field(init=False)  # ln latency

    def __post_init__(self) -> None:
        model, self._draw = self.model, np.random.default_rng(self.seed)
        draw, n = self._draw, model.devices
        self.kind = draw.choice(len(model.kinds), n, p=[kind.share for kind in model.kinds])
        self.site = draw.permutation(n) // model.site_size
        of = [model.kinds[index] for index in self.kind]
        self._location = np.log([kind.latency_ms / 1000 for kind in of]) + draw.normal(0, model.device_sigma, n)
        self._sigma = np.array([kind.sigma for kind in of]) * draw.lognormal(0, 0.1, n)
        self._rate = np.array([kind.requests for kind in of]) * draw.lognormal(0, model.device_requests_sigma, n)
        self.cut = self._location + CUT_SIGMAS * self._sigma
        self._tail_share = np.minimum(model.tail_share * draw.lognormal(0, model.tail_share_sigma, n), 0.3)
        drifting = draw.random(n) < model.drift_share
        self._drift = drifting * draw.normal(0, model.drift_hour, n) / 60
        self.error_rate = np.minimum(model.errors * draw.gamma(model.errors_shape, 1 / model.errors_shape, n), 0.5)
        sites = int(self.site.max()) + 1
        self._phase = draw.uniform(0, 2 * np.pi) + draw.uniform(0, 2 * np.pi * 2 / 24, sites)
        self._minute: Floats = draw.normal(0, model.minute_sigma, n)
        self._site: Floats = draw.normal(0, model.site_sigma, sites)
        self._episode = np.zeros(n)
        self._burst = np.zeros(n, dtype=bool)

    def minutes(self) -> Iterator[Minute]:
        at = 0
        while True:
            yield self._one(at)
            at += 1

    def _one(self, at: int) -> Minute:
        model, draw, n = self.model, self._draw, self.model.devices
        self._minute = _next(draw, self._minute, model.minute_memory, model.minute_sigma)
        self._site = _next(draw, self._site, model.site_memory, model.site_sigma)
        begins = (self._episode == 0) & (draw.random(n) < model.episode_starts)
        ends = draw.random(n) < model.episode_ends
        self._episode = np.where(begins, draw.exponential(model.episode_shift, n), self._episode * ~ends)
        self._burst = np.where(self._burst, draw.random(n) >= model.burst_ends, draw.random(n) < model.burst_starts)
        day = np.sin(self._phase + 2 * np.pi * at / 1440)[self.site]
        location = (
            self._location
            + self._minute
            + self._site[self.site]
            + self._episode
            + model.rhythm * day
            + self._drift * at
        )
        rate = self._rate * np.exp(model.load_rhythm * day)
        # Poisson numbers of independent requests split into independent Poisson numbers of their parts.
        fast = (self.cut - location) / self._sigma
        fast_tail = (self.cut - location - model.tail_shift) / model.tail_sigma
        body = draw.poisson(rate * (1 - self._tail_share) * ndtr(-fast))
        tail = draw.poisson(rate * self._tail_share * ndtr(-fast_tail))
        below = draw.poisson(rate * ((1 - self._tail_share) * ndtr(fast) + self._tail_share * ndtr(fast_tail)))
        log_latency = np.concatenate(
            [
                np.repeat(location, body) + np.repeat(self._sigma, body) * self._beyond(np.repeat(fast, body)),
                np.repeat(location + model.tail_shift, tail)
                + model.tail_sigma * self._beyond(np.repeat(fast_tail, tail)),
            ]
        )
        everyone = np.arange(n)
        requests = body + tail + below
        failing = np.minimum(self.error_rate * np.where(self._burst, model.burst_factor, 1.0), 0.9)
        return Minute(
            np.concatenate([np.repeat(everyone, body), np.repeat(everyone, tail)]),
            log_latency / np.log(2),
            np.repeat([False, True], [body.sum(), tail.sum()]),
            requests,
            draw.binomial(requests, failing),
        )

    def _beyond(self, least: Floats) -> Floats:
        """Standard normal deviates, each beyond its own `least`."""
        deviates: Floats = -ndtri(ndtr(-least) * self._draw.random(least.size))
        return deviates


def _next(draw: np.random.Generator, value: Floats, memory: float, sigma: float) -> Floats:
    """The next step of an AR(1) process with this standard deviation."""
    return memory * value + draw.normal(0, sigma * np.sqrt(1 - memory * memory), value.size)
