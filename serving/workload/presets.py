"""Synthetic workloads with the published statistics of real ones: nothing to download.

Lengths are drawn from piecewise log-linear quantile functions, prompt and answer joined by a
Gaussian copula of the published Kendall correlation, arrivals from processes with the published
coefficient of variation and index of dispersion. ``docs/workloads.md`` has them side by side.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.serving.draws import stream
from lengthwise.serving.workload.arrivals import arrivals
from lengthwise.serving.workload.prompts import generate_prompts
from lengthwise.workload import Workload

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LEVELS = np.array(
    [0, 0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.975, 0.99, 0.995, 0.999,
     0.9999, 1]
)  # fmt: skip


@dataclass(frozen=True)
class Preset:
    """``prompt`` and ``output``: tokens at ``LEVELS``; ``tau``: Kendall's between the two.

    ``arrivals`` is a spec with the default rate; ``tick_s`` the clock's step, 0 for none;
    ``sessions`` whether requests continue earlier ones and share their prefix.
    """

    source: str
    prompt: tuple[float, ...]
    output: tuple[float, ...]
    tau: float
    arrivals: str
    tick_s: float = 0.0
    sessions: Sessions | None = None


@dataclass(frozen=True)
class Generated:
    """Prompts with text, from ``generate_prompts``, under ``arrivals`` (a spec)."""

    source: str
    arrivals: str


@dataclass(frozen=True)
class Clients:
    """Tenants that each send one request after the other, evenly, all of the same lengths.

    ``rates`` are each client's requests/s; ``arrivals`` is a spec of them all.
    """

    source: str
    rates: tuple[float, ...]
    prompt_tokens: int
    output_tokens: int
    arrivals: str


@dataclass(frozen=True)
class Sessions:
    """Requests in sessions: each prompt holds the one before it, and all share some first blocks.

    ``turns`` is the mean number of requests a session (geometric), ``likeness`` the correlation of
    the lengths within one (normal scores), ``lag`` the mean number of requests in between.
    """

    turns: float
    likeness: float
    lag: float
    block_tokens: int
    common_blocks: int


def preset_names() -> list[str]:
    """The presets, in table order."""
    return list(PRESETS)


def preset(
    name: str, *, requests: int = 1000, rate: float | None = None, seed: int = 0
) -> Workload:
    """``requests`` requests of the preset; ``rate`` stretches time to that mean of requests/s.

    As with a recorded trace, the mean is that of the requests drawn, not of the process. Raises
    ``UnknownNameError`` with the nearest name and ``InputError`` for a bad number.
    """
    if name not in PRESETS:
        raise UnknownNameError("workload preset", name, PRESETS)
    if not 1 <= requests <= MOST:
        raise InputError(f"requests must be 1 to {MOST}, not {requests}")
    if rate is not None and not (np.isfinite(rate) and rate > 0):
        raise InputError(f"rate must be a positive number of requests/s, not {rate!r}")
    chosen = PRESETS[name]
    if isinstance(chosen, Generated):
        return _generated(name, chosen, requests, rate, seed)
    if isinstance(chosen, Clients):
        return _clients(name, chosen, requests, rate, seed)
    rng = stream(seed, LENGTHS)
    columns: dict[str, NDArray[np.generic] | list[object]] = {}
    if chosen.sessions is None:
        z = rng.standard_normal(requests)
    else:
        z, session = _session_scores(chosen.sessions, requests, rng)
    rho = np.sin(np.pi * chosen.tau / 2)  # Kendall's tau of a Gaussian copula (Kruskal, 1958)
    other = rho * z + np.sqrt(1 - rho**2) * rng.standard_normal(requests)
    prompt = lengths(chosen.prompt, z)
    if chosen.sessions is not None:
        columns |= _prefixes(chosen.sessions, prompt, session)
    times = arrivals(chosen.arrivals, requests, seed=seed)
    times -= times[0]
    stretch = 1.0 if rate is None or requests == 1 else (requests - 1) / times[-1] / rate
    times *= stretch
    if chosen.tick_s:
        times = np.floor(times / (chosen.tick_s * stretch)) * (chosen.tick_s * stretch)
    columns |= {
        "arrival_s": times,
        "prompt_tokens": prompt,
        "output_tokens": lengths(chosen.output, other),
    }
    return Workload(columns, name=name)


MOST = 10**8  # requests: their columns fill some gigabytes
LENGTHS = 3  # the stream of random numbers that belongs to lengths


def lengths(quantiles: tuple[float, ...], z: Floats) -> Ints:
    """Tokens at the standard normal scores ``z``, by the quantile function through ``LEVELS``."""
    from scipy.special import ndtr

    return np.rint(np.exp(np.interp(ndtr(z), LEVELS, np.log(quantiles)))).astype(np.int64)


def _session_scores(sessions: Sessions, n: int, rng: np.random.Generator) -> tuple[Floats, Ints]:
    """Standard normal scores, ascending within a session, and session numbers; shape (n,) each."""
    sizes = rng.geometric(1 / sessions.turns, n)
    owner = np.repeat(np.arange(n), sizes)[:n]
    start = np.flatnonzero(np.diff(owner, prepend=-1))
    common = rng.standard_normal(n)[owner]
    own = rng.standard_normal(n)
    z = np.sqrt(sessions.likeness) * common + np.sqrt(1 - sessions.likeness) * own
    z = z[np.lexsort((z, owner))]  # a session's prompts grow
    lag = rng.exponential(sessions.lag, n)
    lag[start] = 0.0
    waited = np.cumsum(lag)
    begin = rng.random(len(start)) * n
    turn_of = np.repeat(np.arange(len(start)), np.diff(np.append(start, n)))
    place = begin[turn_of] + waited - waited[start][turn_of]
    order = np.argsort(place, kind="stable")
    return z[order], owner[order]


def _prefixes(
    sessions: Sessions, prompt: Ints, owner: Ints
) -> dict[str, NDArray[np.generic] | list[object]]:
    """Prefix hashes: the common blocks, then those of the session's own history."""
    full = prompt // sessions.block_tokens
    longest = np.zeros(owner.max() + 1, dtype=np.int64)
    np.maximum.at(longest, owner, full)
    common = sessions.common_blocks
    base = common + np.concatenate(([0], np.cumsum(longest)))[owner]
    head = tuple(range(common))
    hashes = [
        head[:blocks] + tuple(range(first, first + blocks - common))
        for first, blocks in zip(base.tolist(), full.tolist(), strict=True)
    ]
    return {
        "session_id": owner.astype(object),
        "prefix_hashes": list(hashes),
        "hash_block_tokens": np.full(len(prompt), sessions.block_tokens),
    }


