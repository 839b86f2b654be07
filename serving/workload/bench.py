"""The requests in a result of ``vllm bench serve``: for workloads, and for runs to calibrate on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lengthwise.errors import InputError

NEEDED, MORE = ("input_lens", "output_lens"), ("start_times", "ttfts", "itls", "errors")


def bench_requests(name: str, run: Mapping[str, Any]) -> dict[str, list[Any]]:
    """The lists of one run with an entry a request each: ``NEEDED``, and those of ``MORE`` it has.

    Written by ``vllm bench serve --save-result --save-detailed`` (0.12 and later; ``start_times``
    since 2026) and SGLang's ``bench_serving --output-details``. Raises ``InputError`` for a summary
    without requests, and for lists of different lengths.
    """
    found = {
        key: list(run[key])
        for key in (*NEEDED, *MORE)
        if isinstance(run.get(key), list | tuple | np.ndarray)
    }
    if not set(NEEDED) <= found.keys():
        raise InputError(
            f"{name}: a benchmark's summary, without its requests; run vllm bench serve with "
            "--save-result --save-detailed"
        )
    count = len(found["input_lens"])
    for key, values in found.items():
        if len(values) != count:
            raise InputError(f"{name}: {key} has {len(values)} entries, for {count} requests")
    return found
