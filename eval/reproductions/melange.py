"""Griggs et al., "Mélange: Cost Efficient Large Language Model Serving", arXiv 2404.14527."""

from __future__ import annotations

from functools import partial

import numpy as np

from lengthwise.eval.buckets import buckets_of
from lengthwise.eval.cells import Cells
from lengthwise.eval.mix import cheapest_mix, nodes_alone
from lengthwise.eval.placement import check_served, loads, service_rates, wanted_of
from lengthwise.eval.reproductions.table import NONE, Line, Progress, Reproduction, over_seeds
from lengthwise.eval.statistics import t_interval
from lengthwise.serving.draws import stream
from lengthwise.workload import Workload

PRICES = {"l4": 0.70, "a10g": 1.01, "a100": 3.67, "h100": 7.516}  # $/h
RATES = (1, 2, 4, 8, 16, 32)  # requests/s
PROMPTS, OUTPUTS = [250, 1000, 4000, 16_000], [100, 500, 2000]
CHAT_SHARE = 0.8  # of the mixed setting
# prompts and answers of documents, tokens: medians, sigmas of the logarithm, and the longest
DOCUMENT, ABSTRACT = (3500, 0.6, 16_000), (260, 0.4, 1000)
LENGTHS = 41  # the stream of random numbers of documents
# setting -> limit on TPOT, s -> (least, most) that they save against one type, %
THEIRS = {
    "short (chat)": {0.12: ("15%", "77%"), 0.04: ("9%", "68%")},
    "long (documents)": {0.12: ("15%", "33%"), 0.04: ("2%", "22%")},
    "mixed": {0.12: ("13%", "51%"), 0.04: ("4%", "51%")},
}


def drawn(setting: str, requests: int, seed: int) -> Workload:
    """The setting's requests; their times do not matter."""
    chat = Workload.preset("lmsys-chat", requests=requests, rate=1.0, seed=seed)
    if setting.startswith("short"):
        return chat
    rng = stream(seed, LENGTHS)
    sizes = {}
    for name, (median, sigma, most) in zip(
        ("prompt_tokens", "output_tokens"), (DOCUMENT, ABSTRACT), strict=True
    ):
        long = np.minimum(np.rint(median * np.exp(sigma * rng.standard_normal(requests))), most)
        sizes[name] = long.astype(np.int64)
    if setting == "mixed":
        is_chat = rng.random(requests) < CHAT_SHARE
        sizes = {name: np.where(is_chat, chat[name], long) for name, long in sizes.items()}
    return chat.replace(name=setting, **sizes)


def saved(requests: int, settings: tuple[str, ...], seed: int) -> list[float]:
    """What the mix saves against one type, %: of each setting and limit the least and the most of
    all types and rates; NaN stands for none.
    """
    found: list[float] = []
    for setting in settings:
        limits = THEIRS[setting]
        workload = drawn(setting, requests, seed)
        for limit in limits:
            wanted = wanted_of({
                "gpus": [{"name": name, "timing": f"roofline:{name}/llama-2-7b", "price": price}
                         for name, price in PRICES.items()],
                "workload": workload, "slo": {"tpot": limit},
                "buckets": {"prompt": PROMPTS, "output": OUTPUTS},
            })  # fmt: skip
            buckets, _ = buckets_of(workload, wanted.prompts, wanted.outputs)
            rates, why = service_rates(wanted, buckets, seed, 1)
            check_served(wanted, buckets, rates, why)
            shares: list[list[float]] = []
            for rate in RATES:
                load = loads(buckets, rates, float(rate))
                mix = cheapest_mix(load, list(PRICES.values()))
                assert mix is not None  # no type has a limit
                shares.append([
                    100 * (1 - mix.cost / (nodes_alone(each) * price))
                    if np.isfinite(each).all() else np.nan
                    for each, price in zip(load, PRICES.values(), strict=True)
                ])  # fmt: skip
            each = np.array(shares)  # (rates, types)
            means = [float(column.mean()) for column in each.T]
            found += [float(np.nanmin(each)), float(np.nanmax(each)), *means]
    return found


def melange(
    seeds: int, processes: int, progress: Progress | None = None, cells: Cells | None = None,
    *, requests: int = 1500, settings: tuple[str, ...] = tuple(THEIRS),
) -> Reproduction:  # fmt: skip
    """Mélange (2024): cost of the cheapest mix of four GPUs against one type alone, % saved."""
    values = over_seeds(partial(saved, requests, settings), seeds, processes, progress, cells)
    lines = []
    each = 2 + len(PRICES)
    place = 0
    for setting in settings:
        for limit, said in THEIRS[setting].items():
            label = f"{setting}, TPOT {1000 * limit:g} ms"
            for name, theirs in zip(("least saved", "most saved"), said, strict=True):
                ours = t_interval(values[:, place + (name == "most saved")])
                lines.append(Line(label, name, theirs, NONE, ours))
            for k, gpu in enumerate(PRICES):
                own = values[:, place + 2 + k]
                if np.isfinite(own).all():
                    lines.append(Line(label, f"{gpu} alone, mean", NONE, NONE, t_interval(own)))
            place += each
    return Reproduction(
        "Mélange: the cheapest mix against one type of GPU, Llama-2-7B",
        "% saved",
        tuple(lines),
        (
            f"at {', '.join(map(str, RATES))} requests/s, least and most over rates and types as "
            "theirs are; a type that can't serve some bucket is left out; means are over rates",
            "theirs: L4, A10G, A100 80 GB and H100 measured under vLLM; ours are rooflines of the "
            "four, estimates, and no L4 or A10G was measured",
            "prices in $/h: L4 0.70, A10G 1.01, A100 3.67, H100 7.516; those of A10G and A100 are "
            "in the authors' code, the two others are from memory of their table",
            "short: our preset lmsys-chat for their Chatbot Arena; long: lognormal lengths, "
            f"medians {DOCUMENT[0]:,} and {ABSTRACT[0]}, for their PubMed, guessed; mixed: 80% and "
            "20%",
            "theirs: a type's rate of a bucket is where the mean TPOT meets the limit; ours: where "
            "99% of requests do, and never more than a node completes",
            f"buckets: {len(PROMPTS)} of prompts by {len(OUTPUTS)} of answers, fewer than theirs; "
            "8 slices each, no headroom",
        ),
        "the mix",
        "Griggs et al., arXiv 2404.14527, abstract and the authors' page: 15 to 77, 15 to 33 and "
        "13 to 51% at 120 ms, 9 to 68, 2 to 22 and 4 to 51% at 40 ms",
        "The most that is saved is theirs in the mixed setting and more elsewhere, 91 for 77% and "
        "51 for 33% at 120 ms: at 1 request/s one node of the smallest type that serves all is "
        "the mix, and it is the ratio of prices, H100 over L4 or over A100, that is found. The "
        "least is none, where theirs is 2 to 15%: in every setting there is a rate at which whole "
        "nodes of one type come out even. As they say, small GPUs serve short requests and large "
        "ones long requests, and A100 alone is near the mix on documents at 120 ms, H100 alone at "
        "40 ms. An L4 takes longer than 40 ms here to read the weights once, and so serves "
        "nothing there.",
    )