def _generated(
    name: str, chosen: Generated, requests: int, rate: float | None, seed: int
) -> Workload:
    prompts = generate_prompts(requests, seed)
    columns = {
        "arrival_s": arrivals(chosen.arrivals, requests, seed=seed),
        "prompt_tokens": prompts.prompt_tokens,
        "output_tokens": prompts.output_tokens,
        "prompt": prompts.prompt,
    }
    workload = Workload(columns, name=name)
    return workload if rate is None else workload.at_rate(rate)


def _clients(name: str, chosen: Clients, requests: int, rate: float | None, seed: int) -> Workload:
    """The first requests of all clients, which are client-0, client-1 ...; each begins within its
    own first interval, by the seed.
    """
    phases = stream(seed, LENGTHS).random(len(chosen.rates))
    sent = [(np.arange(requests) + p) / r for p, r in zip(phases, chosen.rates, strict=True)]
    times = np.concatenate(sent)
    order = np.argsort(times, kind="stable")[:requests]
    client = np.repeat([f"client-{k}" for k in range(len(chosen.rates))], requests)
    columns = {
        "arrival_s": times[order] - times[order[0]],
        "prompt_tokens": np.full(requests, chosen.prompt_tokens),
        "output_tokens": np.full(requests, chosen.output_tokens),
        "tenant": client[order].astype(object),
    }
    workload = Workload(columns, name=name)
    return workload if rate is None else workload.at_rate(rate)


PRESETS: dict[str, Preset | Generated | Clients] = {
    "azure-conv-2023": Preset(
        source="Azure LLM inference trace 2023, conversation (Patel et al., ISCA 2024)",
        prompt=(2, 31, 181, 231, 388, 402, 437, 1016, 1068, 1135, 1347, 4075, 4085, 4093, 4122,
                4149, 5255, 7823, 14050),
        output=(7, 16, 39, 50, 71, 87, 97, 115, 159, 375, 397, 421, 447, 520, 598, 643, 939, 1000,
                1000),
        tau=0.036,
        arrivals="bursty:5.925,ratio=1.53,share=0.35,dwell_s=300,cv=1.04",
    ),
    "azure-code-2023": Preset(
        source="Azure LLM inference trace 2023, code completion (Patel et al., ISCA 2024)",
        prompt=(3, 18, 76, 149, 388, 768, 1067, 1465, 1884, 2410, 3156, 4995, 7068, 7435, 7436,
                7436, 7437, 7437, 7437),
        output=(6, 6, 6, 7, 8, 9, 11, 13, 15, 19, 28, 54, 86, 145, 247, 325, 846, 1386, 1899),
        tau=-0.007,
        arrivals="bursty:3.138,ratio=10000,share=0.22,dwell_s=10.7,cv=2",
    ),
    "mooncake-conversation": Preset(
        source="Mooncake conversation trace (Qin et al., FAST 2025)",
        prompt=(891, 894, 901, 973, 1707, 3478, 5238, 7284, 9919, 13542, 18389, 28043, 40537,
                65093, 89976, 108363, 121299, 123575, 124847),
        output=(1, 3, 10, 24, 100, 216, 299, 356, 402, 452, 510, 606, 713, 850, 1166, 1807, 2000,
                2000, 2000),
        tau=0.051,
        arrivals="bursty:3.261,ratio=1.25,share=0.35,dwell_s=100",
        tick_s=3.0,
        sessions=Sessions(turns=1.72, likeness=0.8, lag=300, block_tokens=512, common_blocks=1),
    ),
    "burstgpt": Preset(
        source="BurstGPT, GPT-4 conversations (Wang et al., 2024; lengths as in Llumnix, table 1)",
        prompt=(5, 12, 30, 60, 150, 270, 410, 582, 800, 1080, 1427, 1950, 2345, 2850, 3549, 4000,
                5200, 7000, 8000),
        output=(3, 6, 14, 30, 75, 130, 188, 243, 290, 350, 434, 545, 669, 790, 964, 1070, 1350,
                1900, 2500),
        tau=0.0,
        arrivals="gamma:0.27,cv=2",
    ),
    "reasoning": Preset(
        source="DeepSeek-R1 on Alibaba Cloud (ServeGen, Xiang et al., 2025; resampled)",
        prompt=(4, 9, 16, 26, 45, 64, 87, 117, 180, 263, 406, 1238, 5273, 10829, 18118, 25279,
                31899, 39864, 54924),
        output=(9, 169, 265, 355, 564, 859, 1393, 2083, 2854, 3707, 4880, 7050, 9342, 12148,
                15925, 18320, 22307, 30221, 32768),
        tau=-0.27,
        arrivals="bursty:13.486,ratio=1.95,share=0.3,dwell_s=20,cv=1.57",
    ),
    "sharegpt": Preset(
        source="ShareGPT (tokenised by NanoFlow; three prompts above 32k left out)",
        prompt=(1, 2, 7, 9, 14, 18, 25, 36, 59, 107, 253, 806, 1619, 2509, 3441, 4169, 8520,
                21266, 27474),
        output=(1, 5, 20, 39, 103, 161, 224, 280, 338, 402, 499, 676, 838, 936, 995, 1033, 1123,
                1590, 1838),
        tau=0.1,
        arrivals="poisson:8",
    ),
    "lmsys-chat": Preset(
        source="LMSYS-Chat-1M (tokenised by NanoFlow)",
        prompt=(2, 2, 3, 6, 10, 14, 19, 28, 39, 65, 110, 304, 432, 604, 750, 868, 1256, 2384,
                2562),
        output=(1, 2, 8, 12, 28, 53, 91, 140, 217, 299, 385, 512, 521, 636, 855, 901, 1051, 2065,
                4819),
        tau=0.136,
        arrivals="poisson:8",
    ),
    "synthetic-chat": Generated(
        source="prompts with text, written by a generator (see generate_prompts)",
        arrivals="poisson:8",
    ),
    "overload": Clients(
        source="two clients of which each overloads the engine (VTC, Sheng et al., OSDI 2024)",
        rates=(1.5, 3.0),
        prompt_tokens=256,
        output_tokens=256,
        arrivals="constant:4.5",
    ),
}  # fmt: skip
